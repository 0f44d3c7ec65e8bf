"""Labels and other targets as arrays to compute with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package


def as_targets(y: Any, n: int) -> Any:
    """Labels, which are strings or whole numbers, as one-hot rows; real numbers as they are, ``(N,)`` as one column.

    Whole real numbers ``(N, 1)`` are no labels, for those who regress on them.

    NumPy arrays, but for what ``jit`` traces.

    Raises:
        ValueError: not N of them.
        TypeError: labels that ``jit`` traces, so that nobody knows how many classes there are.
    """
    if isinstance(y, jax.core.Tracer):
        if y.ndim != 2:
            raise TypeError("y holds labels that jit traces; pass them one-hot, (N, C), or as a constant.")
        targets: Any = y
    else:
        targets = y = np.asarray(y)
        real = y.dtype.kind == "f"
        whole = real and y.ndim == 1 and bool(np.all(y == np.round(y)))
        if whole or (not real and (y.ndim == 1 or y.shape[1:] == (1,))):
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


@dataclass(frozen=True)
class Classes:
    """The classes of N examples.

    Attributes:
        one_hot: ``(N, C)``.
        names: of the classes, by columns; numbers of the columns where ``y`` was one-hot.
    """

    one_hot: Any
    names: np.ndarray

    @classmethod
    def of(cls, y: Any, n: int) -> Classes:
        """Those of labels ``(N,)``, or of one-hot rows.

        Raises:
            ValueError: not N of them, or rows that are not one-hot.
            TypeError: traced labels, or real numbers.
        """
        if isinstance(y, jax.core.Tracer):
            one_hot = as_targets(y, n)
            return cls(one_hot, np.arange(one_hot.shape[1]))
        y = np.asarray(y)
        if y.dtype.kind == "f" and (y.ndim == 1 or y.shape[1:] == (1,)) and np.all(y == np.round(y)):
            y = y.astype(int)
        rows = one_hot = as_targets(y, n)
        if np.any((rows != 0) & (rows != 1)) or np.any(rows.sum(axis=1) != 1):
            raise ValueError("y must be labels (N,) or one-hot (N, C), with a single 1 in each row.")
        known = y.ndim == 2 and y.shape[1] > 1
        return cls(one_hot, np.arange(y.shape[1]) if known else np.unique(y))

    @property
    def counts(self) -> Float[Array, " C"]:
        """Number of examples of each class."""
        return jnp.asarray(self.one_hot).sum(axis=0)

    @property
    def averages(self) -> Float[Array, "N C"]:
        """``A`` for which ``Aᵀ phi`` are the means of the classes; zero for one without examples."""
        return self.one_hot / jnp.maximum(self.counts, 1)

    def present(self) -> Classes:
        """Without the classes that have no example, where that can be told."""
        if isinstance(self.one_hot, jax.core.Tracer):
            return self
        some = self.one_hot.sum(axis=0) > 0
        return Classes(self.one_hot[:, some], self.names[some])
