"""What tests/forks.py runs for the tests of the store: writers of kernels."""

import jax.numpy as jnp
import tensorstore
from helpers.arrays import normal

import nngp_plugins as nngp

LOADED = tensorstore  # which a writer would import


def one(params, x):
    return jnp.tanh(x @ params)


def two(params, x):
    return {"hidden": x @ params, "head": jnp.tanh(x @ params)[:, :3]}


def run(path, kind):
    """Writes a kernel of 144 tiles; every process has the same numbers."""
    x1, x2, params = normal(0, 24, 5), normal(1, 18, 5), normal(2, 5, 7)
    if kind == "symmetric":
        kernel_fn, x2, tile_size = nngp.empirical_nngp_fn(one), None, 2
    else:  # two kernels of 8 × 6 tiles, and a little more, in blocks of rows
        kernel_fn, tile_size = nngp.batch(nngp.empirical_nngp_fn(two), memory_budget=700), 3
    nngp.write_kernel(kernel_fn, x1, x2, params, path, batch_size=5, tile_size=tile_size, progress=False)
