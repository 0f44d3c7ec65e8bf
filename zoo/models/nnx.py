"""Networks in Flax NNX."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flax import nnx
from jax import Array

from nngp_plugins import ModelFn, from_nnx

from . import CNN_CHANNELS, CNN_WIDTH, MLP_WIDTHS


class MLP(nnx.Module):
    """A ReLU multilayer perceptron on flattened inputs: ``dense_0, dense_1, ..., head``."""

    def __init__(self, input_shape: Sequence[int], widths: Sequence[int], classes: int, *, rngs: nnx.Rngs):
        self.depth = len(widths)
        size = math.prod(input_shape)
        for i, width in enumerate(widths):
            setattr(self, f"dense_{i}", nnx.Linear(size, width, rngs=rngs))
            size = width
        self.head = nnx.Linear(size, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of inputs ``(N, ...)``."""
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"dense_{i}")(x))
        return self.head(x)


class CNN(nnx.Module):
    """A ReLU convolutional network, mean-pooled over space: ``conv_0, conv_1, ..., dense, head``."""

    def __init__(self, inputs: int, channels: Sequence[int], width: int, classes: int, *, rngs: nnx.Rngs):
        self.depth = len(channels)
        for i, outputs in enumerate(channels):
            setattr(self, f"conv_{i}", nnx.Conv(inputs, outputs, (3, 3), rngs=rngs))
            inputs = outputs
        self.dense = nnx.Linear(inputs, width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"conv_{i}")(x))
        x = nnx.relu(self.dense(x.mean(axis=(1, 2))))
        return self.head(x)


def mlp(shape: Sequence[int], classes: int) -> ModelFn:
    """Returns the MLP for inputs of that shape."""
    return from_nnx(lambda rngs: MLP(shape, MLP_WIDTHS, classes, rngs=rngs))


def cnn(shape: Sequence[int], classes: int) -> ModelFn:
    """Returns the CNN for images of that shape."""
    return from_nnx(lambda rngs: CNN(shape[-1], CNN_CHANNELS, CNN_WIDTH, classes, rngs=rngs))
