"""Flax NNX."""

from dataclasses import dataclass

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from helpers.parameters import drawn_nnx

import nngp_plugins as nngp

from .table import Model, images, initialised, normal, register, sequences, tokens, vectors

KEY = jax.random.key(3)


def live(name, make_model, x, call=None, mode="eval", mixes=False, doubles=True, own=False, **adapter):
    """A model as it is in training."""

    def make():
        model = make_model(nnx.Rngs(0)) if own else drawn_nnx(lambda: make_model(nnx.Rngs(0)))
        getattr(model, mode)()
        f = nngp.from_nnx(model, **adapter)
        params, state = f.split(model)
        kwargs = {"state": state, **(call or {})}
        return Model(f, params, x(), kwargs, live=model, mixes=mixes, doubles=doubles)

    register(f"nnx/{name}", make)


def factory(name, make_model, x, **adapter):
    register(f"nnx/{name}", lambda: initialised(nngp.from_nnx(make_model, **adapter), x(), {}, {}))


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return x + nnx.tanh(self.linear(x))


class Trained(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.head = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


class ConvNet(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.up = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs), nnx.ConvTranspose(6, 4, (3, 3), rngs=rngs)
        self.norms = nnx.List([nnx.GroupNorm(6, 2, rngs=rngs), nnx.LayerNorm(64, rngs=rngs)])
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.conv(x)))
        return self.head(self.norms[1](self.up(x).reshape(len(x), -1)))


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.encoder, self.decoder = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.decoder(self.encode(x))

    def encode(self, x):
        return nnx.tanh(self.encoder(x))


class Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def blocks(rngs):
            return Block(3, rngs)

        self.blocks, self.head = blocks(rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return block(x)

        return self.head(run(x, self.blocks))


class Rematerialised(nnx.Module):
    def __init__(self, rngs):
        self.block, self.head = Block(3, rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.remat(lambda block, x: block(x))(self.block, x))


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.block = nnx.Embed(11, 3, rngs=rngs), Block(3, rngs)
        self.again = self.block

    def __call__(self, x):
        return self.embed.attend(self.again(self.block(self.embed(x))))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.lstm = nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs))
        gru, simple = nnx.GRUCell(4, 3, rngs=rngs), nnx.SimpleCell(4, 3, rngs=rngs)
        self.both = nnx.Bidirectional(nnx.RNN(gru), nnx.RNN(simple), rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.both(self.lstm(x))[:, -1])


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.head = nnx.Embed(11, 8, rngs=rngs), nnx.Linear(8, 11, rngs=rngs)
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (5, 8)))
        self.attention = nnx.MultiHeadAttention(2, 8, dropout_rate=0.2, decode=False, rngs=rngs)
        self.norm, self.dropout = nnx.LayerNorm(8, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x, mask):
        h = self.embed(x) + self.position[...]
        h = h + self.dropout(self.attention(self.norm(h), mask=nnx.make_attention_mask(mask, mask)))
        return self.head(h)


@flax.struct.dataclass
class Prediction:
    mean: jax.Array
    scale: jax.Array


class Heads(nnx.Module):
    def __init__(self, combine, rngs):
        self.combine, self.block = combine, Block(3, rngs)
        self.mean, self.scale = nnx.Linear(3, 2, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        h = self.block(x)
        return self.combine(self.mean(h), nnx.softplus(self.scale(h)))


class Inputs(nnx.Module):
    def __init__(self, rngs):
        self.u, self.v = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, u, v):
        return self.u(u) * self.v(v)

    def of_dict(self, x):
        return self(x["u"], x["v"])


class Sows(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.hidden(x))
        self.sow(nnx.Intermediate, "relu", h)
        return self.head(h)


class Functional(nnx.Module):
    """A residual stream by a function of the user's, a plain dataclass within, and a static field."""

    @dataclass(frozen=True)
    class Config:
        width: int = 3

    def __init__(self, rngs):
        self.config = self.Config()
        self.layers = nnx.Dict(first=Block(self.config.width, rngs), second=Block(self.config.width, rngs))

    def __call__(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


def sequential(rngs):
    return nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))


def two_inputs():
    return vectors(), normal(4, 2, seed=1)


def half(rngs):
    return nnx.Sequential(
        nnx.Linear(3, 8, dtype=jnp.bfloat16, rngs=rngs), nnx.relu, nnx.Linear(8, 2, dtype=jnp.bfloat16, rngs=rngs)
    )


def bridged(rngs):
    return nnx.bridge.ToNNX(nn.Dense(5), rngs=rngs).lazy_init(vectors())


MASK = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], bool)

live("linear", lambda rngs: nnx.Linear(3, 5, rngs=rngs), vectors)
live("sequential", sequential, vectors)
factory("factory", sequential, vectors)
factory("class", Encoder, vectors)
live("convolutions", ConvNet, images)
live("method", Encoder, vectors, method="encode")
live("evaluation mode", Trained, vectors)
live("training mode", Trained, vectors, call={"rng": KEY}, mode="train", mixes=True, doubles=False)
live("scan", Scanned, vectors)
live("remat", Rematerialised, vectors)
live("shared modules", Tied, tokens, doubles=False)
live("recurrent", Recurrent, sequences, doubles=False)
live("transformer", Transformer, tokens, call={"mask": MASK})
live("transformer with dropout", Transformer, tokens, call={"mask": MASK, "rng": KEY}, mode="train", mixes=True)
live("tuple", lambda rngs: Heads(lambda *heads: heads, rngs), vectors)
live("dict", lambda rngs: Heads(lambda mean, scale: {"scale": scale, "mean": mean}, rngs), vectors)
live("dataclass", lambda rngs: Heads(Prediction, rngs), vectors)
live("args", Inputs, two_inputs, spread="args")
live("kwargs", Inputs, lambda: dict(zip("uv", two_inputs(), strict=True)), spread="kwargs")
live("dict input", Inputs, lambda: dict(zip("uv", two_inputs(), strict=True)), method="of_dict")
live("sow", Sows, vectors)
live("bfloat16", half, vectors, doubles=False, own=True)
live("dict of layers", Functional, vectors)
live("LoRA", lambda rngs: nnx.LoRALinear(3, 5, lora_rank=2, rngs=rngs), vectors)
live("a Linen module", bridged, vectors, own=True)
