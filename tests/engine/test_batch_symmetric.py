"""With ``x2=None`` a kernel in batches is its own mirror image, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import gram, normal

import nngp_plugins as nngp

pytestmark = pytest.mark.once

# tiles of 5 rows and less, in batches of 4; the outputs of all on the device, or on the host as many as fit
N, BATCH, TILE = 17, 4, 5
PLACES = [{"store_on_device": True}, {"store_on_device": False, "memory_budget": 2_000}]


def identity(params, x):
    return x


def kernels(f, x, x2=None, batch_size=BATCH, tile_size=TILE, **axes):
    kernel_fn = nngp.empirical_nngp_fn(f, **axes)
    return [
        nngp.batch(kernel_fn, batch_size, check=False, tile_size=tile_size, **place)(x, x2, None) for place in PLACES
    ]


SYMMETRIC = {  # the axes, and the transposition that swaps the two examples and all that belongs to them
    "default": ((70,), {}, (1, 0)),
    "images": ((2, 3, 20), {}, (1, 0, 3, 2, 5, 4)),
    "diagonal": ((2, 3, 20), {"diagonal_axes": 2}, (1, 0, 3, 2, 4)),
    "middle traced": ((2, 30, 3), {"trace_axes": 2}, (1, 0, 3, 2, 5, 4)),
    "batch diagonal": ((3, 70), {"diagonal_axes": 0}, (0, 2, 1)),
    "batch traced": ((3, 70), {"trace_axes": (0, -1)}, (1, 0)),
}


@pytest.mark.every(6)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "complex64") for name in SYMMETRIC] + [(name, "bfloat16") for name in ("default", "images")],
)
def test_the_kernel_is_its_own_mirror_image(name, dtype):
    shape, axes, mirror = SYMMETRIC[name]
    x = normal(0, N, *shape) + (1j * normal(1, N, *shape) if dtype == "complex64" else 0)
    for kernel in kernels(identity, x.astype(jnp.dtype(dtype)), **axes):
        kernel = np.asarray(kernel)
        assert kernel.dtype == ("complex64" if dtype == "complex64" else "float32")
        np.testing.assert_array_equal(kernel, kernel.transpose(mirror).conj(), strict=True)
        assert dtype != "complex64" or np.abs(kernel.imag).max() > 0.01


@pytest.mark.parametrize("tile", [3, 40], ids=["many tiles", "one tile"])
def test_the_mean_over_many_features(tile):
    # Without care, the product of a matrix with itself is not symmetric.
    for kernel in kernels(identity, normal(0, 40, 1000), tile_size=tile):
        np.testing.assert_array_equal(kernel, np.asarray(kernel).T)


def test_cross_terms_mirror_each_other():
    def f(params, x):
        return {"b": x[:, 0], "c": x * (1 + 1j)}

    mirrors = {("b", "c"): (1, 0, 3, 2, 4), ("b", "b"): (1, 0, 3, 2), ("c", "c"): (1, 0, 3, 2, 5, 4)}
    for kernel in kernels(f, normal(0, N, 2, 3, 20), cross_terms=True):
        for (one, two), mirror in mirrors.items():
            image = np.asarray(kernel[one][two]).transpose(mirror).conj()
            np.testing.assert_array_equal(kernel[two][one], image, strict=True)


def weighted(params, x):
    return x["u"] * x["v"][0][:, None]


@pytest.mark.every(3)
@pytest.mark.parametrize("nones", [{"u": None, "v": [None, None]}, (), {}], ids=["Nones", "tuple", "dict"])
def test_nothing_but_nones_is_x2_none(nones):
    x = {"u": normal(0, N, 500), "v": [normal(1, N), None]}
    expected = gram(weighted(None, x))
    for kernel in kernels(weighted, x, nones):
        np.testing.assert_array_equal(kernel, np.asarray(kernel).T)
        np.testing.assert_allclose(kernel, expected, atol=1e-5 * np.abs(expected).max())


def test_contracted_outputs_give_a_symmetric_kernel():
    y = {"a": normal(0, N, 500), "b": jnp.asarray(normal(1, N, 500), jnp.bfloat16)}
    for place in PLACES:
        kernel = nngp.batch(nngp.empirical_nngp_fn(identity), **place).contract(y)
        for name in y:
            np.testing.assert_array_equal(kernel[name], np.asarray(kernel[name]).T)


@pytest.mark.parametrize("store_on_device", [True, False], ids=["device", "host"])
def test_float64_too(store_on_device):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((N, 500))
        kernel = nngp.batch(nngp.empirical_nngp_fn(identity), BATCH, store_on_device=store_on_device)(x, None, None)
        assert kernel.dtype == np.float64
        np.testing.assert_array_equal(kernel, np.asarray(kernel).T)
        np.testing.assert_allclose(kernel, x @ x.T / 500, atol=1e-13)
