"""A call of ``f`` on a batch, as a compiled function that every batch reuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from .._meshes import back_on
from .._static import Static
from .._trees import with_constants
from .._typing import PyTree
from ._outputs import NamedOutputs
from ._places import Places

REMEMBERED = 256
"""How many calls are remembered with what was found out about them."""

SMALL = 2
"""The rows of a batch that costs less to fetch whole than to cut on the device."""


@dataclass(frozen=True)
class ApplyCall:
    """A call of ``f`` without its arrays: hashable, so that every batch reuses one compiled function.

    Attributes:
        f: the apply function.
        structure: the structure of ``(x, kwargs)``.
        kinds: the kind of each leaf: ``rows`` are cut into batches, ``whole`` ones are the same for all batches,
            ``keys`` are folded for each batch, and ``static`` ones are no arrays.
        statics: the static leaves.
        keep: the places of the outputs that are returned, as a list; None for all, as ``f`` returns them. XLA computes
            nothing that only the others need.
    """

    f: Static
    structure: Any
    kinds: tuple[str, ...]
    statics: Static
    keep: tuple[int, ...] | None = None

    def __call__(self, params: PyTree, rows: Sequence[Any], whole: Sequence[Any], keys: Sequence[Any]) -> PyTree:
        """The outputs of ``f``."""
        leaves = {"rows": iter(rows), "whole": iter(whole), "keys": iter(keys), "static": iter(self.statics.value)}
        x, kwargs = self.structure.unflatten(next(leaves[kind]) for kind in self.kinds)
        y = NamedOutputs.of(self.f.value(with_constants(params), x, **kwargs))
        return y.structure.unflatten(y.leaves) if self.keep is None else [y.leaves[k] for k in self.keep]


@lru_cache(maxsize=REMEMBERED)
def on_batches(call: ApplyCall, places: Places) -> Any:
    """``f(params, rows, whole, keys)`` on one batch a device, each with a key of its own, as a compiled function.

    On the mesh of a user it runs on all batches at once, with one key.
    """

    def on_device(params: PyTree, rows: Any, whole: Any, keys: Any) -> PyTree:
        return call(params, rows, whole, [key[0] for key in keys])

    if places.count == 1 or places.batch_axes is not None:
        return jax.jit(on_device)
    split, same = places.ring.spec(), PartitionSpec()
    return jax.jit(places.ring.map(on_device, (same, split, same, split), split))


class Avals(NamedTuple):
    """Shapes and dtypes of the arrays of a call, by which JAX and this library keep what they found out.

    Attributes:
        structure: the structure of the arrays.
        leaves: the shape, the dtype, whether it is a weak one, and the sharding on a mesh of several devices, of each
            array.
        floats: the dtype of Python's floats, which outputs may have, and which may change while a process runs.
    """

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], Any, bool, Any], ...]
    floats: Any

    @classmethod
    def of(cls, tree: PyTree) -> Avals:
        """Those of a tree of arrays."""
        leaves, structure = jax.tree.flatten(tree)
        shapes = tuple((y.shape, y.dtype, getattr(y, "weak_type", False), _sharding_of(y)) for y in leaves)
        return cls(structure, shapes, jnp.result_type(float))


def _sharding_of(y: Any) -> Any:
    """Where an array is on a mesh that the user chose, which ``f`` may ask for."""
    sharding = getattr(y, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None


@lru_cache(maxsize=REMEMBERED)
def outputs_of(call: ApplyCall, places: Places, avals: Avals) -> NamedOutputs:
    """Names, shapes and dtypes of the outputs of a batch."""
    structs = [
        jax.ShapeDtypeStruct(shape, dtype, weak_type=weak, sharding=sharding)
        for shape, dtype, weak, sharding in avals.leaves
    ]
    with back_on(places.mesh_of_f):
        y = NamedOutputs.unchecked(on_batches(call, places).eval_shape(*avals.structure.unflatten(structs)))
    return y.structs()


def first_rows(rows: int, leaves: list[Array]) -> list[np.ndarray]:
    """The first rows of outputs in host memory. A small batch is fetched whole, which takes no program."""
    leaves = [leaf.addressable_shards[0].data for leaf in leaves]
    first = leaves if len(leaves[0]) <= SMALL else _cut(rows, leaves)
    return [leaf[:rows] for leaf in jax.device_get(first)]


@partial(jax.jit, static_argnums=0)
def _cut(rows: int, leaves: list[Array]) -> list[Array]:
    return [leaf[:rows] for leaf in leaves]


def is_traced(tree: PyTree) -> bool:
    """Whether a leaf is traced, so that it has no value."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def refuse_traced(tree: PyTree) -> None:
    """Refuses arrays that are traced, so that they have no values.

    Raises:
        TypeError: a leaf is traced.
    """
    if is_traced(tree):
        raise TypeError(
            "a batched kernel function was called inside jit, grad or vmap; its loop over batches runs outside, so "
            "call it there, or use the unbatched kernel function inside."
        )
