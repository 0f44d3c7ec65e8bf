"""Multilayer perceptron in Haiku."""

from __future__ import annotations

import haiku as hk
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, flat
from .layers import LECUN


def mlp(spec: Spec, *, width: int = 256, depth: int = 2, activation: str = "relu") -> hk.TransformedWithState:
    """Returns ``hk.nets.MLP`` with ``depth`` hidden layers; with 85,002 parameters for 8×8 grey images."""

    def net(x: Array) -> Array:
        sizes = [*[width] * depth, spec.classes]
        return hk.nets.MLP(sizes, w_init=LECUN, activation=ACTIVATIONS[activation], name="mlp")(flat(x))

    return hk.transform_with_state(net)
