"""Models that run their layers inside ``scan``, ``remat`` and ``vmap``, and models that are zero at first."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras

import nngp_plugins as nngp

from .blocks import TWINS, sequences as transformer_sequences
from .haiku import haiku
from .keras import keras_model, sequential
from .linen import linen
from .table import Model, initialised, normal, register, sequences, vectors


def twins(name, which):
    def make():
        model = TWINS[which]()
        return Model(model.scanned, model.params, transformer_sequences()[:4])

    register(name, make)


def time_major(x):
    """As many of Haiku's networks: time comes first inside, and the batch comes first outside."""
    core = hk.GRU(4)
    y, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(len(x)), time_major=True)
    return hk.Linear(2)(y).swapaxes(0, 1)


class ZeroBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        hidden = nn.tanh(nn.Dense(6, name="up")(x))
        return x + nn.Dense(3, kernel_init=nn.initializers.zeros, name="down")(hidden), None


class ZeroStack(nn.Module):
    """Blocks that are the identity at first, and a head that is its bias."""

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(nn.remat(ZeroBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack(name="blocks")(x, None)
        ones = nn.initializers.ones
        return nn.Dense(2, kernel_init=nn.initializers.zeros, bias_init=ones, name="head")(x)


def zero_haiku(x):
    ones = hk.initializers.Constant(1)
    x = x + hk.Linear(3, w_init=jnp.zeros, name="branch")(jnp.tanh(hk.Linear(6, name="body")(x)))
    return hk.Linear(2, w_init=jnp.zeros, b_init=ones, name="head")(x)


def tagged(params, x):
    """Plain JAX with tags: blocks in a scan with ``remat``, and heads under ``vmap``."""

    @jax.checkpoint
    def block(x, w):
        h = nngp.tag("hidden", jnp.tanh(x @ w))
        return nngp.tag("block", x + h), None

    x, _ = jax.lax.scan(block, x, params["blocks"])
    return jax.vmap(lambda w: nngp.tag("head", x @ w), out_axes=1)(params["heads"])


def tagged_init(rng, x):
    keys, d = jax.random.split(rng), x.shape[1]
    return {"blocks": jax.random.normal(keys[0], (3, d, d)), "heads": jax.random.normal(keys[1], (4, d, 2))}


twins("linen/scanned transformer", "linen")
twins("nnx/scanned transformer", "nnx.scan")
twins("nnx/lax.scan over split modules", "lax.scan")
twins("haiku/scanned transformer", "haiku")
twins("equinox/scanned transformer", "equinox")
haiku("time first inside", hk.without_apply_rng(hk.transform(time_major)), sequences)
linen("zero at first", ZeroStack(), vectors, own=True)
haiku("zero at first", hk.without_apply_rng(hk.transform(zero_haiku)), vectors, own=True)
keras_model(
    "RNN of a cell",
    sequential(keras.layers.RNN(keras.layers.SimpleRNNCell(4), return_sequences=True), shape=(5, 3)),
    lambda: normal(4, 5, 3),
)
register("function with tags", lambda: initialised(nngp.from_callable(tagged, tagged_init), vectors(), {}, {}))
