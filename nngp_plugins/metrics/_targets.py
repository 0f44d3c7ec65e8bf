"""Labels and other targets as arrays for computation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

if TYPE_CHECKING:
    from jaxtyping import Float


def as_targets(y: Any, n: int) -> Any:
    """Targets as an array ``(N, C)``: labels become one-hot rows, and real targets ``(N,)`` one column.

    Labels are strings or whole numbers. Whole-valued floats of shape ``(N, 1)`` are regression targets, not labels.

    Returns:
        A NumPy array, or a traced array if ``jit`` traces ``y``.

    Raises:
        ValueError: the number of targets is not N.
        TypeError: ``jit`` traces labels, whose number of classes is then unknown.
    """
    if isinstance(y, jax.core.Tracer):
        if y.ndim != 2:
            raise TypeError("y holds labels that jit traces; pass them one-hot, (N, C), or as a constant.")
        targets: Any = y
    else:
        targets = y = np.asarray(y)
        if _are_labels(y):
            _, classes = np.unique(y.ravel(), return_inverse=True)
            targets = np.eye(classes.max(initial=0) + 1)[classes]
        elif y.ndim == 1:
            targets = y[:, None]
    if targets.ndim != 2 or targets.shape[0] != n:
        raise ValueError(f"y of shape {np.shape(y)} must be labels (N,) or one-hot (N, C) of the N={n} examples.")
    if targets.dtype.kind in "OSU":
        raise TypeError(f"y holds {targets.dtype}; pass labels (N,), or numbers (N, C).")
    dtype = jnp.promote_types(targets.dtype, jnp.float32)
    return targets.astype(dtype) if isinstance(targets, jax.Array) else np.asarray(targets, dtype)


def _are_labels(y: np.ndarray) -> bool:
    """Whether targets are labels: strings or integers ``(N,)`` or ``(N, 1)``, or whole-valued floats ``(N,)``."""
    if y.dtype.kind == "f":
        return y.ndim == 1 and _whole(y)
    return y.ndim == 1 or y.shape[1:] == (1,)


def _whole(y: np.ndarray) -> bool:
    return bool(np.all(y == np.round(y)))


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
            ValueError: the number of labels is not N, or rows are not one-hot.
            TypeError: ``jit`` traces labels, or ``y`` holds strings in several columns.
        """
        if isinstance(y, jax.core.Tracer):
            one_hot = as_targets(y, n)
            return cls(one_hot, np.arange(one_hot.shape[1]))
        y = np.asarray(y)
        if y.dtype.kind == "f" and (y.ndim == 1 or y.shape[1:] == (1,)) and _whole(y):
            y = y.astype(int)  # As integers, whole-valued floats (N, 1) are labels too.
        rows = one_hot = as_targets(y, n)
        if np.any((rows != 0) & (rows != 1)) or np.any(rows.sum(axis=1) != 1):
            raise ValueError("y must be labels (N,) or one-hot (N, C), with a single 1 in each row.")
        was_one_hot = y.ndim == 2 and y.shape[1] > 1
        return cls(one_hot, np.arange(y.shape[1]) if was_one_hot else np.unique(y))

    @property
    def counts(self) -> Float[Array, " C"]:
        """Number of examples of each class."""
        return jnp.asarray(self.one_hot).sum(axis=0)

    @property
    def averages(self) -> Float[Array, "N C"]:
        """The matrix ``A`` for which ``Aᵀ phi`` are the class means; a class without examples has a zero column."""
        return self.one_hot / jnp.maximum(self.counts, 1)

    def present(self) -> Classes:
        """The classes that have examples; all classes if ``jit`` traces the targets, which hides the counts."""
        if isinstance(self.one_hot, jax.core.Tracer):
            return self
        has_examples = self.one_hot.sum(axis=0) > 0
        return Classes(self.one_hot[:, has_examples], self.names[has_examples])
