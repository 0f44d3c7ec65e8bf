"""Pooling: one vector of features for each example, in place of one for each token or pixel."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .._typing import PyTree, wide
from ._arguments import is_array, move_batch
from ._replay import Reducer

NAMES = ("mean", "first", "last")


@dataclass(frozen=True)
class Pool:
    """How positions are pooled; see :meth:`ModelFn.pool`.

    Attributes:
        how: ``"mean"``, ``"first"``, ``"last"`` or a function.
        mask: a key of the inputs or a keyword argument, or a function of the inputs; None if all positions count.
    """

    how: str | Callable[..., Array]
    mask: str | Callable[[PyTree], Array] | None = None

    def __post_init__(self) -> None:
        if self.how not in NAMES and not callable(self.how):
            named = ", ".join(map(repr, NAMES))
            raise ValueError(f"pool({reprlib.repr(self.how)}) takes one of {named}, or a function of (N, ..., D).")
        if not (self.mask is None or isinstance(self.mask, str) or callable(self.mask)):
            raise TypeError(
                f"pool(mask={reprlib.repr(self.mask)}) takes a key of the inputs, such as mask='attention_mask', or a "
                "function of them, such as mask=lambda tokens: tokens != 0. An array would not be cut into batches."
            )

    def mask_of(self, x: PyTree, kwargs: Mapping[str, Any], batch_axis: int) -> Array | None:
        """The mask of a call, batch first, true where a position counts.

        Raises:
            ValueError: the call has no such input, or the mask is not ``(N, T)`` or ``(N, H, W)``.
        """
        if self.mask is None:
            return None
        x, kwargs = (move_batch(tree, batch_axis, 0) if batch_axis else tree for tree in (x, kwargs))
        if callable(self.mask):
            found: Any = self.mask(x)
        elif isinstance(x, Mapping) and self.mask in x:
            found = x[self.mask]
        elif self.mask in kwargs:
            found = kwargs[self.mask]
        else:
            known = ", ".join(map(repr, [*(x if isinstance(x, Mapping) else ()), *kwargs])) or "none"
            raise ValueError(
                f"pool(mask={self.mask!r}) names a key of the inputs or a keyword argument; this call has {known}."
            )
        if not is_array(found) or found.ndim < 2:
            shape = getattr(found, "shape", type(found).__name__)
            raise ValueError(f"the mask of pool(...) has shape {shape}; it needs one value for each position, (N, T).")
        return jnp.asarray(found) != 0

    def shapes(
        self, shapes: Mapping[str, jax.ShapeDtypeStruct], x: PyTree, kwargs: Mapping[str, Any], batch_axis: int
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the pooled outputs of layers."""
        mask = jax.eval_shape(lambda: self.mask_of(x, kwargs, batch_axis))
        return {name: jax.eval_shape(partial(self, name), shape, mask) for name, shape in shapes.items()}

    def __call__(self, name: str, y: Array, mask: Array | None) -> Array:
        """The pooled output of a layer. One that has no positions, ``(N, D)``, stays as it is."""
        if y.ndim <= 2:
            return y
        axes = y.ndim - 2 if mask is None else mask.ndim - 1
        if mask is not None and (y.ndim <= mask.ndim or y.shape[: mask.ndim] != mask.shape):
            raise ValueError(
                f"pool(mask=...) has shape {mask.shape}, but layer {name!r} has {y.shape}, whose axes in front are not "
                f"the same. Leave it out, as in f.layers({'!' + name!r}), or pool it by a mask of its own."
            )
        if not isinstance(self.how, str):
            return self._by_function(name, y, mask)
        rows, rest = y.shape[0], y.shape[axes + 1 :]
        y = y.astype(wide(y.dtype)).reshape(rows, math.prod(y.shape[1 : axes + 1]), *rest)
        counts = jnp.ones(y.shape[:2], bool) if mask is None else mask.reshape(y.shape[:2])
        if self.how == "mean":
            return jnp.mean(y, axis=1, where=_with_axes(counts, y.ndim))
        order = counts if self.how == "first" else counts[:, ::-1]
        place = jnp.argmax(order, axis=1)
        place = place if self.how == "first" else counts.shape[1] - 1 - place
        taken = jnp.take_along_axis(y, _with_axes(place[:, None], y.ndim), axis=1)[:, 0]
        # An example without any position has no features. The mean of nothing is nan, too.
        return jnp.where(_with_axes(counts.any(axis=1), taken.ndim), taken, jnp.nan)

    def _by_function(self, name: str, y: Array, mask: Array | None) -> Array:
        assert callable(self.how)
        pooled = self.how(y) if mask is None else self.how(y, mask)
        if not is_array(pooled) or pooled.shape[:1] != y.shape[:1]:
            found = getattr(pooled, "shape", type(pooled).__name__)
            raise ValueError(
                f"the function of pool(...) returned {found} for layer {name!r} of shape {y.shape}; it returns a row "
                "for each example along axis 0."
            )
        return pooled


@dataclass(frozen=True)
class Pooled:
    """A reducer that gets pooled outputs.

    Attributes:
        reducer: the reducer.
        pool: how positions are pooled.
        mask: the mask of the inputs.
    """

    reducer: Reducer
    pool: Pool
    mask: Array | None

    def __call__(self, name: str, y: Array) -> PyTree:
        """What the reducer makes of the pooled output."""
        return self.reducer(name, self.pool(name, y, self.mask))

    def of_step(self, shape: jax.ShapeDtypeStruct) -> None:
        """Returns None: all steps are pooled together."""
        return None


def _with_axes(array: Array, ndim: int) -> Array:
    """The same with axes of length 1 behind, up to ``ndim`` axes."""
    return array.reshape(array.shape + (1,) * (ndim - array.ndim))
