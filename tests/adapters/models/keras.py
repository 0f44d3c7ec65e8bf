"""Keras 3."""

import jax
import keras

import nngp_plugins as nngp

from .table import Model, images, normal, register, sequences, tokens, vectors

KEY = jax.random.key(3)
layers = keras.layers


def keras_model(name, make_model, x, call=None, mixes=False, doubles=False, **adapter):
    def make():
        keras.utils.set_random_seed(0)
        model, inputs = make_model(), x()
        if not model.built:
            model(inputs)
        f = nngp.from_keras(model, **adapter)
        params, state = f.split(model)
        return Model(f, params, inputs, {"state": state, **(call or {})}, live=model, mixes=mixes, doubles=doubles)

    register(f"keras/{name}", make)


def sequential(*parts, shape=(3,), **options):
    return lambda: keras.Sequential([keras.Input(shape, **options), *parts])


def trained():
    parts = layers.Dense(6), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.3), layers.Dense(2)
    return keras.Sequential([keras.Input((3,)), *parts])


def functional():
    x = keras.Input((8, 8, 3))
    h = layers.Conv2D(4, 3, activation="relu", name="stem")(x)
    h = h + layers.Conv2D(4, 3, padding="same", name="residual")(h)
    h = layers.GlobalAveragePooling2D()(h)
    return keras.Model(x, {"logits": layers.Dense(3, name="logits")(h), "features": h})


def transformer():
    x = keras.Input((5,), dtype="int32")
    h = layers.Embedding(11, 8)(x)
    norm = layers.LayerNormalization()(h)
    h = h + layers.MultiHeadAttention(2, 4, dropout=0.2)(norm, norm, use_causal_mask=True)
    return keras.Model(x, layers.Dense(11)(layers.Dropout(0.2)(h)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(3, activation="tanh", name=f"block_{i}") for i in range(2)]
        self.head = keras.Sequential([layers.Dense(2, name="inner")], name="head")

    def call(self, x, training=False):
        for block in self.blocks:
            x = x + block(block(x))
        return self.head(x)


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(3, name="first"), layers.Dense(3, name="second")

    def call(self, x):
        return self.first(x["u"]) * self.second(x["v"])


keras_model("sequential", sequential(layers.Dense(8, "relu"), layers.Dense(2)), vectors)
keras_model("evaluation mode", trained, vectors)
keras_model("training mode", trained, vectors, call={"rng": KEY}, mixes=True, training=True)
keras_model("functional", functional, images)
keras_model("recurrent", sequential(layers.LSTM(4), layers.Dense(2), shape=(5, 3)), sequences)
keras_model("transformer", transformer, tokens)
keras_model("transformer with dropout", transformer, tokens, call={"rng": KEY}, mixes=True, training=True)
keras_model("subclassed", Subclassed, vectors)
keras_model("dict input", TwoInputs, lambda: {"u": vectors(), "v": normal(4, 2)})
