"""Residual networks in Haiku."""

from __future__ import annotations

from typing import Any

import haiku as hk
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS
from .layers import LECUN, BatchNorm, Conv, LayerNorm, Linear


def resnet18(spec: Spec, *, width: int = 64) -> hk.TransformedWithState:
    """Returns ``hk.nets.ResNet`` as ResNet-18, with ``width`` to ``8 width`` channels; 11,175,370 parameters.

    Its head starts as LeCun normal, because a head of zeros, as Haiku has it, has no kernel.
    """

    def net(x: Array, is_training: bool = False) -> Array:
        config: dict[str, Any] = dict(hk.nets.ResNet.CONFIGS[18])
        config |= {"channels_per_group": [width * 2**group for group in range(4)], "resnet_v2": False}
        config |= {"initial_conv_config": {"output_channels": width}, "logits_config": {"w_init": LECUN}}
        config |= {"bn_config": {"decay_rate": 0.9, "eps": 1e-5}}
        return hk.nets.ResNet(num_classes=spec.classes, name="resnet", **config)(x, is_training)

    return hk.transform_with_state(net)


class PreBlock(hk.Module):
    """Two convolutions, normalised before each, and a shortcut (He et al. 2016b)."""

    def __init__(self, channels: int, stride: int, project: bool, activation: str, norm: str, name: str):
        super().__init__(name)
        self.channels, self.stride, self.project = channels, stride, project
        self.activation, self.norm = activation, norm

    def __call__(self, x: Array, is_training: bool) -> Array:
        """Returns activations with ``channels`` channels."""
        act = ACTIVATIONS[self.activation]
        y = act(normalised(x, self.norm, is_training, "norm_0"))
        if self.project:
            x = Conv(2, self.channels, 1, self.stride, with_bias=False, name="shortcut_conv")(y)
        y = Conv(2, self.channels, 3, self.stride, with_bias=False, name="conv_0")(y)
        y = act(normalised(y, self.norm, is_training, "norm_1"))
        return x + Conv(2, self.channels, 3, with_bias=False, name="conv_1")(y)


def normalised(x: Array, norm: str, is_training: bool, name: str) -> Array:
    """Returns activations after batch normalisation, or layer normalisation over channels."""
    return LayerNorm(name=name)(x) if norm == "layer" else BatchNorm(name=name)(x, is_training)


def wide_resnet(
    spec: Spec, *, width: int = 64, depth: int = 1, activation: str = "relu", norm: str = "batch"
) -> hk.TransformedWithState:
    """Returns ``3 depth`` blocks of ``width`` to ``4 width`` channels; 1,198,522 parameters for 8×8 grey images.

    A wide residual network with the stem for CIFAR (Zagoruyko & Komodakis 2016).
    """

    def net(x: Array, is_training: bool = False) -> Array:
        x = Conv(2, 16, 3, with_bias=False, name="stem")(x)
        for group in range(3):
            for block in range(depth):
                stride, name = 1 + (group > 0 and block == 0), f"group_{group}_block_{block}"
                x = PreBlock(width * 2**group, stride, block == 0, activation, norm, name)(x, is_training)
        x = ACTIVATIONS[activation](normalised(x, norm, is_training, "norm"))
        return Linear(spec.classes, name="head")(x.mean(axis=(1, 2)))

    return hk.transform_with_state(net)
