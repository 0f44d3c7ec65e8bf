"""Haiku: its own networks, and all kinds of transformed functions."""

from dataclasses import dataclass
from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp

import nngp_plugins as nngp

from .table import images, initialised, normal, register, sequences, tokens, vectors

KEY = jax.random.key(3)


def haiku(name, transformed, x, init=None, call=None, mixes=False, doubles=True, smooth=True, own=False, **adapter):
    def make():
        f = nngp.from_haiku(transformed, **adapter)
        return initialised(f, x(), init or {}, call or {}, own, mixes=mixes, doubles=doubles, smooth=smooth)

    register(f"haiku/{name}", make)


def mlp(x):
    return hk.nets.MLP([8, 2])(x)


def trained(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(6)(x), is_training)
    x = jax.nn.relu(x)
    return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.3, x) if is_training else x)


def network(make, outputs=lambda y: y):
    """One of ``hk.nets`` that takes ``is_training``."""
    return hk.transform_with_state(lambda x, is_training: outputs(make()(x, is_training)))


def dropped(x):
    return hk.nets.MLP([8, 2])(x, 0.3, hk.next_rng_key())


def resnet(make):
    # its head is zero at first
    return make(num_classes=5, logits_config={"w_init": hk.initializers.RandomNormal(0.1)})


def multi():
    encoder, decoder = hk.Linear(4, name="encoder"), hk.Linear(3, name="decoder")

    def encode(x):
        return jnp.tanh(encoder(x))

    def decode(x):
        return decoder(encode(x))

    return decode, {"encode": encode, "decode": decode}


def multi_with_state():
    norm = hk.BatchNorm(True, True, 0.9)

    def normalise(x, is_training=True):
        return norm(x, is_training)

    return normalise, {"normalise": normalise}


def lstm(x):
    core = hk.LSTM(4)
    outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
    return hk.Linear(2)(outputs[:, -1])


def deep(x):
    core = hk.deep_rnn_with_skip_connections([hk.GRU(4), hk.VanillaRNN(3)])
    state = core.initial_state(len(x))
    for step in range(x.shape[1]):
        y, state = core(x[:, step], state)
    return y


def transformer(x, mask, is_training=False):
    h = hk.Embed(11, 8)(x) + hk.get_parameter("position", (5, 8), init=hk.initializers.RandomNormal(0.1))
    attend = mask[:, None, :, None] & mask[:, None, None, :] & jnp.tril(jnp.ones((5, 5), bool))
    norm = hk.LayerNorm(-1, True, True)(h)
    attended = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(), model_size=8)(
        norm, norm, norm, mask=attend
    )
    h = h + (hk.dropout(hk.next_rng_key(), 0.2, attended) if is_training else attended)
    return hk.Linear(11)(h)


def convolutional_lstm(x):
    core = hk.Conv2DLSTM((8, 8), 4, 3)
    y, _ = core(x, core.initial_state(len(x)))
    return y


def convolutions(x):
    x = jax.nn.relu(hk.GroupNorm(2)(hk.Conv2D(6, 3, stride=2)(x)))
    x = hk.AvgPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(hk.Conv2DTranspose(4, 3)(x))
    return hk.Linear(3)(hk.LayerNorm(-1, True, True)(hk.Flatten()(x)))


def shared(x):
    block = hk.Linear(3, name="block")
    return block(jnp.tanh(block(x)))


def stacked(x):
    return hk.Linear(2)(hk.experimental.layer_stack(5)(lambda x: jnp.tanh(hk.Linear(3)(x)))(x))


def lifted(x):
    hidden = hk.Linear(3, name="hidden")
    x = hk.remat(hidden)(x)
    x, _ = hk.scan(lambda x, _: (jnp.tanh(hidden(x)), None), x, None, length=2)
    return hk.vmap(hidden, split_rng=False)(x)


def half(x):
    return hk.Linear(2)(jax.nn.relu(hk.Linear(8)(x.astype(jnp.bfloat16))))


def heads(x):
    h = hk.Linear(3, name="body")(x)
    return {"mean": hk.Linear(2, name="mean")(h), "more": (h, jax.nn.softplus(hk.Linear(1, name="scale")(h)))}


@jax.tree_util.register_dataclass
@dataclass
class Prediction:
    mean: jax.Array
    scale: jax.Array


def two(u, v):
    return hk.Linear(3, name="u")(u) * hk.Linear(3, name="v")(v)


def quantized(make):
    return hk.transform_with_state(lambda x, is_training: make()(hk.Linear(4)(x), is_training)["quantize"])


def two_inputs():
    return vectors(), normal(4, 2, seed=1)


MASK = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
TRAIN = {"is_training": True}

haiku("transform", hk.transform(mlp), vectors)
haiku("without apply rng", hk.without_apply_rng(hk.transform(mlp)), vectors)
haiku("transform with state", hk.transform_with_state(trained), vectors, init=TRAIN, is_training=False)
haiku(
    "with state, without apply rng",
    hk.without_apply_rng(hk.transform_with_state(trained)),
    vectors,
    init=TRAIN,
    is_training=False,
)
haiku("training mode", hk.transform_with_state(trained), vectors, call={"rng": KEY}, mixes=True, is_training=True)
haiku("multi transform", hk.multi_transform(multi), vectors, method="decode")
haiku("multi, without apply rng", hk.without_apply_rng(hk.multi_transform(multi)), vectors, method="encode")
haiku(
    "multi transform with state",
    hk.multi_transform_with_state(multi_with_state),
    vectors,
    init=TRAIN,
    method="normalise",
    is_training=False,
)
haiku(
    "multi with state, without apply rng",
    hk.without_apply_rng(hk.multi_transform_with_state(multi_with_state)),
    vectors,
    init=TRAIN,
    method="normalise",
    is_training=False,
)
haiku("nets.MLP with dropout", hk.transform(dropped), vectors, call={"rng": KEY}, mixes=True)
haiku("nets.ResNet18", network(partial(resnet, hk.nets.ResNet18)), images, init=TRAIN, smooth=False, is_training=False)
small = partial(hk.nets.ResNet, (1, 1, 1, 1), channels_per_group=(8, 8, 16, 16), bottleneck=False)
haiku("nets.ResNet", network(partial(resnet, small)), images, init=TRAIN, smooth=False, is_training=False)
mobile = network(lambda: hk.nets.MobileNetV1((1, 2), (8, 16), 5))
haiku("nets.MobileNetV1", mobile, images, init=TRAIN, smooth=False, is_training=False)
quantizer, moving = partial(hk.nets.VectorQuantizer, 4, 6, 0.25), partial(hk.nets.VectorQuantizerEMA, 4, 6, 0.25, 0.9)
haiku("nets.VectorQuantizer", quantized(quantizer), vectors, smooth=False, is_training=False)
haiku("nets.VectorQuantizerEMA", quantized(moving), vectors, smooth=False, is_training=False)
haiku("dynamic_unroll", hk.transform(lstm), sequences)
haiku("deep_rnn_with_skip_connections", hk.transform(deep), sequences)
haiku("convolutional LSTM", hk.transform(convolutional_lstm), images)
haiku("transformer", hk.transform(transformer), tokens, init={"mask": MASK}, call={"mask": MASK})
haiku(
    "transformer with dropout",
    hk.transform(transformer),
    tokens,
    init={"mask": MASK},
    call={"mask": MASK, "rng": KEY},
    mixes=True,
    is_training=True,
)
haiku("convolutions", hk.transform(convolutions), images)
haiku("shared modules", hk.transform(shared), vectors)
haiku("layer_stack", hk.transform(stacked), vectors)
haiku("remat, scan and vmap", hk.transform(lifted), vectors)
haiku("bfloat16", hk.transform(half), vectors, doubles=False, own=True)
haiku("dict and tuple", hk.transform(heads), vectors)
haiku("dataclass", hk.transform(lambda x: Prediction(heads(x)["mean"], heads(x)["more"][1])), vectors)
haiku("args", hk.transform(two), two_inputs, spread="args")
haiku("kwargs", hk.transform(two), lambda: dict(zip("uv", two_inputs(), strict=True)), spread="kwargs")
