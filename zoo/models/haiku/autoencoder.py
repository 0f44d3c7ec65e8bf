"""Autoencoder in Haiku."""

from __future__ import annotations

import math

import haiku as hk
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat
from .layers import Linear


def autoencoder(
    spec: Spec, *, width: int = 128, depth: int = 1, activation: str = "relu", code: int = 16
) -> hk.TransformedWithState:
    """Returns ``depth`` layers of ``width`` units on each side; 20,816 parameters for 8×8 grey images.

    An autoencoder (Hinton & Salakhutdinov 2006): ``encoder_0, ..., code, decoder_0, ..., head``.
    """

    def net(x: Array) -> dict[str, Array]:
        act, shape, y = ACTIVATIONS[activation], x.shape, flat(x)
        for i in range(depth):
            y = act(Linear(width, name=f"encoder_{i}")(y))
        coded = y = Linear(code, name="code")(y)
        for i in range(depth):
            y = act(Linear(width, name=f"decoder_{i}")(y))
        y = Linear(math.prod(shape[1:]), name="head")(y)
        return {"code": coded, "reconstruction": y.reshape(shape)}

    return hk.transform_with_state(net)
