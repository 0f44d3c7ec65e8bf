"""Inputs: PyTrees of arrays or of anything with ``shape``, ``dtype`` and slicing, with examples along axis 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from .._trees import described, is_text, with_dicts
from .._typing import PyTree

Range = tuple[int, int]
"""The numbers of the first example of a range, and of the one after its last."""


def ranges(start: int, stop: int, size: int) -> list[Range]:
    """``start`` to ``stop`` in pieces of ``size``; the last piece may be smaller."""
    return [(low, min(low + size, stop)) for low in range(start, stop, size)]


def refuse_empty(name: str, x: PyTree) -> None:
    """Refuses inputs that hold no example.

    Raises:
        ValueError: a leaf has none.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        shape = getattr(leaf, "shape", ())
        if shape and shape[0] == 0:
            where = name + jax.tree_util.keystr(path)
            raise ValueError(f"{where} with shape {shape} is an empty batch; pass at least one example.")


def batch_of(argument: str, x: PyTree) -> int:
    """The number of examples of an input.

    Raises:
        TypeError: a leaf has no batch axis.
        ValueError: the leaves disagree, or are empty.
    """
    refuse_empty(argument, x)
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        shape = getattr(leaf, "shape", ())
        if not shape:
            raise TypeError(
                f"{argument}{jax.tree_util.keystr(path)} is {type(leaf).__name__} without a batch axis; inputs are cut "
                "along axis 0, so pass what all examples share as a keyword argument."
            )
        sizes[f"{argument}{jax.tree_util.keystr(path)}"] = int(shape[0])
    if len(set(sizes.values())) != 1:
        raise ValueError(f"{argument} must hold examples along axis 0 of every array, as many in each; got {sizes}.")
    return next(iter(sizes.values()))


def inputs(argument: str, x: PyTree) -> PyTree:
    """Inputs as JAX takes them: mappings of any class, such as the ``BatchEncoding`` of a tokenizer, become dicts.

    Raises:
        TypeError: a leaf holds strings, dates or Python objects.
    """
    x = with_dicts(x)
    if any(is_text(leaf) for leaf in jax.tree.leaves(x)):
        path, leaf = next((path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(x) if is_text(leaf))
        where = argument + jax.tree_util.keystr(path)
        raise TypeError(
            f"{where} is {described(leaf)}, and JAX takes numbers alone; leave it out of the inputs, or pass numbers "
            "in its place, such as the ids of tokens."
        )
    return x


def batch_first(f: Any, argument: str, x: PyTree) -> tuple[Any, PyTree]:
    """An ``f`` and its :func:`inputs` with the batch in front, if ``f`` knows that it takes them in another order."""
    x = inputs(argument, x)
    return f.batch_first(x) if hasattr(f, "batch_first") else (f, x)


def are_arrays(tree: PyTree) -> bool:
    """Whether all leaves are arrays of JAX or of NumPy that hold numbers."""
    leaves = jax.tree.leaves(tree)
    return all(
        isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc") for leaf in leaves
    )


def hold_numpy(leaves: Iterable[Any]) -> bool:
    """Whether some leaves lie in host memory that the caller may write to. JAX reads it after its call has returned."""
    return any(isinstance(leaf, np.ndarray) for leaf in leaves)


def unpacked(f: Any, params: PyTree, kwargs: Mapping[str, Any]) -> tuple[PyTree, dict[str, Any]]:
    """``params`` and the keyword arguments; a live model is taken apart if ``f`` knows how to."""
    kwargs = dict(kwargs)
    if hasattr(f, "variables"):
        params, state = f.variables(params)
        if state is not None:
            kwargs.setdefault("state", state)
    return params, kwargs
