"""Residual networks in Flax NNX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flax import nnx
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS

_Conv = partial(nnx.Conv, use_bias=False)


def _norm(norm: str, channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm | nnx.LayerNorm:
    """Batch normalisation, or layer normalisation over channels."""
    if norm == "layer":
        return nnx.LayerNorm(channels, epsilon=1e-5, rngs=rngs)
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)


def _normalised(norm: nnx.BatchNorm | nnx.LayerNorm, x: Array) -> Array:
    """Returns normalised activations in their dtype, where running statistics have another."""
    return norm(x).astype(x.dtype)


class PostBlock(nnx.Module):
    """Two convolutions, normalised after each, and a shortcut (He et al. 2016a), as ``hk.nets.ResNet`` has it."""

    def __init__(self, inputs: int, channels: int, stride: int, project: bool, *, rngs: nnx.Rngs):
        self.project = project
        if project:
            self.shortcut_conv = _Conv(inputs, channels, (1, 1), stride, rngs=rngs)
            self.shortcut_norm = _norm("batch", channels, rngs)
        self.conv_0 = _Conv(inputs, channels, (3, 3), stride, rngs=rngs)
        self.norm_0 = _norm("batch", channels, rngs)
        self.conv_1 = _Conv(channels, channels, (3, 3), rngs=rngs)
        self.norm_1 = _norm("batch", channels, rngs)

    def __call__(self, x: Array) -> Array:
        """Returns activations with ``channels`` channels."""
        shortcut = _normalised(self.shortcut_norm, self.shortcut_conv(x)) if self.project else x
        x = nnx.relu(_normalised(self.norm_0, self.conv_0(x)))
        return nnx.relu(_normalised(self.norm_1, self.conv_1(x)) + shortcut)


class ResNet18(nnx.Module):
    """ResNet-18 with the stem for ImageNet (He et al. 2016a): ``stem, group_0_block_0, ..., head``."""

    def __init__(self, spec: Spec, width: int, *, rngs: nnx.Rngs):
        self.stem = _Conv(spec.shape[-1], width, (7, 7), 2, rngs=rngs)
        self.stem_norm = _norm("batch", width, rngs)
        inputs = width
        for group in range(4):
            for block in range(2):
                first, channels = group > 0 and block == 0, width * 2**group
                layer = PostBlock(inputs, channels, 1 + first, first, rngs=rngs)
                setattr(self, f"group_{group}_block_{block}", layer)
                inputs = channels
        self.head = nnx.Linear(inputs, spec.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        x = nnx.relu(_normalised(self.stem_norm, self.stem(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), "SAME")
        for group in range(4):
            for block in range(2):
                x = getattr(self, f"group_{group}_block_{block}")(x)
        return self.head(x.mean(axis=(1, 2)))


class PreBlock(nnx.Module):
    """Two convolutions, normalised before each, and a shortcut (He et al. 2016b)."""

    def __init__(
        self, inputs: int, channels: int, stride: int, project: bool, activation: str, norm: str, *, rngs: nnx.Rngs
    ):
        self.activation, self.project = activation, project
        self.norm_0 = _norm(norm, inputs, rngs)
        if self.project:
            self.shortcut_conv = _Conv(inputs, channels, (1, 1), stride, rngs=rngs)
        self.conv_0 = _Conv(inputs, channels, (3, 3), stride, rngs=rngs)
        self.norm_1 = _norm(norm, channels, rngs)
        self.conv_1 = _Conv(channels, channels, (3, 3), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns activations with ``channels`` channels."""
        act = ACTIVATIONS[self.activation]
        y = act(_normalised(self.norm_0, x))
        if self.project:
            x = self.shortcut_conv(y)
        return x + self.conv_1(act(_normalised(self.norm_1, self.conv_0(y))))


class WideResNet(nnx.Module):
    """A wide residual network with the stem for CIFAR (Zagoruyko & Komodakis 2016)."""

    def __init__(self, spec: Spec, width: int, depth: int, activation: str, norm: str, *, rngs: nnx.Rngs):
        self.depth, self.activation = depth, activation
        self.stem = _Conv(spec.shape[-1], 16, (3, 3), rngs=rngs)
        inputs = 16
        for group in range(3):
            for block in range(depth):
                stride, channels = 1 + (group > 0 and block == 0), width * 2**group
                layer = PreBlock(inputs, channels, stride, block == 0, activation, norm, rngs=rngs)
                setattr(self, f"group_{group}_block_{block}", layer)
                inputs = channels
        self.norm = _norm(norm, inputs, rngs)
        self.head = nnx.Linear(inputs, spec.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        x = self.stem(x)
        for group in range(3):
            for block in range(self.depth):
                x = getattr(self, f"group_{group}_block_{block}")(x)
        x = ACTIVATIONS[self.activation](_normalised(self.norm, x))
        return self.head(x.mean(axis=(1, 2)))


def resnet18(spec: Spec, *, width: int = 64) -> Callable[[nnx.Rngs], ResNet18]:
    """Returns ResNet-18 with ``width`` to ``8 width`` channels; 11,175,370 parameters for 8×8 grey images."""
    return lambda rngs: ResNet18(spec, width, rngs=rngs)


def wide_resnet(
    spec: Spec, *, width: int = 64, depth: int = 1, activation: str = "relu", norm: str = "batch"
) -> Callable[[nnx.Rngs], WideResNet]:
    """Returns ``3 depth`` blocks of ``width`` to ``4 width`` channels; 1,198,522 parameters for 8×8 grey images."""
    return lambda rngs: WideResNet(spec, width, depth, activation, norm, rngs=rngs)
