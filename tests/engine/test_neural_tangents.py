"""A drop-in: the kernels of neural-tangents 0.6.5 itself, stored beside this file; test_oracle.py takes all axes sets.

Run as a script, this writes them anew, with JAX_THREEFRY_PARTITIONABLE=1 in an environment where neural-tangents still
imports: Python 3.11 with neural-tangents==0.6.5 jax==0.4.30 jaxlib==0.4.30 "numpy<2" "scipy<1.14".
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

STORED = Path(__file__).with_name("neural_tangents.npz")


def outputs(params, x, scale=1.0, rng=None):
    y = jnp.tanh(x @ params) * scale
    if rng is not None:
        y = y * jax.random.bernoulli(rng, 0.5, y.shape)
    return {"image": y, "pooled": (y.mean(axis=(1, 2)), None)}


def image(params, x, **kwargs):
    return outputs(params, x, **kwargs)["image"]


def kernels(empirical_nngp_fn):
    """Kernels by name: axes sets in which any two axes have any two roles, and every way to pass keyword arguments."""
    x1, x2 = (np.sin(np.arange(n * 12.0, dtype=np.float32) ** 1.5).reshape(n, 3, 2, 2) for n in (2, 3))
    w = np.cos(np.arange(6, dtype=np.float32)).reshape(2, 3)
    key = jax.random.PRNGKey(0)

    @jax.jit  # one program for all, as compiling each by itself takes long
    def of_all_axes(x1, x2, w):
        found = {}
        for i, j in itertools.product(range(3), repeat=2):
            roles = [("free", "trace", "diagonal")[k % 3] for k in (i, j, i + j, i + 2 * j)]
            trace, diagonal = (tuple(i for i in range(4) if roles[i] == role) for role in ("trace", "diagonal"))
            for other in (None, x2) if roles[0] == "free" else (None,):
                name = f"{trace} {diagonal} {other is None}"
                found[name] = empirical_nngp_fn(image, trace, diagonal)(x1, other, w)
        return found

    yield from of_all_axes(x1, x2, w).items()
    kernel_fn = empirical_nngp_fn(image)
    yield from enumerate(jax.tree_util.tree_leaves(empirical_nngp_fn(outputs)(x1, x2, w)))
    yield "a pair of values", kernel_fn(x1, x2, w, scale=(2.0, 3.0))
    yield "a key", kernel_fn(x1, None, w, rng=key)
    yield "a key, x2 equal", kernel_fn(x1, x1.copy(), w, rng=key)
    yield "a key, x2 other", kernel_fn(x1, x2, w, rng=key)
    yield "a key under jit, x2 other", jax.jit(kernel_fn)(x1, x1 + 1, w, rng=key)
    yield "a pair of keys", kernel_fn(x1, x2, w, rng=(jax.random.PRNGKey(1), jax.random.PRNGKey(2)))
    yield "gradient", jax.grad(lambda w: kernel_fn(x1, x2, w).sum())(w)


def test_kernels_of_neural_tangents():
    import nngp_plugins as nngp

    with np.load(STORED) as stored:
        ours = {str(name): np.asarray(kernel) for name, kernel in kernels(nngp.empirical_nngp_fn)}
        assert set(ours) == set(stored.files)
        for name, kernel in ours.items():
            theirs = stored[name]
            assert kernel.shape == theirs.shape, name
            # Processors differ by 2e-5 in the convolutions of the network, which another one has computed for the file.
            np.testing.assert_allclose(kernel, theirs, rtol=1e-5, atol=5e-5 * np.abs(theirs).max(), err_msg=name)


if __name__ == "__main__":
    import neural_tangents as nt

    np.savez_compressed(STORED, **{str(name): kernel for name, kernel in kernels(nt.empirical_nngp_fn)})
