"""Every example through the network once: the outputs of one side of a kernel, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._static import Static
from .._typing import PyTree
from ._arrays import ArrayBackend, Placement
from ._independence import NEXT_TO_OTHERS, refuse_dependence, refuse_other_outputs, smaller_batch
from ._inputs import batch_of, ranges
from ._keys import KEYS, keys_of_batches
from ._outputs import NamedOutputs, refuse_other_rows

WHOLE = ("state", *KEYS)
"""The keyword arguments that are never cut into batches."""


@dataclass(frozen=True)
class ApplyCall:
    """A call of ``f`` without its arrays: hashable, so that every batch reuses one compiled function.

    Attributes:
        f: the apply function.
        structure: the structure of ``(x, kwargs)``.
        kinds: the kind of each leaf: ``rows`` are cut into batches, ``whole`` ones are the same for all batches,
            ``keys`` are folded for each batch, and ``static`` ones are no arrays.
        statics: the static leaves.
    """

    f: Static
    structure: Any
    kinds: tuple[str, ...]
    statics: Static

    def __call__(self, params: PyTree, rows: Sequence[Any], whole: Sequence[Any], keys: Sequence[Any]) -> PyTree:
        """The outputs of ``f``."""
        leaves = {"rows": iter(rows), "whole": iter(whole), "keys": iter(keys), "static": iter(self.statics.value)}
        x, kwargs = self.structure.unflatten(next(leaves[kind]) for kind in self.kinds)
        y = NamedOutputs.of(self.f.value(params, x, **kwargs))
        return y.structure.unflatten(y.leaves)


@partial(jax.jit, static_argnames=("call", "mesh"))
def _run_batches(call: ApplyCall, mesh: jax.sharding.Mesh, params: PyTree, rows: Any, whole: Any, keys: Any) -> PyTree:
    """``f`` on one batch a device, each with a key of its own."""

    def on_device(params: PyTree, rows: Any, whole: Any, keys: Any) -> PyTree:
        return call(params, rows, whole, [key[0] for key in keys])

    if mesh.size == 1:
        return on_device(params, rows, whole, keys)
    split, same = PartitionSpec("devices"), PartitionSpec()
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(same, split, same, split), out_specs=split, check_vma=False)
    return mapped(params, rows, whole, keys)


class NetworkOutputs:
    """The outputs of one side of a kernel, computed by forward passes as they are asked for.

    Attributes:
        argument: the argument that the inputs were passed as, for messages.
        n: the number of examples.
        batch_rows: the number of examples in a forward pass, over all devices.
    """

    def __init__(
        self,
        argument: str,
        f: Callable[..., PyTree],
        params: PyTree,
        x: PyTree,
        kwargs: dict[str, Any],
        *,
        batch_size: int,
        devices: Sequence[jax.Device],
        fold: bool,
        check: bool,
        shared: Collection[str] = (),
    ):
        self.argument, self.n = argument, batch_of(argument, x)
        self.batch_rows = batch_size * len(devices)
        self._fold_keys, self._check_next = fold, check and not (self.n == self.batch_rows == batch_size)
        self._mesh = jax.sharding.Mesh(np.asarray(devices), ("devices",), axis_types=(AxisType.Auto,))
        self._sort_leaves(f, x, kwargs, {*WHOLE, *shared})
        everywhere = NamedSharding(self._mesh, PartitionSpec()) if len(devices) > 1 else devices[0]
        self._params = jax.device_put(params, everywhere)
        self._whole[:] = jax.device_put(self._whole, everywhere)

    def _sort_leaves(self, f: Callable[..., PyTree], x: PyTree, kwargs: dict[str, Any], whole: set[str]) -> None:
        """Sorts the leaves of ``x`` and of the keyword arguments into the kinds of an :class:`ApplyCall`."""
        self._rows: list[Any] = []
        self._whole: list[Any] = []
        self._keys: list[Any] = []
        statics: list[Any] = []
        leaves_of = {"rows": self._rows, "whole": self._whole, "keys": self._keys, "static": statics}
        kinds: list[str] = []
        paths, structure = jax.tree_util.tree_flatten_with_path((x, kwargs))
        for path, leaf in paths:
            kind = "rows" if path[0].idx == 0 else self._kind(path[1].key, leaf, whole)
            kinds.append(kind)
            leaves_of[kind].append(_on_one_device_or_host(leaf) if kind == "rows" else leaf)
        self._call = ApplyCall(Static(f), structure, tuple(kinds), Static(tuple(statics)))

    def _kind(self, name: str, leaf: Any, whole: set[str]) -> str:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return "static"
        if name in KEYS:
            return "keys"
        return "rows" if name not in whole and leaf.shape[:1] == (self.n,) else "whole"

    @cached_property
    def outputs(self) -> NamedOutputs:
        """Names, shapes and dtypes of the outputs of all examples; computes nothing."""
        structs = [
            jax.ShapeDtypeStruct((self.batch_rows, *leaf.shape[1:]), _as_jax_takes_it(leaf.dtype))
            for leaf in self._rows
        ]
        keys = [keys_of_batches(key, 0, self._mesh.size) for key in self._keys]
        y = NamedOutputs.unchecked(
            _run_batches.eval_shape(self._call, self._mesh, self._params, structs, self._whole, keys)
        )
        refuse_other_rows(y, self.batch_rows // self._mesh.size, self.argument, self._mesh.size)
        leaves = (jax.ShapeDtypeStruct((self.n, *leaf.shape[1:]), leaf.dtype) for leaf in y.leaves)
        return NamedOutputs(y.structure, y.paths, tuple(leaves))

    def tiles(
        self, start: int, stop: int, size: int, arrays: ArrayBackend, on_rows: Callable[[int], None]
    ) -> list[list[Any]]:
        """Runs the network; see :meth:`OutputSource.tiles`."""
        bounds = ranges(start, stop, size)
        likes = [
            [jax.ShapeDtypeStruct((high - low, *leaf.shape[1:]), leaf.dtype) for leaf in self.outputs.leaves]
            for low, high in bounds
        ]
        tiles: list[list[Any]] = [[None] * len(like) for like in likes]
        for first, leaves in self._batches(start, stop, on_rows):
            last = first + leaves[0].shape[0]
            for tile, like, (low, high) in zip(tiles, likes, bounds, strict=True):
                if low >= last or high <= first:
                    continue
                for k, leaf in enumerate(leaves):
                    inside = low <= first and last <= high
                    part = leaf if inside else leaf[max(low - first, 0) : high - first]
                    place = Placement((max(first - low, 0), *[0] * (part.ndim - 1)))
                    tile[k] = arrays.put(tile[k], like[k], part, place)
        return tiles

    def _batches(self, start: int, stop: int, on_rows: Callable[[int], None]) -> Iterator[tuple[int, list[Any]]]:
        """The outputs of each batch with the number of its first example, cut to ``start`` and ``stop``."""
        rows, before = self.batch_rows, None
        for index in range(start // rows, -(-stop // rows)):
            first = index * rows
            leaves = jax.tree.leaves(self._outputs_of(first, rows, index))
            if self._check_next:
                self._check_next = False
                self._refuse_dependence(first, index, leaves)
            # One batch runs while the next one is on its way; more would fill the device's memory.
            jax.block_until_ready(before)
            before = leaves
            on_rows(min(rows, self.n - first))
            low, high = max(start - first, 0), min(stop, self.n) - first
            leaves = [leaf if low == 0 and high >= rows else leaf[low:high] for leaf in leaves]
            if self._mesh.size > 1:
                leaves = jax.device_put(leaves, self._mesh.devices.flat[0])
            yield first + low, leaves

    def _outputs_of(self, first: int, rows: int, index: int) -> PyTree:
        """The outputs of ``rows`` examples; if there are fewer, copies of the last one fill the batch up."""
        cut = [_rows(leaf, rows, (first, min(first + rows, self.n))) for leaf in self._rows]
        return self._run(cut, index)

    def _run(self, rows: list[Any], index: int) -> PyTree:
        count = self._mesh.size
        if self._fold_keys:
            keys = [keys_of_batches(key, index * count, count) for key in self._keys]
        else:
            keys = [key[None] for key in self._keys]
        y = _run_batches(self._call, self._mesh, self._params, rows, self._whole, keys)
        refuse_traced(y)
        return y

    def _refuse_dependence(self, first: int, index: int, leaves: list[Array]) -> None:
        """Refuses an ``f`` whose outputs depend on the other examples in the batch.

        Compares the first outputs of a batch with those in a batch of another size. Noise may depend on that size, so
        with a key it compares an example next to itself with the same example next to others.
        """
        count, size = self._mesh.size, self.batch_rows // self._mesh.size
        if self._keys:
            shared, width = 1, max(size, 2)
            rows, here, ends = width * count, (first, first + 1), (max(self.n - width + 1, 0), self.n)
            leaves = jax.tree.leaves(self._run([_rows(leaf, rows, here) for leaf in self._rows], index))
            others = self._run([_rows(leaf, rows, here, ends) for leaf in self._rows], index)
            compared = NEXT_TO_OTHERS
        else:
            few = smaller_batch(size)
            others, shared = self._outputs_of(first, few * count, index), min(few, size)
            compared = f"between batches of {size} and {few}"
            named = NamedOutputs.unchecked(others)
            refuse_other_outputs(self.outputs, size, named, few, self.argument)
            refuse_other_rows(named, few, self.argument, count)
        refuse_dependence(
            self.outputs.names, leaves, jax.tree.leaves(others), rows=min(shared, size), compared=compared
        )


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


def _as_jax_takes_it(dtype: Any) -> Any:
    """The dtype of an array once JAX takes it: float32 for float64, unless 64 bits are switched on."""
    return jax.dtypes.canonicalize_dtype(dtype) if isinstance(dtype, np.dtype) else dtype


def _on_one_device_or_host(leaf: Any) -> Any:
    """An input that can be sliced: one that is spread over devices comes to the host first."""
    return np.asarray(leaf) if isinstance(leaf, jax.Array) and len(leaf.devices()) > 1 else leaf


def _rows(leaf: Any, rows: int, *ranges: tuple[int, int]) -> Any:
    """The examples of the ranges; the last one is repeated until there are ``rows`` of them."""
    on_device = isinstance(leaf, jax.Array)
    parts = [
        lax.dynamic_slice_in_dim(leaf, start, stop - start) if on_device else np.asarray(leaf[start:stop])
        for start, stop in ranges
    ]
    xp: Any = jnp if on_device else np
    missing = rows - sum(part.shape[0] for part in parts)
    parts.append(xp.broadcast_to(parts[-1][-1:], (missing, *parts[-1].shape[1:])))
    parts = [part for part in parts if part.shape[0]]
    return xp.concatenate(parts) if len(parts) > 1 else parts[0]
