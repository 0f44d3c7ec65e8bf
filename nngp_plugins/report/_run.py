"""The numbers of a run as findings need them: arrays by layer, up to where they stop being finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..charts import printable
from ..history import History

_NAMED = 4
"""Of more layers a sentence names so many."""


@dataclass(frozen=True)
class Numbers:
    """The snapshots of a run before it diverged.

    Attributes:
        history: these snapshots.
        steps: their steps, ``(S,)``.
        layers: the names of the layers.
    """

    history: History
    steps: np.ndarray
    layers: list[str]

    @classmethod
    def of(cls, history: History, end: int | None) -> Numbers:
        """The snapshots of a history before the step ``end``; None for all of them."""
        before = History([row for row in history.rows if end is None or row["step"] < end])
        return cls(before, before.steps, before.layers)

    def metric(self, name: str) -> np.ndarray | None:
        """A metric of all layers, ``(S, L)``; what is not finite is nan. None if it was not measured."""
        if name not in self.history.metrics:
            return None
        values = self.history.metric(name)
        return np.where(np.isfinite(values), values, np.nan)

    def ends(self, name: str) -> np.ndarray | None:
        """The first and the last finite value of a metric of each layer, ``(L, 2)``; nan for a layer without any."""
        values = self.metric(name)
        return None if values is None else np.array([first_and_last(column) for column in values.T]).reshape(-1, 2)

    @property
    def loss(self) -> np.ndarray | None:
        """The loss at the snapshots, ``(S,)``; None if fewer than two are known, or one is negative.

        Half of the fall of a loss says something only if zero is its floor.
        """
        if "loss" not in self.history.scalars:
            return None
        loss = self.history.scalar("loss")
        known = loss[np.isfinite(loss)]
        return loss if known.size > 1 and known.min() >= 0 and known[0] > 0 else None


def first_and_last(values: np.ndarray) -> tuple[float, float]:
    """The first and the last value that is finite; nan if there is none."""
    known = values[np.isfinite(values)]
    return (float(known[0]), float(known[-1])) if known.size else (np.nan, np.nan)


def quoted(layer: str) -> str:
    """The name of a layer as it stands in a sentence."""
    return f"`{printable(layer).replace('`', chr(39))}`"


def listed(parts: Sequence[str], at_most: int = _NAMED) -> str:
    """Parts of a sentence with commas and "and"; of many parts some, and the number of the others.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], at_most=1)
        ('a, b and c', 'a and 2 more')
    """
    named = list(parts[:at_most])
    if more := len(parts) - len(named):
        named.append(f"{more} more")
    *others, final = named
    return f"{', '.join(others)} and {final}" if others else final


def kernels_of(layers: Sequence[str]) -> str:
    """Such as "the kernels of `a` and `b`"."""
    return f"the kernel{'s' * (len(layers) > 1)} of {listed([quoted(layer) for layer in layers])}"


def sentence(text: str) -> str:
    """The text with a capital at its beginning and a full stop at its end; a name in quotes stays as it is."""
    return f"{text[:1].upper()}{text[1:]}."


def plain(value: float) -> str:
    """A number with up to three digits, such as 1, 0.33 and 919.

    Example:
        >>> plain(1.0), plain(0.3284), plain(918.998), plain(3.2e-5), plain(12345.0)
        ('1', '0.328', '919', '3.2e-05', '12,300')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def at_least(value: float) -> str:
    """A number of two decimals that is not above the value.

    Example:
        >>> at_least(0.9472), at_least(1.0)
        ('0.94', '1')
    """
    return f"{np.floor(round(100 * value, 6)) / 100:g}"


def at_most(value: float) -> str:
    """A number of two decimals that is not below the value.

    Example:
        >>> at_most(0.0301), at_most(12.0)
        ('0.04', '12')
    """
    return f"{np.ceil(round(100 * value, 6)) / 100:g}"
