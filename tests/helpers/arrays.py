"""Random arrays, the kernel as its definition, and comparisons of arrays."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape, dtype=np.float32):
    """A NumPy array of standard normal numbers, which the seed alone decides."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def jax_normal(seed, *shape, dtype=jnp.float32):
    """The array of `normal` on JAX's default device."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def gram(y1, y2=None):
    """``y1 y2ᴴ / D`` in float64 or complex128, with everything but the batch axis flattened to ``D``."""
    y2 = y1 if y2 is None else y2
    wide = np.complex128 if np.iscomplexobj(y1) or np.iscomplexobj(y2) else np.float64
    y1, y2 = (np.asarray(y, wide).reshape(len(y), -1) for y in (y1, y2))
    return y1 @ y2.conj().T / y1.shape[1]


def kernel(phi):
    """``phi phiᵀ`` of JAX features at full precision; by default, accelerators round to TF32."""
    return jnp.matmul(phi, phi.T, precision="highest")


def rotated(seed, phi):
    """Features with the same kernel as ``phi``, rotated in float64."""
    q, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(phi.shape[1], phi.shape[1])))
    return jnp.asarray(np.asarray(phi, float) @ q, jnp.float32)


def assert_close(actual, expected, tolerance=1e-5):
    """The same tree of arrays of the same shapes; errors are relative to the largest entry of each leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.max(np.abs(b)))


def close(a, b, rtol=1e-4, atol=1e-5):
    """Numbers that agree to the precision of float32 metrics."""
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
