"""Parameters whose numbers NumPy draws: to compile what a model's own ``init`` draws takes longer than most tests."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def random_numbers(tree, seed=0):
    """Standard normal numbers in place of all arrays or shapes of a tree; zeros and ones would hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), tree)


def drawn(f, x, seed=0, **kwargs):
    """Parameters of a ModelFn of which nothing is run."""
    key = jax.random.key(0)
    # Old versions of Haiku warn of parameters in float64.
    x = jax.tree.map(lambda leaf: leaf.astype(np.float32) if getattr(leaf, "dtype", None) == np.float64 else leaf, x)
    return random_numbers(jax.eval_shape(lambda: partial(f.init, **kwargs)(key, x)[0]), seed)


def drawn_nnx(make):
    """The NNX model that a function makes; only what is no parameter, such as keys, is made by the function."""
    graphdef, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    if jax.tree.leaves(rest):
        rest = jax.jit(lambda: nnx.split(make(), nnx.Param, ...)[2])()
    return nnx.merge(graphdef, random_numbers(params), rest)


def drawn_equinox(make, *args, **kwargs):
    """The Equinox model that a function makes, without what the function computes."""
    shapes, rest = eqx.partition(eqx.filter_eval_shape(make, *args, **kwargs), is_shape)
    return eqx.combine(random_numbers(shapes), rest)


def is_shape(leaf):
    return isinstance(leaf, jax.ShapeDtypeStruct)
