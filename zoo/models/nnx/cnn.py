"""Convolutional networks in Flax NNX."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat


class CNN(nnx.Module):
    """An all-convolutional network, mean-pooled (Springenberg et al. 2015): ``conv_0, conv_1, ..., head``."""

    def __init__(self, spec: Spec, width: int, depth: int, activation: str, *, rngs: nnx.Rngs):
        self.depth, self.activation = depth, activation
        *space, channels = spec.shape
        for i in range(depth):
            kernel, stride = (3,) * len(space), 1 if i == 0 else 2
            setattr(self, f"conv_{i}", nnx.Conv(channels, width, kernel, strides=stride, rngs=rngs))
            channels = width
        self.head = nnx.Linear(channels, spec.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)`` or sequences ``(N, T, C)``."""
        for i in range(self.depth):
            x = ACTIVATIONS[self.activation](getattr(self, f"conv_{i}")(x))
        return self.head(x.mean(axis=range(1, x.ndim - 1)))


class LeNet(nnx.Module):
    """LeNet-5 (LeCun et al. 1998), padded so that small images work: ``conv_0, conv_1, dense_0, dense_1, head``."""

    def __init__(self, spec: Spec, width: int, activation: str, *, rngs: nnx.Rngs):
        self.activation = activation
        h, w, channels = spec.shape
        second = width * 8 // 3
        self.conv_0 = nnx.Conv(channels, width, (5, 5), rngs=rngs)
        self.conv_1 = nnx.Conv(width, second, (5, 5), rngs=rngs)
        self.dense_0 = nnx.Linear((h // 2 // 2) * (w // 2 // 2) * second, 20 * width, rngs=rngs)
        self.dense_1 = nnx.Linear(20 * width, 14 * width, rngs=rngs)
        self.head = nnx.Linear(14 * width, spec.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        act = ACTIVATIONS[self.activation]
        for conv in (self.conv_0, self.conv_1):
            x = nnx.avg_pool(act(conv(x)), (2, 2), (2, 2))
        return self.head(act(self.dense_1(act(self.dense_0(flat(x))))))


def cnn(spec: Spec, *, width: int = 64, depth: int = 3, activation: str = "relu") -> Callable[[nnx.Rngs], CNN]:
    """Returns ``depth`` convolutions of ``width`` channels, all but the first with stride 2; 75,146 parameters."""
    return lambda rngs: CNN(spec, width, depth, activation, rngs=rngs)


def lenet(spec: Spec, *, width: int = 6, activation: str = "tanh") -> Callable[[nnx.Rngs], LeNet]:
    """Returns LeNet, ``width`` being the channels of the first convolution; 21,386 parameters for 8×8 grey images."""
    return lambda rngs: LeNet(spec, width, activation, rngs=rngs)
