"""Autoencoder in Flax Linen."""

from __future__ import annotations

import math

import flax.linen as nn
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat


class Autoencoder(nn.Module):
    """An autoencoder (Hinton & Salakhutdinov 2006): ``encoder_0, ..., code, decoder_0, ..., head``."""

    width: int
    depth: int
    activation: str
    code: int

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """Returns ``{"code": (N, code), "reconstruction": (N, ...)}`` of inputs ``(N, ...)``."""
        act, shape, y = ACTIVATIONS[self.activation], x.shape, flat(x)
        for i in range(self.depth):
            y = act(nn.Dense(self.width, name=f"encoder_{i}")(y))
        code = y = nn.Dense(self.code, name="code")(y)
        for i in range(self.depth):
            y = act(nn.Dense(self.width, name=f"decoder_{i}")(y))
        y = nn.Dense(math.prod(shape[1:]), name="head")(y)
        return {"code": code, "reconstruction": y.reshape(shape)}


def autoencoder(
    spec: Spec, *, width: int = 128, depth: int = 1, activation: str = "relu", code: int = 16
) -> Autoencoder:
    """Returns ``depth`` layers of ``width`` units on each side; 20,816 parameters for 8×8 grey images."""
    return Autoencoder(width, depth, activation, code)
