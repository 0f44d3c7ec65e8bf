"""What `import nngp_plugins` costs over `import jax`: whole processes, in turn, medians."""

import statistics
import subprocess
import sys
import time


def seconds(statement):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main(rounds=15):
    times = {statement: [] for statement in ("import jax", "import nngp_plugins")}
    for statement in list(times) * (rounds + 1):
        times[statement].append(seconds(statement))
    floor, ours = (statistics.median(values[1:]) for values in times.values())  # the first fills the disk cache
    print(f"import jax {floor:.3f} s, import nngp_plugins {ours:.3f} s, ratio {ours / floor:.3f}")


if __name__ == "__main__":
    main()
