"""A kernel written to the disk, against its contraction in memory and plain files of its bytes."""

import os
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import product
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, Target, ratio

# on the disk of this checkout, which git ignores
RUNS = Path(__file__).resolve().parents[1] / "runs"


@cache
def inputs(n, d):
    import nngp_plugins as nngp

    rng = np.random.default_rng(0)
    x, params = rng.standard_normal((n, 16), np.float32), rng.standard_normal((16, d), np.float32)
    return nngp, nngp.empirical_nngp_fn(lambda params, x: jnp.tanh(x @ params)), x, params


def on_disk(write, where=RUNS):
    """Measures without the removal of what was written."""

    def run():
        Path(where).mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=where) as folder:
            start = time.perf_counter()
            write(Path(folder))
            return {"seconds": time.perf_counter() - start}

    return run


def floor(threads, n, d, tile, batch_size):
    nngp, kernel_fn, x, params = inputs(n, d)
    contract, y = nngp.batch(kernel_fn).contract, kernel_fn.f(params, x).block_until_ready()

    def write(folder):
        kernel = np.asarray(contract(y))

        def write_tile(i, j):
            with open(folder / f"{i}-{j}", "wb", buffering=0) as file:
                file.write(np.ascontiguousarray(kernel[i : i + tile, j : j + tile]))
                os.fsync(file.fileno())

        with ThreadPoolExecutor(threads) as pool:
            deque(pool.map(write_tile, *zip(*product(range(0, n, tile), repeat=2), strict=True)), maxlen=0)

    return on_disk(write)


def ours(n, d, tile, batch_size):
    nngp, kernel_fn, x, params = inputs(n, d)
    options = {"batch_size": batch_size, "progress": False}
    return on_disk(lambda folder: nngp.write_kernel(kernel_fn, x, None, params, folder / "kernel", **options))


CASES = [
    Case(
        "kernel on the disk, N={n}, D={d}",
        {
            "floor": Contender(
                partial(floor, 1), "`contract(y)`, then plain files of {tile} rows and columns, fsync each"
            ),
            "floor, 4 threads": Contender(partial(floor, 4), "the same"),
            "ours": Contender(ours, "`nngp.write_kernel(kernel_fn, x, None, params, path)`, from inputs"),
        },
        [
            ratio("ours", "floor", at_most=1.3),
            Target("peak memory of ours", lambda peak, _: peak["ours"], of="peak", unit="bytes", at_most=1.2e9),
        ],
        sizes={"n": 20_000, "d": 512, "tile": 2000, "batch_size": 2000},
        quick={"n": 600, "d": 16, "tile": 200, "batch_size": 200},
        rounds=5,
    )
]
