"""Recurrent networks in Haiku, of its own cells: its GRU resets the state before the product, Flax's after it."""

from __future__ import annotations

from typing import Any

import haiku as hk
from jax import Array

from ...spec import Spec
from ..parts import rows
from .layers import Embed, Linear


def _recurrent(spec: Spec, cell: Any, width: int, depth: int) -> hk.TransformedWithState:
    """Returns embedded inputs, recurrent layers, and a head on the last position: ``embed, rnn_0, ..., head``."""

    def net(x: Array) -> Array:
        is_tokens = spec.vocabulary is not None
        x = Embed(spec.vocabulary, width, name="embed")(x) if is_tokens else Linear(width, name="embed")(rows(x))
        for i in range(depth):
            core = cell(width, name=f"rnn_{i}")
            x, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
        return Linear(spec.classes, name="head")(x[:, -1])

    return hk.transform_with_state(net)


def lstm(spec: Spec, *, width: int = 64, depth: int = 1) -> hk.TransformedWithState:
    """Returns ``depth`` LSTM layers (Hochreiter & Schmidhuber 1997); 33,802 parameters for sequences ``(40, 1)``."""
    return _recurrent(spec, hk.LSTM, width, depth)


def gru(spec: Spec, *, width: int = 64, depth: int = 1) -> hk.TransformedWithState:
    """Returns ``depth`` GRU layers (Cho et al. 2014); 25,546 parameters for sequences ``(40, 1)``."""
    return _recurrent(spec, hk.GRU, width, depth)
