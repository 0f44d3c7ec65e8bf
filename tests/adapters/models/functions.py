"""Plain functions."""

import jax
import jax.numpy as jnp

import nngp_plugins as nngp

from .table import Model, initialised, normal, register, vectors


def dense(params, x):
    return jnp.tanh(x @ params["w"]) + params["b"]


def dense_init(rng, x):
    return {"w": jax.random.normal(rng, (x.shape[1], 5)), "b": jnp.ones(5)}


def noisy(params, x, *, state, rng, scale=1.0):
    return {"hidden": (hidden := x @ params), "noisy": hidden * state + scale * jax.random.normal(rng, hidden.shape)}


register("function", lambda: initialised(nngp.from_callable(dense, dense_init), vectors(), {}, {}))
register(
    "function with state and rng",
    lambda: Model(
        nngp.from_callable(noisy, scale=0.5),
        normal(3, 2),
        vectors(),
        {"state": jnp.float32(2), "rng": jax.random.key(0)},
        mixes=True,
        doubles=False,
    ),
)
