"""A call of ``f`` on a batch, as a compiled function that every batch reuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec

from .._static import Static
from .._typing import PyTree
from ._outputs import NamedOutputs

REMEMBERED = 256
"""How many calls are remembered with what was found out about them."""


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
        y = NamedOutputs.of(self.f.value(params, x, **kwargs))
        return y.structure.unflatten(y.leaves) if self.keep is None else [y.leaves[k] for k in self.keep]


@partial(jax.jit, static_argnames=("call", "mesh"))
def run_batches(call: ApplyCall, mesh: jax.sharding.Mesh, params: PyTree, rows: Any, whole: Any, keys: Any) -> PyTree:
    """``f`` on one batch a device, each with a key of its own."""

    def on_device(params: PyTree, rows: Any, whole: Any, keys: Any) -> PyTree:
        return call(params, rows, whole, [key[0] for key in keys])

    if mesh.size == 1:
        return on_device(params, rows, whole, keys)
    split, same = PartitionSpec("devices"), PartitionSpec()
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(same, split, same, split), out_specs=split, check_vma=False)
    return mapped(params, rows, whole, keys)


@lru_cache(maxsize=REMEMBERED)
def outputs_of(
    call: ApplyCall, mesh: jax.sharding.Mesh, structure: Any, avals: tuple[jax.ShapeDtypeStruct, ...]
) -> NamedOutputs:
    """Names, shapes and dtypes of the outputs of a batch."""
    return NamedOutputs.unchecked(run_batches.eval_shape(call, mesh, *structure.unflatten(avals)))


@partial(jax.jit, static_argnames=("call", "mesh", "shared"))
def first_of_both(
    call: ApplyCall,
    mesh: jax.sharding.Mesh,
    shared: int,
    params: PyTree,
    rows: Any,
    whole: Any,
    keys: Any,
    usual: list[Array],
) -> tuple[list[Array], list[Array]]:
    """The first outputs of a batch that has run, and those of another batch."""
    other = jax.tree.leaves(run_batches(call, mesh, params, rows, whole, keys))
    return [leaf[:shared] for leaf in usual], [leaf[:shared] for leaf in other]


def refuse_traced(tree: PyTree) -> None:
    """Refuses arrays that are traced, so that they have no values.

    Raises:
        TypeError: a leaf is traced.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            "a batched kernel function was called inside jit, grad or vmap; its loop over batches runs outside, so "
            "call it there, or use the unbatched kernel function inside."
        )
