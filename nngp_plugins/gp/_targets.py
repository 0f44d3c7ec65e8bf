"""Targets of a Gaussian process as float64 columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Targets:
    """What is regressed on.

    Attributes:
        columns: ``(N, C)``, of the dtype that they came in; one-hot minus 1/C for labels.
        classes: the labels in the order of the columns; None for regression.
        flat: whether they were ``(N,)``, as predictions are then, too.
    """

    columns: np.ndarray
    classes: np.ndarray | None
    flat: bool

    @classmethod
    def of(cls, y: Any, n: int) -> Targets:
        """The targets of N examples.

        Raises:
            ValueError: another number of examples or axes; whole numbers as floats ``(N,)``, which may be labels; NaN.
            TypeError: not numbers, strings or booleans.
        """
        y = np.asarray(y)
        if y.ndim not in (1, 2) or len(y) != n:
            raise ValueError(f"y has shape {y.shape}; pass (N,) or (N, C) for the N={n} examples of the kernel.")
        if y.ndim == 1 and y.dtype.kind in "iubOSU":
            classes, places = np.unique(y, return_inverse=True)
            if len(classes) < 2:
                raise ValueError(
                    f"y holds the single label {classes[0]!r}; pass at least two, or floats to regress on."
                )
            # Two hundred classes of a million examples are 0.8 GB in float32.
            return cls(np.eye(len(classes), dtype=np.float32)[places] - np.float32(1 / len(classes)), classes, False)
        if y.dtype.kind not in "iubf":
            raise TypeError(f"y holds {y.dtype}; pass labels (N,), or real numbers (N,) or (N, C).")
        if bad := list(np.flatnonzero(~np.isfinite(y).reshape(n, -1).all(axis=1))[:3]):
            raise ValueError(f"y holds NaN or infinity, first in examples {', '.join(map(str, bad))}.")
        if y.ndim == 1 and n > 1 and np.all(y == np.round(y)):
            raise ValueError(
                "y holds whole numbers as floats of shape (N,), which may be labels; pass integers to classify, or "
                "floats of shape (N, 1) to regress on them."
            )
        return cls(y.reshape(n, -1), None, y.ndim == 1)
