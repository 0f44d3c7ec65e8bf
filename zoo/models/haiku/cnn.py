"""Convolutional networks in Haiku."""

from __future__ import annotations

import haiku as hk
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat
from .layers import Conv, Linear


def cnn(spec: Spec, *, width: int = 64, depth: int = 3, activation: str = "relu") -> hk.TransformedWithState:
    """Returns ``depth`` convolutions of ``width`` channels, all but the first with stride 2; 75,146 parameters.

    An all-convolutional network, mean-pooled (Springenberg et al. 2015): ``conv_0, conv_1, ..., head``.
    """

    def net(x: Array) -> Array:
        axes = x.ndim - 2
        for i in range(depth):
            conv = Conv(axes, width, 3, stride=1 if i == 0 else 2, name=f"conv_{i}")
            x = ACTIVATIONS[activation](conv(x))
        return Linear(spec.classes, name="head")(x.mean(axis=range(1, 1 + axes)))

    return hk.transform_with_state(net)


def lenet(spec: Spec, *, width: int = 6, activation: str = "tanh") -> hk.TransformedWithState:
    """Returns LeNet, ``width`` being the channels of the first convolution; 21,386 parameters for 8×8 grey images.

    LeNet-5 (LeCun et al. 1998), padded so that small images work: ``conv_0, conv_1, dense_0, dense_1, head``.
    """

    def net(x: Array) -> Array:
        act = ACTIVATIONS[activation]
        for i, channels in enumerate((width, width * 8 // 3)):
            x = hk.avg_pool(act(Conv(2, channels, 5, name=f"conv_{i}")(x)), (2, 2, 1), (2, 2, 1), "VALID")
        x = flat(x)
        for i, size in enumerate((20 * width, 14 * width)):
            x = act(Linear(size, name=f"dense_{i}")(x))
        return Linear(spec.classes, name="head")(x)

    return hk.transform_with_state(net)
