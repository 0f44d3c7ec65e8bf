"""Targets of a Gaussian process as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import labels_of


@dataclass(frozen=True)
class Targets:
    """What is regressed on.

    Attributes:
        columns: ``(N, C)``, of the dtype that they came in; one-hot minus 1/C for labels.
        classes: the labels in the order of the columns; None for regression.
        flat: whether they were numbers ``(N,)``, as predictions are then, too.
    """

    columns: np.ndarray
    classes: np.ndarray | None
    flat: bool

    @classmethod
    def of(cls, y: Any, n: int) -> Targets:
        """The targets of N examples; :func:`nngp_plugins.metrics.labels_of` says which are labels.

        Raises:
            ValueError: as :func:`labels_of`; a single label; NaN.
            TypeError: not numbers, strings or booleans.
        """
        y = np.asarray(y)
        if y.dtype.kind not in "iubfOSU":
            raise TypeError(f"y holds {y.dtype}; pass labels (N,), or real numbers (N,) or (N, C).")
        labels = labels_of(y, n)
        if labels is not None:
            return cls(*_one_hot(labels, y.shape[1] if y.ndim == 2 else 1), False)
        if bad := list(np.flatnonzero(~np.isfinite(y).reshape(n, -1).all(axis=1))[:3]):
            raise ValueError(f"y holds NaN or infinity, first in examples {', '.join(map(str, bad))}.")
        return cls(y.reshape(n, -1), None, y.ndim == 1)


def _one_hot(labels: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """One-hot rows minus 1/C, and the label of each column; columns that were one-hot keep their numbers.

    Raises:
        ValueError: there is a single label.
    """
    classes, places = (np.arange(columns), labels) if columns > 1 else np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y holds the single label {classes[0]!r}; pass at least two, or floats (N, 1) to regress on them."
        )
    # Two hundred classes of a million examples are 0.8 GB in float32.
    return np.eye(len(classes), dtype=np.float32)[places] - np.float32(1 / len(classes)), classes
