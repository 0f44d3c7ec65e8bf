"""Residual networks in Flax Linen."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS

_Conv = partial(nn.Conv, use_bias=False)


def _norm(norm: str, train: bool, name: str) -> nn.Module:
    """Batch normalisation, or layer normalisation over channels."""
    if norm == "layer":
        return nn.LayerNorm(epsilon=1e-5, name=name)
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name)


class PostBlock(nn.Module):
    """Two convolutions, normalised after each, and a shortcut (He et al. 2016a), as ``hk.nets.ResNet`` has it."""

    channels: int
    stride: int
    project: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns activations with ``channels`` channels."""
        shortcut = x
        if self.project:
            shortcut = _Conv(self.channels, (1, 1), self.stride, name="shortcut_conv")(x)
            shortcut = _norm("batch", train, "shortcut_norm")(shortcut)
        x = _Conv(self.channels, (3, 3), self.stride, name="conv_0")(x)
        x = nn.relu(_norm("batch", train, "norm_0")(x))
        x = _Conv(self.channels, (3, 3), name="conv_1")(x)
        return nn.relu(_norm("batch", train, "norm_1")(x) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 with the stem for ImageNet (He et al. 2016a): ``stem, group_0_block_0, ..., head``."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        x = nn.relu(_norm("batch", train, "stem_norm")(_Conv(self.width, (7, 7), 2, name="stem")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for group in range(4):
            for block in range(2):
                first = group > 0 and block == 0
                name = f"group_{group}_block_{block}"
                x = PostBlock(self.width * 2**group, 1 + first, first, name=name)(x, train)
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


class PreBlock(nn.Module):
    """Two convolutions, normalised before each, and a shortcut (He et al. 2016b)."""

    channels: int
    stride: int
    project: bool
    activation: str
    norm: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns activations with ``channels`` channels."""
        act = ACTIVATIONS[self.activation]
        y = act(_norm(self.norm, train, "norm_0")(x))
        if self.project:
            x = _Conv(self.channels, (1, 1), self.stride, name="shortcut_conv")(y)
        y = _Conv(self.channels, (3, 3), self.stride, name="conv_0")(y)
        y = act(_norm(self.norm, train, "norm_1")(y))
        return x + _Conv(self.channels, (3, 3), name="conv_1")(y)


class WideResNet(nn.Module):
    """A wide residual network with the stem for CIFAR (Zagoruyko & Komodakis 2016)."""

    width: int
    depth: int
    activation: str
    norm: str
    classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        x = _Conv(16, (3, 3), name="stem")(x)
        for group in range(3):
            for block in range(self.depth):
                stride, name = 1 + (group > 0 and block == 0), f"group_{group}_block_{block}"
                x = PreBlock(self.width * 2**group, stride, block == 0, self.activation, self.norm, name=name)(x, train)
        x = ACTIVATIONS[self.activation](_norm(self.norm, train, "norm")(x))
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


def resnet18(spec: Spec, *, width: int = 64) -> ResNet18:
    """Returns ResNet-18 with ``width`` to ``8 width`` channels; 11,175,370 parameters for 8×8 grey images."""
    return ResNet18(width, spec.classes)


def wide_resnet(
    spec: Spec, *, width: int = 64, depth: int = 1, activation: str = "relu", norm: str = "batch"
) -> WideResNet:
    """Returns ``3 depth`` blocks of ``width`` to ``4 width`` channels; 1,198,522 parameters for 8×8 grey images."""
    return WideResNet(width, depth, activation, norm, spec.classes)
