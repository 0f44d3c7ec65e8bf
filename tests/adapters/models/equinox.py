"""Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp

import nngp_plugins as nngp

from .table import Model, initialised, normal, register, sequences, tokens, vectors

KEY = jax.random.key(3)


def equinox(name, make_model, x, call=None, mixes=False, doubles=True, inference=True, **adapter):
    def make():
        model, state = eqx.nn.make_with_state(make_model)(key=jax.random.key(0))
        model = eqx.nn.inference_mode(model) if inference else model
        f = nngp.from_equinox(model, **adapter)
        kwargs = {"state": state} if jax.tree.leaves(state) else {}
        return Model(f, f.split(model)[0], x(), kwargs | (call or {}), live=model, mixes=mixes, doubles=doubles)

    register(f"equinox/{name}", make)


class Trained(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, *, key):
        keys = jax.random.split(key)
        self.hidden, self.head = eqx.nn.Linear(3, 6, key=keys[0]), eqx.nn.Linear(6, 2, key=keys[1])
        self.norm, self.dropout = eqx.nn.BatchNorm(6, "batch", mode="batch"), eqx.nn.Dropout(0.3)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.hidden(x), state)
        return self.head(self.dropout(jax.nn.relu(x), key=key)), state


class Convolutions(eqx.Module):
    layers: list
    head: eqx.nn.Linear

    def __init__(self, *, key):
        keys = jax.random.split(key, 3)
        self.layers = [eqx.nn.Conv2d(3, 6, 3, 2, key=keys[0]), eqx.nn.GroupNorm(2, 6), eqx.nn.AvgPool2d(2)]
        self.head = eqx.nn.Linear(24, 3, key=keys[1])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.ravel())


class Recurrent(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, *, key):
        self.cell, self.head = eqx.nn.LSTMCell(3, 4, key=key), eqx.nn.Linear(4, 2, key=key)

    def __call__(self, x):
        start = jnp.zeros(4, x.dtype), jnp.zeros(4, x.dtype)
        (h, _), _ = jax.lax.scan(lambda carry, x: (self.cell(x, carry), None), start, x)
        return self.head(h)


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, *, key):
        keys = jax.random.split(key, 3)
        self.embed, self.head = eqx.nn.Embedding(11, 8, key=keys[0]), eqx.nn.Linear(8, 11, key=keys[1])
        self.attention = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.2, key=keys[2])
        self.norm = eqx.nn.LayerNorm((5, 8))

    def __call__(self, x, *, key=None):
        h = jax.vmap(self.embed)(x)
        norm = self.norm(h)
        h = h + self.attention(norm, norm, norm, mask=jnp.tril(jnp.ones((5, 5), bool)), key=key)
        return jax.vmap(self.head)(h)


class Batched(eqx.Module):
    weight: jax.Array
    count: jax.Array
    power: int = eqx.field(static=True)

    def __init__(self, *, key):
        self.weight, self.count, self.power = jax.random.normal(key, (3, 2)), jnp.arange(2), 2

    def __call__(self, x):
        return (x @ self.weight) ** self.power + self.count

    def linear(self, u, v):
        return u @ self.weight + v


def mlp(*, key):
    return eqx.nn.MLP(3, 2, 8, 2, key=key)


equinox("linear", lambda *, key: eqx.nn.Linear(3, 5, key=key), vectors)
equinox("MLP", mlp, vectors)
register("equinox/factory", lambda: initialised(nngp.from_equinox(mlp), vectors(), {}, {}))
register(
    "equinox/factory with state",
    lambda: initialised(nngp.from_equinox(Trained), vectors(), {}, {"rng": KEY}, mixes=True, doubles=False),
)
equinox("convolutions", Convolutions, lambda: normal(4, 3, 8, 8))
equinox("evaluation mode", Trained, vectors)
equinox("training mode", Trained, vectors, call={"rng": KEY}, mixes=True, doubles=False, inference=False)
equinox("recurrent", Recurrent, sequences)
equinox("transformer", Transformer, tokens)
equinox("transformer with dropout", Transformer, tokens, call={"rng": KEY}, mixes=True, inference=False)
equinox("batched", Batched, vectors, batched=True)
equinox("method and args", Batched, lambda: (vectors(), normal(4, 2)), batched=True, method="linear", spread="args")
equinox("kwargs", Batched, lambda: {"u": vectors(), "v": normal(4, 2)}, method="linear", spread="kwargs")
