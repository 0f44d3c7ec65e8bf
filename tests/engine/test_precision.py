"""The precisions of a contraction: what they promise against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

# Where float32 has to be exact: large means that all examples share, and examples that are nearly the same.
INPUTS = {
    "random": normal(0, 96, 512),
    "offset of 1000": normal(0, 96, 512) + np.float32(1000),
    "1e-4 apart": normal(1, 1, 512) + np.float32(1e-4) * normal(0, 96, 512),
}


def error(precision, y):
    """The largest error against float64, in parts of the largest entry."""
    kernel = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x, precision=precision)).contract(jnp.asarray(y))
    exact = y.astype(np.float64) @ y.astype(np.float64).T / y.shape[1]
    return np.abs(np.asarray(kernel, np.float64) - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("name", INPUTS)
def test_float32_is_as_exact_as_highest(name):
    highest = error("highest", INPUTS[name])
    assert highest < 1e-5
    assert error("float32", INPUTS[name]) <= 2 * highest


@pytest.mark.parametrize("transform", [jax.jit, lambda f: jax.vmap(f, (0, None, None)), jax.grad])
def test_float32_under_transformations(transform):
    x = normal(0, 5, 8)

    def f(precision):
        kernel_fn = nngp.empirical_nngp_fn(lambda params, x: jnp.sin(x @ params), precision=precision)
        return lambda x, x2, params: kernel_fn(x, x2, params).sum()

    arguments = (x[None] if transform not in (jax.jit, jax.grad) else x), None, normal(1, 8, 6)
    expected, found = (transform(f(precision))(*arguments) for precision in ("highest", "float32"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_lower_precision_is_passed_on():
    jaxpr = jax.make_jaxpr(nngp.empirical_nngp_fn(lambda params, x: x, precision="default"))(normal(0, 4, 8), None, 0.0)
    assert "Precision.DEFAULT" in str(jaxpr)
