"""What tests/forks.py runs for the tests of the store: writers of kernels and of features, alone or several at once."""

import os
import random
import signal
import time
from pathlib import Path

import jax.numpy as jnp
import tensorstore
from forks import child
from helpers.arrays import normal

import nngp_plugins as nngp

LOADED = tensorstore  # which a writer would import


def one(params, x):
    return jnp.tanh(x @ params)


def two(params, x):
    return {"hidden": x @ params, "head": jnp.tanh(x @ params)[:, :3]}


def run(path, kind, parts=1, kills=0, seed=0):
    """Writes a store, in some parts at the same time, and kills some of their processes; all have the same numbers."""
    if parts == 1:
        write(path, kind)
        return
    dice, running = random.Random(seed), {}
    for index in range(parts):
        # JAX has started no backend yet, so the fork loses no threads.
        pid = os.fork()
        if not pid:
            child(write, {"path": path, "kind": kind, "part": (index, parts)})
        running[pid] = index
    for pid in dice.sample(sorted(running), kills):
        wait_until_written(Path(path), dice.randrange(20))
        os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]
    assert codes.count(-signal.SIGKILL) <= kills, codes
    assert set(codes) <= {0, -signal.SIGKILL}, codes


def wait_until_written(path, chunks):
    """Until the parts have listed some chunks between them, or some seconds have passed."""
    end = time.monotonic() + 5
    while sum(file.read_bytes().count(b"\n") for file in path.glob("ledger.*")) < chunks and time.monotonic() < end:
        time.sleep(0.0005)


def write(path, kind, part=None):
    """Writes a kernel of 144 tiles, 72 blocks of features, or features with many ids."""
    if kind == "ids":
        n = 400_000
        x, params = jnp.ones((n, 1)), jnp.ones((1, 1))
        nngp.write_features(one, x, params, path, batch_size=n // 4, ids=range(n), progress=False, part=part)
        return
    x1, x2, params = normal(0, 24, 5), normal(1, 18, 5), normal(2, 5, 7)
    options = {"progress": False, "part": part}
    if kind == "features":
        x = normal(0, 72, 5)
        nngp.write_features(two, x, params, path, batch_size=2, block_size=2, ids=range(72), **options)
        return
    if kind == "symmetric":
        kernel_fn, x2, tile_size = nngp.empirical_nngp_fn(one), None, 2
    else:  # two kernels of 8 × 6 tiles, and a little more, in blocks of rows
        kernel_fn, tile_size = nngp.batch(nngp.empirical_nngp_fn(two), memory_budget=700), 3
    nngp.write_kernel(kernel_fn, x1, x2, params, path, batch_size=5, tile_size=tile_size, **options)
