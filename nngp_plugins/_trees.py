"""What users pass, as PyTrees that JAX takes: mappings of any class, and parameters that hold more than arrays."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Number
from types import BuiltinFunctionType, FunctionType
from typing import Any

import jax
import numpy as np

from ._static import Static
from ._typing import PyTree


def with_dicts(tree: PyTree) -> PyTree:
    """The same tree with a dict for each mapping that JAX takes for a leaf, such as a ``UserDict``."""
    if not any(isinstance(leaf, Mapping) for leaf in jax.tree.leaves(tree)):
        return tree

    def as_dict(leaf: Any) -> Any:
        return {key: with_dicts(value) for key, value in leaf.items()} if isinstance(leaf, Mapping) else leaf

    return jax.tree.map(as_dict, tree)


def arrays_alone(params: PyTree) -> PyTree:
    """Parameters whose leaves are numbers: the functions and flags among them become part of the structure.

    So a compiled function takes an Equinox model, which holds its activation functions, and compiles again for others.

    Raises:
        TypeError: a leaf is neither a number nor a constant. An object may change, and JAX would not see it.
    """
    if all(_is_number(leaf) for leaf in jax.tree.leaves(params)):
        return params
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not (_is_number(leaf) or _is_constant(leaf)):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {described(leaf)}, not an array; convert the model, such as "
                "nngp.from_equinox(model) or nngp.from_keras(model), or pass arrays alone, as params, state = "
                "f.split(model) or eqx.partition(model, eqx.is_array) gives them."
            )
    return jax.tree.map(lambda leaf: leaf if _is_number(leaf) else Static(leaf), params)


def with_constants(params: PyTree) -> PyTree:
    """The parameters from which :func:`arrays_alone` made these."""

    def is_static(node: Any) -> bool:
        return isinstance(node, Static)

    return jax.tree.map(lambda leaf: leaf.value if is_static(leaf) else leaf, params, is_leaf=is_static)


def has_numbers(leaf: Any) -> bool:
    """Whether a leaf is an array whose numbers this process can read: not traced, not donated, not another's."""
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, jax.core.Tracer) and not leaf.is_deleted() and leaf.is_fully_addressable
    return isinstance(leaf, np.ndarray)


def is_text(leaf: Any) -> bool:
    """Whether a leaf holds strings, dates or Python objects, which JAX does not take."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, str | bytes) or (isinstance(dtype, np.dtype) and dtype.kind in "OSUTMm")


def described(leaf: Any) -> str:
    """What a leaf is, for messages."""
    dtype = getattr(leaf, "dtype", None)
    return type(leaf).__name__ if dtype is None else f"an array of dtype {dtype}"


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return True
    if isinstance(leaf, bool | type):  # jnp.float32, which some models hold, has a dtype.
        return False
    return isinstance(leaf, Number) or (hasattr(leaf, "dtype") and not is_text(leaf))


def _is_constant(leaf: Any) -> bool:
    if isinstance(leaf, bool | str | bytes | type | np.dtype | np.ufunc):
        return True
    return callable(leaf) and isinstance(inspect.unwrap(leaf), FunctionType | BuiltinFunctionType)
