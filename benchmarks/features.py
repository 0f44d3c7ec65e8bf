"""Features written to the disk, against forward passes and plain files of the same bytes."""

import atexit
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, Target, ratio
from store import RUNS, on_disk

HIDDEN = 64


def network(params, x):
    return jnp.tanh(jnp.tanh(x @ params[0]) @ params[1])


def job(n, d):
    """A small network, and its inputs as a memmap."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal((HIDDEN, 2 * HIDDEN), np.float32), rng.standard_normal((2 * HIDDEN, d), np.float32)]
    RUNS.mkdir(exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix="bench-", dir=RUNS)
    atexit.register(folder.cleanup)
    x = np.lib.format.open_memmap(Path(folder.name) / "x.npy", "w+", np.float32, (n, HIDDEN))
    for start in range(0, n, 100_000):
        x[start : start + 100_000] = rng.standard_normal(x[start : start + 100_000].shape, np.float32)
    return Path(folder.name), params, x


def plain_files(n, d, batch_size):
    _, params, x = job(n, d)
    run = jax.jit(network)

    def write(folder):
        for start in range(0, n, batch_size):
            with open(folder / str(start), "wb", buffering=0) as file:
                file.write(np.asarray(run(params, x[start : start + batch_size])))
                os.fsync(file.fileno())

    return on_disk(write)


def write_features(n, d, batch_size):
    import nngp_plugins as nngp

    _, params, x = job(n, d)
    options = {"batch_size": batch_size, "progress": False}
    return on_disk(lambda folder: nngp.write_features(network, x, params, folder / "phi", **options))


def memory(at_most):
    return Target("peak memory of ours", lambda peak, _: peak["ours"], of="peak", unit="bytes", at_most=at_most)


CASES = [
    Case(
        "features on the disk, N={n}, D={d}",
        {
            "floor": Contender(plain_files, "forward passes of {batch_size}, a plain file and an fsync each"),
            "ours": Contender(write_features, "`nngp.write_features(f, x, params, path)`"),
        },
        [ratio("ours", "floor", at_most=1.2), memory(1.5e9)],
        sizes={"n": 1_000_000, "d": 1024, "batch_size": 4096},
        quick={"n": 600, "d": 16, "batch_size": 200},
        rounds=3,
    ),
]
