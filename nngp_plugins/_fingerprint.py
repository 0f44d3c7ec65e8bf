"""Fingerprints: whether what a call is given is what an earlier process was given."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._typing import PyTree

_NUMBERS_AT_ONCE = 2**22


def fingerprint(tree: PyTree, *, with_paths: bool) -> str:
    """SHA-256 of all numbers of a PyTree, with their shapes and dtypes.

    Args:
        tree: arrays of any size, keys, and other objects, which count by their names or their ``repr``.
        with_paths: whether the path of each leaf counts too. Run folders of version 0.1.0 hold fingerprints without.

    Raises:
        TypeError: an object has neither a name nor a ``repr`` that another process would know it by.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if with_paths:
            digest.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            digest.update(_text_of(leaf).encode())
            continue
        digest.update(f"{tuple(leaf.shape)}{leaf.dtype}".encode())
        for part in in_parts(leaf):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def in_parts(array: Any) -> Iterator[np.ndarray]:
    """An array of any size, a limited number of rows at a time."""
    if not array.shape or not array.shape[0]:
        yield np.asarray(array)
        return
    rows = max(1, _NUMBERS_AT_ONCE // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], rows):
        yield np.asarray(array[start : start + rows])


def _text_of(leaf: Any) -> str:
    """What tells an object that is no array from others.

    Raises:
        TypeError: nothing does.
    """
    if (parts := _parts_of(leaf)) is not None:
        return f"{type(leaf).__qualname__}{fingerprint(parts, with_paths=True)}"
    text = str(getattr(leaf, "__qualname__", None) or repr(leaf))
    if isinstance(leaf, str | bytes):
        return text
    # All lambdas have one name, and so have all functions that one function makes. An address is new in each process.
    if "<lambda>" in text or "<locals>" in text or " at 0x" in text:
        raise TypeError(f"{text} can't be told from others of its kind")
    return text


def _parts_of(leaf: Any) -> PyTree | None:
    """The parts of an object that tell more of it than its own name or ``repr``; None for another object."""
    if isinstance(leaf, functools.partial):
        return [leaf.func, leaf.args, leaf.keywords]
    owner = getattr(leaf, "__self__", None)
    if hasattr(leaf, "__func__") and not isinstance(owner, type):
        return [leaf.__qualname__, owner]
    if is_dataclass(leaf) and not isinstance(leaf, type):
        parts = {field.name: getattr(leaf, field.name, None) for field in fields(leaf) if field.repr}
        # Stores of version 0.1.0 hold the ``repr`` of these.
        is_plain = all(isinstance(part, str | Number) for part in jax.tree.leaves(parts))
        return None if is_plain else parts
    return None
