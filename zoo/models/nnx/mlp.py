"""Multilayer perceptron in Flax NNX."""

from __future__ import annotations

import math
from collections.abc import Callable

from flax import nnx
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat


class MLP(nnx.Module):
    """A multilayer perceptron on flattened inputs: ``dense_0, dense_1, ..., head``."""

    def __init__(self, spec: Spec, width: int, depth: int, activation: str, *, rngs: nnx.Rngs):
        self.depth, self.activation = depth, activation
        size = math.prod(spec.shape)
        for i in range(depth):
            setattr(self, f"dense_{i}", nnx.Linear(size, width, rngs=rngs))
            size = width
        self.head = nnx.Linear(size, spec.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of inputs ``(N, ...)``."""
        x = flat(x)
        for i in range(self.depth):
            x = ACTIVATIONS[self.activation](getattr(self, f"dense_{i}")(x))
        return self.head(x)


def mlp(spec: Spec, *, width: int = 256, depth: int = 2, activation: str = "relu") -> Callable[[nnx.Rngs], MLP]:
    """Returns the MLP with ``depth`` hidden layers of ``width`` units; with 85,002 parameters for 8×8 grey images."""
    return lambda rngs: MLP(spec, width, depth, activation, rngs=rngs)
