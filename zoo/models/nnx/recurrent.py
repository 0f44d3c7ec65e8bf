"""Recurrent networks in Flax NNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import Array

from ...spec import Spec
from ..parts import rows


class Recurrent(nnx.Module):
    """Embedded inputs, recurrent layers, and a head on the last position: ``embed, rnn_0, ..., head``."""

    def __init__(self, spec: Spec, cell: Any, width: int, depth: int, *, rngs: nnx.Rngs):
        self.depth, self.is_tokens = depth, spec.vocabulary is not None
        self.embed: nnx.Embed | nnx.Linear
        if spec.vocabulary is None:
            self.embed = nnx.Linear(math.prod(spec.shape[1:]), width, rngs=rngs)
        else:
            self.embed = nnx.Embed(spec.vocabulary, width, embedding_init=jax.nn.initializers.normal(1), rngs=rngs)
        for i in range(depth):
            layer = cell(width, width, recurrent_kernel_init=nnx.initializers.lecun_normal(), rngs=rngs)
            setattr(self, f"rnn_{i}", nnx.RNN(layer, rngs=rngs))
        self.head = nnx.Linear(width, spec.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of tokens, sequences or images, which are read row by row."""
        x = self.embed(x if self.is_tokens else rows(x))
        for i in range(self.depth):
            x = getattr(self, f"rnn_{i}")(x)
        return self.head(x[:, -1])


def lstm(spec: Spec, *, width: int = 64, depth: int = 1) -> Callable[[nnx.Rngs], Recurrent]:
    """Returns ``depth`` LSTM layers (Hochreiter & Schmidhuber 1997); 33,802 parameters for sequences ``(40, 1)``."""
    return lambda rngs: Recurrent(spec, nnx.OptimizedLSTMCell, width, depth, rngs=rngs)


def gru(spec: Spec, *, width: int = 64, depth: int = 1) -> Callable[[nnx.Rngs], Recurrent]:
    """Returns ``depth`` GRU layers (Cho et al. 2014); 25,546 parameters for sequences ``(40, 1)``."""
    return lambda rngs: Recurrent(spec, nnx.GRUCell, width, depth, rngs=rngs)
