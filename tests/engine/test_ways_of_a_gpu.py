"""The ways in which a GPU computes a symmetric kernel, taken on whatever backend is here: only their speed differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import gram, normal

import nngp_plugins as nngp


@pytest.fixture(autouse=True)
def ways_of_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


CASES = {  # rows, width, options: the way
    "one product": (200, 48, {}),
    "parts side by side": (200, 2048, {}),
    "the routine for symmetric products": (1600, 48, {}),
    "panels": (130, 48, {"tile_size": 40}),
    "panels of a low precision": (2500, 48, {"precision": "default"}),
}


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in CASES), ("parts side by side", "bfloat16")]
)
def test_of_given_outputs(case, dtype):
    rows, width, options = CASES[case]
    y = jnp.asarray(normal(0, rows, width), dtype)
    tiles = {name: value for name, value in options.items() if name == "tile_size"}
    precision = options.get("precision", "highest")
    kernel = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x, precision=precision), **tiles).contract(y)
    exact = np.asarray(y, np.float64)
    exact = exact @ exact.T / width
    # Sums of float32, in an order that differs between processors.
    np.testing.assert_allclose(kernel, exact, atol=1e-5 * np.abs(exact).max())
    assert np.array_equal(kernel, kernel.T)


@pytest.mark.parametrize(
    ("axes", "tile_size"),
    [({"diagonal_axes": (1,)}, 8), ({"trace_axes": ()}, None), ({"trace_axes": (), "diagonal_axes": (2,)}, 8)],
)
def test_with_more_axes(axes, tile_size):
    y = normal(0, 22, 3, 4) + 1j * normal(1, 22, 3, 4)
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x, **axes)
    kernel = nngp.batch(kernel_fn, tile_size=tile_size).contract(jnp.asarray(y, "complex64"))
    np.testing.assert_allclose(kernel, kernel_fn(y.astype("complex64"), None, None), atol=1e-5)
    assert np.array_equal(kernel, np.swapaxes(kernel, 0, 1).conj()) or kernel.ndim > 3


def test_in_blocks():
    x1 = normal(0, 90, 6)
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: {"a": x, "b": x**2})
    kernel = nngp.batch(kernel_fn, 7, check=False, memory_budget=1000)(x1, None, None)
    for i, name in enumerate("ab"):
        np.testing.assert_allclose(kernel[name], gram(x1 ** (i + 1)), rtol=1e-5, atol=1e-5)
