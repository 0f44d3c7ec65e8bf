"""How one ``rng`` becomes the keys of ``x1``, of ``x2``, and of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType

from .._fingerprint import in_parts
from .._typing import PyTree
from ._devices import transfers_allowed

KEYS = ("rng", "rngs")
"""The keyword arguments that hold keys."""


def keys_of_batches(key: Array, numbers: Sequence[int] | range) -> Array:
    """One key for each of some batches: batch ``i`` gets ``fold_in(key, i)``."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, np.asarray(numbers, np.uint32))


@transfers_allowed()
def keys_of_x2(keys: PyTree, x1: PyTree, x2: PyTree) -> PyTree:
    """The keys of ``x2``: those of ``x1`` if the inputs are equal, else folded ones, so that noise is independent."""
    equal = _equal(x1, x2)
    if equal is True:
        return keys
    return jax.tree.map(lambda key: jnp.where(equal, key, jax.random.fold_in(key, 1)), keys)


def _equal(x1: PyTree, x2: PyTree) -> bool | Array:
    """Whether two inputs are the same examples; a traced bool if only values on a device can tell."""
    leaves1, leaves2 = jax.tree.leaves(x1), jax.tree.leaves(x2)
    structures: list[Any] = [jax.tree.structure(x1), jax.tree.structure(x2)]
    if structures[0] != structures[1] or list(map(jnp.shape, leaves1)) != list(map(jnp.shape, leaves2)):
        return False
    pairs = [(a, b) for a, b in zip(leaves1, leaves2, strict=True) if a is not b]
    on_host = [_on_host(a) and _on_host(b) for a, b in pairs]
    if not all(_equal_on_host(a, b) for (a, b), here in zip(pairs, on_host, strict=True) if here):
        return False
    others = [_equal_values(a, b) for (a, b), here in zip(pairs, on_host, strict=True) if not here]
    return jnp.all(jnp.stack(others)) if others else True


def _on_host(x: Any) -> bool:
    """Whether this is an array outside JAX, such as a NumPy array or a memory map that may be larger than memory."""
    return hasattr(x, "shape") and not isinstance(x, jax.Array)


def _equal_on_host(a: Any, b: Any) -> bool:
    return all(np.all((p == q) | ((p != p) & (q != q))) for p, q in zip(in_parts(a), in_parts(b), strict=True))


@jax.jit
def _equal_values(a: Array, b: Array) -> Array:
    for sharding in (jax.typeof(a).sharding, jax.typeof(b).sharding):
        if AxisType.Explicit in sharding.mesh.axis_types:
            # A mesh with explicit axes refuses to compare arrays that are sharded in two ways.
            a, b = jax.sharding.reshard((a, b), sharding)
    # NaN marks missing values in some inputs, so a NaN in the same place of both makes no difference.
    return jnp.all((a == b) | ((a != a) & (b != b)))
