"""Kernels of infinitely wide networks against quadrature of their definition, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal
from scipy.special import erf, ndtr

import nngp_plugins as nngp

pytestmark = pytest.mark.once

ACTIVATIONS = {
    "relu": lambda u: np.maximum(u, 0),
    "erf": erf,
    "gelu": lambda u: u * ndtr(u),
    "identity": lambda u: u,
}


def expectation(activation, k, p, q):
    """``E[φ(u) φ(v)]`` by a sum over a grid in the plane."""
    z = np.linspace(-9, 9, 901)
    weights = np.exp(-(z**2) / 2) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    u = np.sqrt(p) * z
    v = k / np.sqrt(p) * z[:, None] + np.sqrt(max(q - k * k / p, 0)) * z
    return weights @ (activation(u) * (activation(v) @ weights))


def by_quadrature(activation, depth, w_var, b_var, x1, x2):
    x = np.concatenate([x1, x2]).astype(float)
    kernel = b_var + w_var * x @ x.T / x.shape[1]
    for _ in range(depth):
        p, n = np.diag(kernel), len(x)
        moments = np.zeros((n, n))
        for i in range(n):
            for j in range(i, n):
                moments[i, j] = moments[j, i] = expectation(activation, kernel[i, j], p[i], p[j])
        kernel = b_var + w_var * moments
    return kernel[: len(x1), len(x1) :]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_recursions_are_expectations(activation):
    x1, x2 = normal(0, 1, 5), normal(1, 2, 5)
    kernel_fn = nngp.closed_form.dense(2, activation, w_var=1.7, b_var=0.2)
    expected = by_quadrature(ACTIVATIONS[activation], 2, 1.7, 0.2, x1, x2)
    np.testing.assert_allclose(kernel_fn(x1, x2), expected, rtol=3e-5)
    of_both = np.asarray(kernel_fn(np.concatenate([x1, x2])))
    np.testing.assert_allclose(of_both[:1, 1:], expected, rtol=3e-5)
    np.testing.assert_allclose(of_both, of_both.T, rtol=1e-6)


def test_float64():
    """A grid is exact for smooth functions, to the last digits."""
    x1, x2 = normal(0, 2, 5, dtype=float), normal(1, 2, 5, dtype=float)
    with jax.enable_x64(True):
        kernel = nngp.closed_form.dense(1, "gelu", 1.3, 0.1)(x1, x2)
    np.testing.assert_allclose(kernel, by_quadrature(ACTIVATIONS["gelu"], 1, 1.3, 0.1, x1, x2), rtol=1e-12)


def test_layers_are_the_kernels_of_less_depth():
    x = normal(2, 4, 3, 2)
    layers = np.asarray(nngp.closed_form.dense(3, "erf", 2.0, 0.1).layers(x))
    assert layers.shape == (4, 4, 4)
    for depth, kernel in enumerate(layers):
        np.testing.assert_allclose(kernel, nngp.closed_form.dense(depth, "erf", 2.0, 0.1)(x), rtol=1e-6)
    flat = x.reshape(4, 6)
    np.testing.assert_allclose(layers[0], 0.1 + 2 * flat @ flat.T / 6, rtol=1e-5)


def test_he_initialisation_keeps_the_variance_of_relu_at_any_depth():
    x = normal(3, 6, 784)
    deep = nngp.closed_form.dense(50, "relu", w_var=2.0)
    kernel = np.asarray(deep(x), float)
    np.testing.assert_allclose(np.diag(kernel), 2 * np.mean(x.astype(float) ** 2, axis=1), rtol=2e-5)
    assert np.linalg.eigvalsh(kernel)[0] > 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_finite_where_angles_and_inputs_are_zero(activation):
    x, weights = normal(4, 3, 4), np.arange(9, dtype=np.float32).reshape(3, 3)
    x[1], x[2] = 0, -x[0]
    loss = jax.jit(jax.value_and_grad(lambda x: jnp.sum(nngp.closed_form.dense(3, activation, 1.5)(x) * weights)))
    _, gradient = loss(x)
    assert np.isfinite(gradient).all()
    step = np.zeros_like(x)
    step[0] = 1e-2 * normal(5, 4)
    change = (loss(x + step)[0] - loss(x - step)[0]) / 2
    np.testing.assert_allclose(change, np.sum(gradient * step), rtol=0.05)


def test_inputs_of_zeros_without_bias_have_kernel_zero():
    kernel = nngp.closed_form.dense(2, "relu")(np.zeros((2, 3)), np.ones((1, 3)))
    np.testing.assert_array_equal(kernel, np.zeros((2, 1)))


def test_bad_input():
    dense = nngp.closed_form.dense
    with pytest.raises(ValueError, match=r"depth=-1 must be a number of hidden layers"):
        dense(-1, "relu")
    with pytest.raises(ValueError, match=r"activation='tanh' must be one of 'relu', 'erf', 'gelu', 'identity'"):
        dense(1, "tanh")
    with pytest.raises(ValueError, match=r"b_var=-0.1 is a variance"):
        dense(1, "relu", 1.0, -0.1)
    with pytest.raises(ValueError, match=r"x1 has 3 features and x2 has 4"):
        dense(1, "relu")(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"x1 of shape \(\) has no batch axis"):
        dense(1, "relu")(1.0)
