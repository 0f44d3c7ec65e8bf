"""Networks in Haiku."""

from __future__ import annotations

from collections.abc import Sequence

import haiku as hk
import jax
from jax import Array

from nngp_plugins import ModelFn, from_haiku

from . import CNN_CHANNELS, CNN_WIDTH, MLP_WIDTHS

# These are Flax's defaults (LeCun normal, zero biases), so that frameworks differ only in their random streams.
_INIT = {"w_init": hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")}


def mlp(shape: Sequence[int], classes: int) -> ModelFn:
    """A ReLU multilayer perceptron on flattened inputs: ``dense_0, dense_1, ..., head``."""

    def net(x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(MLP_WIDTHS):
            x = jax.nn.relu(hk.Linear(width, name=f"dense_{i}", **_INIT)(x))
        return hk.Linear(classes, name="head", **_INIT)(x)

    return from_haiku(hk.transform(net))


def cnn(shape: Sequence[int], classes: int) -> ModelFn:
    """A ReLU convolutional network, mean-pooled over space: ``conv_0, conv_1, ..., dense, head``."""

    def net(x: Array) -> Array:
        for i, channels in enumerate(CNN_CHANNELS):
            x = jax.nn.relu(hk.Conv2D(channels, 3, name=f"conv_{i}", **_INIT)(x))
        x = x.mean(axis=(1, 2))
        x = jax.nn.relu(hk.Linear(CNN_WIDTH, name="dense", **_INIT)(x))
        return hk.Linear(classes, name="head", **_INIT)(x)

    return from_haiku(hk.transform(net))
