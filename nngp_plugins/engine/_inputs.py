"""Inputs: PyTrees of anything with ``shape``, ``dtype`` and slicing, examples along axis 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

import jax
import numpy as np

PyTree = Any
# numbers in a part of an array: as many rows for every dtype
PART = 2**22


def refuse_empty(name: str, x: PyTree) -> None:
    """Refuses inputs without examples.

    Raises:
        ValueError: a leaf has none.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        shape = getattr(leaf, "shape", ())
        if shape and shape[0] == 0:
            where = name + jax.tree_util.keystr(path)
            raise ValueError(f"{where} with shape {shape} is an empty batch; pass at least one example.")


def batch_of(side: str, x: PyTree) -> int:
    """Number of examples of an input.

    Raises:
        TypeError: a leaf has no batch axis.
        ValueError: the leaves disagree.
    """
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        shape = getattr(leaf, "shape", ())
        if not shape:
            raise TypeError(
                f"{side}{jax.tree_util.keystr(path)} is {type(leaf).__name__} without a batch axis; inputs are cut "
                "along axis 0, so pass what all examples share as a keyword argument."
            )
        sizes[f"{side}{jax.tree_util.keystr(path)}"] = int(shape[0])
    if len(set(sizes.values())) != 1:
        raise ValueError(f"{side} must hold examples along axis 0 of every array, as many in each; got {sizes}.")
    return next(iter(sizes.values()))


def unpacked(f: Any, params: PyTree, kwargs: Mapping[str, Any]) -> tuple[PyTree, dict[str, Any]]:
    """The arrays of ``params`` and the keyword arguments: a live model is taken apart, where ``f`` knows how to.

    Raises:
        TypeError: ``params`` holds something else than numbers.
    """
    kwargs = dict(kwargs)
    if hasattr(f, "variables"):
        params, state = f.variables(params)
        if state is not None:
            kwargs.setdefault("state", state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, Number):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {type(leaf).__name__}, not an array; pass arrays alone, as "
                "params, state = f.split(model) gives them."
            )
    return params, kwargs


def parts(array: Any) -> Iterator[np.ndarray]:
    """An array of any size, a part of it at a time."""
    if not array.shape or not array.shape[0]:
        yield np.asarray(array)
        return
    rows = max(1, PART // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], rows):
        yield np.asarray(array[start : start + rows])
