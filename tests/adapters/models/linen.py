"""Flax Linen."""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

import nngp_plugins as nngp

from .table import images, initialised, normal, register, sequences, tokens, vectors

KEY = jax.random.key(3)


def linen(name, module, x, init=None, call=None, mixes=False, doubles=True, own=False, **adapter):
    def make():
        f = nngp.from_linen(module, **adapter)
        return initialised(f, x(), init or {}, call or {}, own, mixes=mixes, doubles=doubles)

    register(f"linen/{name}", make)


class Block(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, x):
        return x + nn.tanh(nn.Dense(self.width)(x))


class Trained(nn.Module):
    """Batch norm and dropout, by a ``train`` flag."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(2)(x)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(6, (3, 3), strides=2)(x)))
        x = nn.avg_pool(nn.ConvTranspose(4, (3, 3))(x), (2, 2), (2, 2))
        return nn.Dense(3)(nn.LayerNorm()(x.reshape(len(x), -1)))


class Setup(nn.Module):
    def setup(self):
        self.encoder, self.decoder = nn.Dense(4), nn.Dense(3)

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        return nn.tanh(self.encoder(x))

    def decode(self, z):
        return self.decoder(z)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            lambda block, x, _: (block(x), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return nn.Dense(2)(layers(Block(), x, None)[0])


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        heads = nn.vmap(
            nn.Dense, in_axes=None, out_axes=1, axis_size=3, variable_axes={"params": 0}, split_rngs={"params": True}
        )
        return heads(2)(Block()(x))


class Rematerialised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.remat(Block)()(x))


class Tied(nn.Module):
    """One block twice, and an embedding that is its own decoder."""

    @nn.compact
    def __call__(self, x):
        embed, block = nn.Embed(11, 3), Block()
        return embed.attend(block(block(embed(x))))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(4))(x)
        x = nn.Bidirectional(nn.RNN(nn.GRUCell(3)), nn.RNN(nn.SimpleCell(3)))(x)
        return nn.Dense(2)(x[:, -1])


class Transformer(nn.Module):
    """Attention with a causal and a padding mask, and dropout."""

    @nn.compact
    def __call__(self, x, mask, deterministic=True):
        causal = nn.combine_masks(nn.make_causal_mask(mask), nn.make_attention_mask(mask, mask))
        h = nn.Embed(11, 8)(x) + self.param("position", nn.initializers.normal(), (x.shape[1], 8))
        for _ in range(2):
            attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.2, deterministic=deterministic)
            h = h + attention(nn.LayerNorm()(h), mask=causal)
            h = h + nn.Dropout(0.2, deterministic=deterministic)(nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(h)))))
        return nn.Dense(11)(h)


class Tuple(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = Block()(x)
        return nn.Dense(2)(h), (h, nn.softmax(h))


@flax.struct.dataclass
class Prediction:
    mean: Any
    scale: Any


class Dataclass(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Prediction(nn.Dense(2)(x), nn.softplus(nn.Dense(2)(x)))


class Dict(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"logits": nn.Dense(2)(x["image"]), "value": nn.Dense(1)(x["image"] * x["scale"][:, None])[:, 0]}


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, u, v):
        return nn.Dense(2)(nn.Dense(3)(u) * nn.Dense(3)(v))


class Sows(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4)(x)
        self.sow("intermediates", "relu", nn.relu(h))
        return nn.Dense(2)(nn.relu(h))


class Half(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, dtype=jnp.bfloat16)(nn.relu(nn.Dense(8, dtype=jnp.bfloat16)(x)))


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, update_stats=False):
        x = nn.SpectralNorm(nn.Dense(4))(x, update_stats=update_stats)
        return nn.WeightNorm(nn.DenseGeneral((2, 2)))(nn.RMSNorm()(x))


class Perturbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(self.perturb("hidden", nn.Dense(4)(x)))


def image_dict():
    return {"image": vectors(), "scale": normal(4, seed=1)}


def two_inputs():
    return vectors(), normal(4, 2, seed=1)


MASK = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], bool)

linen("dense", nn.Dense(5), vectors)
linen("sequential", nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), vectors)
linen("convolutions", ConvNet(), images)
linen("setup", Setup(), vectors)
linen("method", Setup(), vectors, method="encode")
linen("function of the module", Setup(), vectors, method=lambda module, x: module.decode(module.encode(x)) + 1)
linen("evaluation mode", Trained(), vectors)
linen("training mode", Trained(), vectors, call={"rng": KEY}, mixes=True, train=True, mutable=["batch_stats"])
linen("flag in the call", Trained(), vectors, call={"train": False})
linen("scan", Scanned(), vectors)
linen("vmap", Ensemble(), vectors)
linen("remat", Rematerialised(), vectors)
linen("shared modules", Tied(), tokens)
linen("recurrent", Recurrent(), sequences, doubles=False)
linen("transformer", Transformer(), tokens, init={"mask": MASK}, call={"mask": MASK})
linen(
    "transformer with dropout",
    Transformer(),
    tokens,
    init={"mask": MASK},
    call={"mask": MASK, "rng": KEY},
    mixes=True,
    deterministic=False,
)
linen("tuple", Tuple(), vectors)
linen("dataclass", Dataclass(), vectors)
linen("dicts", Dict(), image_dict)
linen("args", TwoInputs(), two_inputs, spread="args")
linen("kwargs", TwoInputs(), lambda: dict(zip("uv", two_inputs(), strict=True)), spread="kwargs")
linen("sow", Sows(), vectors)
linen("bfloat16", Half(), vectors, doubles=False, own=True)
linen("spectral norm", Normalised(), vectors)
linen("perturb", Perturbed(), vectors)
linen("partial", nn.Sequential([partial(nn.Dense, 4)(), nn.Dense(2)]), vectors)
