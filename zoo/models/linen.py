"""Networks in Flax Linen."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jax import Array

from nngp_plugins import ModelFn, from_linen

from . import CNN_CHANNELS, CNN_WIDTH, MLP_WIDTHS


class MLP(nn.Module):
    """A ReLU multilayer perceptron on flattened inputs: ``dense_0, dense_1, ..., head``."""

    widths: Sequence[int]
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of inputs ``(N, ...)``."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"dense_{i}")(x))
        return nn.Dense(self.classes, name="head")(x)


class CNN(nn.Module):
    """A ReLU convolutional network, mean-pooled over space: ``conv_0, conv_1, ..., dense, head``."""

    channels: Sequence[int]
    width: int
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        for i, channels in enumerate(self.channels):
            x = nn.relu(nn.Conv(channels, (3, 3), name=f"conv_{i}")(x))
        x = x.mean(axis=(1, 2))
        x = nn.relu(nn.Dense(self.width, name="dense")(x))
        return nn.Dense(self.classes, name="head")(x)


def mlp(shape: Sequence[int], classes: int) -> ModelFn:
    """Returns the MLP for inputs of that shape."""
    return from_linen(MLP(MLP_WIDTHS, classes))


def cnn(shape: Sequence[int], classes: int) -> ModelFn:
    """Returns the CNN for images of that shape."""
    return from_linen(CNN(CNN_CHANNELS, CNN_WIDTH, classes))
