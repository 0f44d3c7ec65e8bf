"""Writes the small kernel to every folder named, and prints how each ended."""

import sys
from pathlib import Path


def main():
    from conftest import Small  # which is there when this is a script

    for path in sys.argv[1:]:
        try:
            Small(Path(path)).write()
            sys.stdout.write("finished\n")
        except OSError as error:
            sys.stdout.write(f"failed: {error}\n")


if __name__ == "__main__":
    main()
