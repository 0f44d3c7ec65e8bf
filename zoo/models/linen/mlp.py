"""Multilayer perceptron in Flax Linen."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat


class MLP(nn.Module):
    """A multilayer perceptron on flattened inputs: ``dense_0, dense_1, ..., head``."""

    width: int
    depth: int
    activation: str
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of inputs ``(N, ...)``."""
        x = flat(x)
        for i in range(self.depth):
            x = ACTIVATIONS[self.activation](nn.Dense(self.width, name=f"dense_{i}")(x))
        return nn.Dense(self.classes, name="head")(x)


def mlp(spec: Spec, *, width: int = 256, depth: int = 2, activation: str = "relu") -> MLP:
    """Returns the MLP with ``depth`` hidden layers of ``width`` units; with 85,002 parameters for 8×8 grey images."""
    return MLP(width, depth, activation, spec.classes)
