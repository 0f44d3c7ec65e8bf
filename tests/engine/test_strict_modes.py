"""Kernels under JAX's strict modes, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers.strict_modes import in_every_mode, setting

import nngp_plugins as nngp

X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
ARRAYS = X1, X2, W = [jnp.asarray(array) for array in (X, 2 * X[:5], np.linspace(0.5, 2, 4, dtype=np.float32))]
KEY = jax.random.key(0)


@jax.jit
def f(w, x):
    y = jnp.tanh(x * jnp.expand_dims(w, 0))
    return {"y": y, "sign": y > 0}


@jax.jit
def noisy(w, x, rng):
    return jnp.tanh(x * jnp.expand_dims(w, 0)) + jax.random.uniform(rng, x.shape, x.dtype)


def outputs(x):
    y = np.tanh(np.asarray(x, np.float64) * np.asarray(W, np.float64))
    return {"y": y, "sign": 1.0 * (y > 0)}


def assert_kernels(kernels, x1, x2):
    y1, y2 = outputs(x1), outputs(x2)
    for name, kernel in kernels.items():
        np.testing.assert_allclose(np.asarray(kernel), y1[name] @ y2[name].T / 4, rtol=1e-5, atol=1e-6)


@in_every_mode
def test_kernels(mode, tmp_path):
    kernel_fn, folded = nngp.empirical_nngp_fn(f), nngp.empirical_nngp_fn(noisy)
    crossed = nngp.empirical_nngp_fn(f, cross_terms=True)
    with setting(**mode):
        assert_kernels(kernel_fn(X1, None, W), X1, X1)
        cross = crossed(X1, X2, W)["y"]["sign"]
        np.testing.assert_allclose(np.asarray(cross), outputs(X1)["y"] @ outputs(X2)["sign"].T / 4, rtol=1e-5)
        assert folded(X1, X2, W, rng=KEY).shape == (7, 5)
        assert_kernels(nngp.batch(kernel_fn, 3)(X1, None, W), X1, X1)
        assert_kernels(nngp.batch(kernel_fn, 3, store_on_device=False)(X, X2, np.asarray(W)), X, X2)
        assert nngp.batch(folded, 3)(X1, None, W, rng=KEY).shape == (7, 7)
        assert nngp.plan(kernel_fn, X1, None, W, batch_size=3).forward_rows == 7
        y = np.asarray(outputs(X)["y"], np.float32)
        assert_kernels(nngp.batch(kernel_fn).contract({"y": y}), X, X)
        store = nngp.write_kernel(kernel_fn, X1, None, W, tmp_path / "k.zarr", batch_size=3, progress=False)
        assert_kernels({"sign": store["sign"][:]}, X1, X1)
