"""Recurrent networks in Flax Linen."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jax import Array

from ...spec import Spec
from ..parts import rows


class Recurrent(nn.Module):
    """Embedded inputs, recurrent layers, and a head on the last position: ``embed, rnn_0, ..., head``."""

    cell: Any
    width: int
    depth: int
    classes: int
    vocabulary: int | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of tokens, sequences or images, which are read row by row."""
        if self.vocabulary is None:
            x = nn.Dense(self.width, name="embed")(rows(x))
        else:
            x = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(1), name="embed")(x)
        for i in range(self.depth):
            cell = self.cell(self.width, recurrent_kernel_init=nn.initializers.lecun_normal(), name=f"cell_{i}")
            rnn: Any = nn.RNN(cell, name=f"rnn_{i}")
            x = rnn(x)
        return nn.Dense(self.classes, name="head")(x[:, -1])


def lstm(spec: Spec, *, width: int = 64, depth: int = 1) -> Recurrent:
    """Returns ``depth`` LSTM layers (Hochreiter & Schmidhuber 1997); 33,802 parameters for sequences ``(40, 1)``."""
    return Recurrent(nn.OptimizedLSTMCell, width, depth, spec.classes, spec.vocabulary)


def gru(spec: Spec, *, width: int = 64, depth: int = 1) -> Recurrent:
    """Returns ``depth`` GRU layers (Cho et al. 2014); 25,610 parameters for sequences ``(40, 1)``."""
    return Recurrent(nn.GRUCell, width, depth, spec.classes, spec.vocabulary)
