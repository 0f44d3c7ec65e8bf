"""Convolutional networks in Flax Linen."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat


class CNN(nn.Module):
    """An all-convolutional network, mean-pooled (Springenberg et al. 2015): ``conv_0, conv_1, ..., head``."""

    width: int
    depth: int
    activation: str
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)`` or sequences ``(N, T, C)``."""
        axes = x.ndim - 2
        for i in range(self.depth):
            conv = nn.Conv(self.width, (3,) * axes, strides=1 if i == 0 else 2, name=f"conv_{i}")
            x = ACTIVATIONS[self.activation](conv(x))
        return nn.Dense(self.classes, name="head")(x.mean(axis=range(1, 1 + axes)))


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998), padded so that small images work: ``conv_0, conv_1, dense_0, dense_1, head``."""

    width: int
    activation: str
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        act = ACTIVATIONS[self.activation]
        for i, channels in enumerate((self.width, self.width * 8 // 3)):
            x = act(nn.Conv(channels, (5, 5), name=f"conv_{i}")(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = flat(x)
        for i, width in enumerate((20 * self.width, 14 * self.width)):
            x = act(nn.Dense(width, name=f"dense_{i}")(x))
        return nn.Dense(self.classes, name="head")(x)


def cnn(spec: Spec, *, width: int = 64, depth: int = 3, activation: str = "relu") -> CNN:
    """Returns ``depth`` convolutions of ``width`` channels, all but the first with stride 2; 75,146 parameters."""
    return CNN(width, depth, activation, spec.classes)


def lenet(spec: Spec, *, width: int = 6, activation: str = "tanh") -> LeNet:
    """Returns LeNet, ``width`` being the channels of the first convolution; 21,386 parameters for 8×8 grey images."""
    return LeNet(width, activation, spec.classes)
