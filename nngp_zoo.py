"""The console script ``nngp-zoo``, outside the package ``zoo``, which another ``zoo`` on the path can hide."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks that ``import zoo`` gives the zoo of nngp-plugins, and runs the command.

    Args:
        arguments: the words after ``nngp-zoo``; None for those of this process.

    Raises:
        SystemExit: always, with the exit code of the command; 2 if another ``zoo`` comes first.
    """
    spec = find_spec("zoo")
    found = Path(spec.origin) if spec and spec.origin else None
    if found is None or found.resolve().parent != Path(__file__).resolve().parent / "zoo":
        what = f"{found} comes first and hides" if found else "Python does not find"
        told = "rename it, or take its folder out of PYTHONPATH" if found else "install nngp-plugins again"
        print(f"nngp-zoo: {what} the package zoo of nngp-plugins; {told}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)
    from zoo.__main__ import main as run

    run(arguments)
