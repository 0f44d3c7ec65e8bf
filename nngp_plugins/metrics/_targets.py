"""Targets: which are labels of classes, which are numbers, and both as arrays for computation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import wide


def labels_of(y: Any, n: int | None = None, argument: str = "y") -> np.ndarray | None:
    """The label of each example if targets are classes; None if they are numbers to regress on.

    This is the one rule by which metrics, trackers and reports tell them apart:

    - Strings, integers and booleans of shape ``(N,)`` or ``(N, 1)`` are labels, and so are floats ``(N,)`` if all of
      them are whole. Floats ``(N, 1)`` are numbers, whole or not.
    - Columns ``(N, C)`` of zeros and ones, of any dtype, are classes if each row has a single 1 (one-hot). Otherwise
      (multi-hot) they are numbers, and so are other floats.
    - Other integers ``(N, C)``, such as the ids of tokens, are refused.

    Args:
        y: targets.
        n: the number of examples; None for any.
        argument: what the caller calls ``y``, for messages.

    Returns:
        The labels ``(N,)``, which are column numbers for one-hot targets; or None.

    Raises:
        ValueError: another shape, or integers in several columns that are not zeros and ones.
        TypeError: strings in several columns.

    Example:
        >>> import numpy as np, nngp_plugins as nngp
        >>> ages = np.array([30.0, 41.0, 30.0])
        >>> nngp.metrics.labels_of(ages), nngp.metrics.labels_of(ages[:, None])
        (array([30, 41, 30]), None)
    """
    y = np.asarray(y)
    if y.ndim not in (1, 2) or (n is not None and len(y) != n):
        of = "N" if n is None else f"N={n}"
        raise ValueError(f"{argument} of shape {y.shape} must be labels (N,) or one-hot (N, C) of the {of} examples.")
    is_float = jnp.issubdtype(y.dtype, jnp.floating)
    if y.ndim == 1 and is_float:
        return y.astype(int) if np.all(np.isfinite(y) & (y == np.round(y))) else None
    if y.ndim == 1:
        return y
    if y.shape[1] == 1:
        return None if is_float else y[:, 0]
    if y.dtype.kind in "OSU":
        raise TypeError(f"{argument} holds {y.dtype}; pass labels (N,), or numbers (N, C).")
    if np.all((y == 0) | (y == 1)):
        return y.argmax(axis=1) if np.all(y.astype(int).sum(axis=1) == 1) else None
    if not is_float:
        raise ValueError(
            f"integers of shape {y.shape} in {argument} are neither one-hot nor multi-hot, but may be ids of tokens; "
            "pass a label for each example (N,), columns of zeros and ones, or floats to regress on numbers."
        )
    return None


def as_targets(y: Any, n: int) -> Any:
    """Targets as an array ``(N, C)``: labels become one-hot rows, and numbers ``(N,)`` one column; see `labels_of`.

    Returns:
        A NumPy array, or a traced array if ``jit`` traces ``y``.

    Raises:
        ValueError: as :func:`labels_of`.
        TypeError: ``jit`` traces labels, whose number of classes is then unknown; strings in several columns.
    """
    if isinstance(y, jax.core.Tracer):
        if y.ndim != 2:
            raise TypeError("y holds labels that jit traces; pass them one-hot, (N, C), or as a constant.")
        if y.shape[0] != n:
            raise ValueError(f"y of shape {y.shape} must be labels (N,) or one-hot (N, C) of the N={n} examples.")
        return y.astype(wide(y.dtype))
    targets, labels = np.asarray(y), labels_of(y, n)
    if labels is not None and (targets.ndim == 1 or targets.shape[1] == 1):
        _, classes = np.unique(labels, return_inverse=True)
        return np.eye(classes.max(initial=0) + 1)[classes]
    return np.asarray(targets.reshape(n, -1), wide(targets.dtype))


@dataclass(frozen=True)
class Classes:
    """The classes of N examples.

    Attributes:
        one_hot: ``(N, C)``.
        names: the label of each column of ``one_hot``, or the column number if ``y`` was one-hot.
    """

    one_hot: Any
    names: np.ndarray

    @classmethod
    def of(cls, y: Any, n: int) -> Classes:
        """The classes of labels ``(N,)``, or of one-hot rows ``(N, C)``.

        Raises:
            ValueError: as :func:`labels_of`, or the targets are numbers.
            TypeError: ``jit`` traces labels, or ``y`` holds strings in several columns.
        """
        one_hot = as_targets(y, n)
        if isinstance(y, jax.core.Tracer):
            return cls(one_hot, np.arange(one_hot.shape[1]))
        labels = labels_of(y, n)
        if labels is None:
            raise ValueError(
                "y must be labels (N,) or one-hot (N, C), with a single 1 in each row. Floats (N, 1) are numbers: pass "
                "y[:, 0] if they are labels."
            )
        was_one_hot = np.ndim(y) == 2 and np.shape(y)[1] > 1
        return cls(one_hot, np.arange(one_hot.shape[1]) if was_one_hot else np.unique(labels))

    def present(self) -> Classes:
        """The classes that have examples; all classes if ``jit`` traces the targets, which hides the counts."""
        if isinstance(self.one_hot, jax.core.Tracer):
            return self
        has_examples = self.one_hot.sum(axis=0) > 0
        return Classes(self.one_hot[:, has_examples], self.names[has_examples])
