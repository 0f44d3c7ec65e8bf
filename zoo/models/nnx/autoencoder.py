"""Autoencoder in Flax NNX."""

from __future__ import annotations

import math
from collections.abc import Callable

from flax import nnx
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat


class Autoencoder(nnx.Module):
    """An autoencoder (Hinton & Salakhutdinov 2006): ``encoder_0, ..., code, decoder_0, ..., head``."""

    def __init__(self, spec: Spec, width: int, depth: int, activation: str, code: int, *, rngs: nnx.Rngs):
        self.depth, self.activation = depth, activation
        inputs = size = math.prod(spec.shape)
        for i in range(depth):
            setattr(self, f"encoder_{i}", nnx.Linear(size, width, rngs=rngs))
            size = width
        self.code = nnx.Linear(size, code, rngs=rngs)
        size = code
        for i in range(depth):
            setattr(self, f"decoder_{i}", nnx.Linear(size, width, rngs=rngs))
            size = width
        self.head = nnx.Linear(size, inputs, rngs=rngs)

    def __call__(self, x: Array) -> dict[str, Array]:
        """Returns ``{"code": (N, code), "reconstruction": (N, ...)}`` of inputs ``(N, ...)``."""
        act, shape, y = ACTIVATIONS[self.activation], x.shape, flat(x)
        for i in range(self.depth):
            y = act(getattr(self, f"encoder_{i}")(y))
        code = y = self.code(y)
        for i in range(self.depth):
            y = act(getattr(self, f"decoder_{i}")(y))
        return {"code": code, "reconstruction": self.head(y).reshape(shape)}


def autoencoder(
    spec: Spec, *, width: int = 128, depth: int = 1, activation: str = "relu", code: int = 16
) -> Callable[[nnx.Rngs], Autoencoder]:
    """Returns ``depth`` layers of ``width`` units on each side; 20,816 parameters for 8×8 grey images."""
    return lambda rngs: Autoencoder(spec, width, depth, activation, code, rngs=rngs)
