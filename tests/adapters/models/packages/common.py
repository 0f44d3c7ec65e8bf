"""What the models of packages are made with."""

import os
from dataclasses import replace

import jax
import numpy as np

import nngp_plugins as nngp

from ..table import Model, register

# NetKet, which is imported later, would switch float64 on for all
os.environ["NETKET_ENABLE_X64"] = "0"


def model(package, what, note="", moved=False, **flags):
    """Registers the Model that a function makes, under what people call it.

    ``moved``: away from an initialisation where the output is zero, and with it the gradient; flags are those of Model.
    """

    def of(make):
        def made():
            model = replace(make(), note=note, **flags)
            return replace(model, params=near(model.params)) if moved else model

        register(f"{package}/{what}", made)
        return make

    return of


def near(params):
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda p: np.asarray(p + 0.1 * rng.standard_normal(p.shape), p.dtype), params)


def image(n=4, size=32, channels=3):
    return jax.random.normal(jax.random.key(1), (n, size, size, channels))


def tokens(n=4, length=12, vocab=50):
    return jax.random.randint(jax.random.key(1), (n, length), 1, vocab)


def normal(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def initialised(f, x, init, call):
    # the forward pass of init, which nothing needs, is not compiled
    params, state = jax.jit(lambda key: f.init(key, x, **(init or {})))(jax.random.key(0))
    state = {"state": state} if jax.tree.leaves(state) else {}
    return Model(f, params, x, {**state, **(call or {})})


def linen(module, x, init=None, call=None, **adapter):
    return initialised(nngp.from_linen(module, **adapter), x, init, call)


def live(module, x, call=None, **adapter):
    f = nngp.from_nnx(module, **adapter)
    params, state = f.split(module)
    return Model(f, params, x, {"state": state, **(call or {})}, live=module)


def haiku(fn, x, with_state=False, init=None, call=None, **adapter):
    import haiku as hk

    f = nngp.from_haiku((hk.transform_with_state if with_state else hk.transform)(fn), **adapter)
    return initialised(f, x, init, call)
