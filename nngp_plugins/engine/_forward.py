"""Every example through the network once: the outputs of one side of a kernel, batch by batch."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import Array

from .._meshes import back_on
from .._static import Static
from .._trees import arrays_alone
from .._typing import PyTree, as_jax_takes_it
from ._apply import REMEMBERED, ApplyCall, Avals, first_rows, on_batches, outputs_of, refuse_traced
from ._arrays import ArrayBackend, OnRing
from ._feed import Feed
from ._independence import (
    BatchErrors,
    exactness,
    host_error,
    refuse_other_outputs,
    smaller_batch,
    tolerance,
    warn_or_refuse,
    width_of_neighbours,
)
from ._inputs import Range, batch_of, hold_numpy
from ._keys import KEYS
from ._outputs import Held, HeldLayout, NamedOutputs, refuse_other_rows
from ._places import Places, is_on_mesh, on_one_device_or_host

WHOLE = ("state", *KEYS)
"""The keyword arguments that are never cut into batches."""


class NetworkOutputs(Feed):
    """The outputs of one side of a kernel, computed by forward passes as they are asked for.

    Attributes:
        argument: the argument that the inputs were passed as, for messages.
        n: the number of examples.
        batch_rows: the number of examples in a forward pass, over all devices.
        places: the devices.
    """

    argument: str

    def __init__(
        self,
        argument: str,
        f: Callable[..., PyTree],
        params: PyTree,
        x: PyTree,
        kwargs: dict[str, Any],
        *,
        batch_size: int,
        places: Places,
        fold: bool,
        check: bool,
        shared: Collection[str] = (),
    ):
        self.argument, self.n = argument, batch_of(argument, x)
        self.places, self.batch_rows = places, batch_size * places.count
        self._is_dealt = False
        self._is_on_mesh = places.is_shared and any(map(is_on_mesh, jax.tree.leaves(x))) and places.divides(self.n)
        at_once = self.n == self.batch_rows and (places.is_shared or places.count == 1)
        self._fold_keys, self._check = fold, check and not at_once
        self._checked: set[tuple[int, ...] | None] = set()
        self._sort_leaves(f, x, kwargs, {*WHOLE, *shared})
        self._waits = hold_numpy(jax.tree.leaves((params, self._rows, self._whole)))
        self._params, self._whole[:] = places.everywhere((arrays_alone(params), self._whole))

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
            if kind == "rows":
                leaf = self.places.sharded(leaf) if self._is_on_mesh else on_one_device_or_host(leaf)
            leaves_of[kind].append(leaf)
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
        y = outputs_of(self._call, self.places, self._avals)
        refuse_other_rows(y, self._size, self.argument, self.places.count)
        leaves = (jax.ShapeDtypeStruct((self.n, *leaf.shape[1:]), leaf.dtype) for leaf in y.leaves)
        return NamedOutputs(y.structure, y.paths, tuple(leaves))

    @cached_property
    def _avals(self) -> Avals:
        where = [self.places.sharding_of(leaf) for leaf in self._rows]
        rows = [
            jax.ShapeDtypeStruct((self.batch_rows, *y.shape[1:]), as_jax_takes_it(y.dtype), sharding=sharding)
            for y, sharding in zip(self._rows, where, strict=True)
        ]
        return Avals.of((self._params, rows, self._whole, self._keys_of(0)))

    def held(self, rows: Range, layout: HeldLayout, arrays: ArrayBackend, on_rows: Callable[[int], None]) -> Held:
        """Runs the network on a block; see :meth:`OutputSource.held`."""
        self._is_dealt = isinstance(arrays, OnRing)
        orders = [layout.orders[k] for k in layout.leaves]
        call = replace(self._call, keep=layout.leaves if len(layout.leaves) < len(self.outputs.leaves) else None)
        batches = self._batches(call, *rows, arrays.waits, on_rows)
        if self.n <= self.batch_rows:
            ((_, parts),) = batches
            return Held(arrays.keep(parts, orders), True, rows[0])
        origin = rows[0] // self.batch_rows * self.batch_rows
        held = None
        for first, parts in batches:
            # The compiler needs free memory on a GPU, to choose the fastest kernels. By now, it is done.
            held = held or arrays.empty([self._like(layout, k) for k in layout.leaves], orders)
            held = arrays.write(held, parts, first - origin, orders)
        return Held(held or [], True, rows[0] - origin)

    def batches(self, rows: Range, on_rows: Callable[[int], None]) -> Iterator[tuple[int, list[Array]]]:
        """The outputs of each batch of a range, with the number of its first example, while the next batch runs."""
        self._is_dealt = False
        return self._batches(self._call, *rows, True, on_rows)

    def _like(self, layout: HeldLayout, k: int) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an array with room for every block: for whole batches, and for whole tiles."""
        leaf, order = self.outputs.leaves[k], layout.orders[k]
        if self._is_dealt:
            shape = (_rounded_up(self.share, self._size) * self.places.count, *leaf.shape[1:])
            return jax.ShapeDtypeStruct(tuple(shape[axis] for axis in order), leaf.dtype)
        rows, before = min(layout.block_rows, self.n), 0
        if layout.block_rows < self.n and layout.block_rows % self.batch_rows:
            before = self.batch_rows - 1
        room = max(_rounded_up(before + rows, self.batch_rows), before + _rounded_up(rows, layout.tile_rows))
        shape = (room, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(tuple(shape[axis] for axis in order), leaf.dtype)

    def _batches(
        self, call: ApplyCall, start: int, stop: int, waits: bool, on_rows: Callable[[int], None]
    ) -> Iterator[tuple[int, list[Array]]]:
        """The outputs of each batch that a block needs, with the number of its first example.

        One batch runs while the inputs of the next one are on their way; more would fill the device's memory.

        Args:
            call: the call of ``f``.
            start: the first example of the block.
            stop: the one after its last.
            waits: whether the caller waits for outputs, so that the batch after them must have been started.
            on_rows: is told how many examples are done.
        """
        rows, running, before = self.batch_rows, deque[tuple[int, list[Array]]](), None
        numbers = range(start // rows, -(-stop // rows))
        batch = self._batch(numbers[0])
        for index in numbers:
            first = index * rows
            leaves = jax.tree.leaves(self._run(call, batch, index))
            if self._check and call.keep not in self._checked:
                self._checked.add(call.keep)
                self._refuse_dependence(call, first, index, leaves)
            if index + 1 in numbers:
                batch = self._batch(index + 1)
            jax.block_until_ready(before)
            before = min(leaves, key=lambda leaf: leaf.size)
            running.append((first, self._brought(leaves)))
            on_rows(min(rows, self.n - first))
            while len(running) > waits:
                yield running.popleft()
        if self._waits:
            jax.block_until_ready(before)
        yield from running

    def _run(self, call: ApplyCall, rows: list[Any], index: int) -> PyTree:
        keys = self._keys_of(index)
        with back_on(self.places.mesh_of_f):
            y = on_batches(call, self.places)(self._params, rows, self._whole, keys)
        refuse_traced(y)
        if self.places.is_shared:
            # What XLA chooses may differ from program to program.
            return jax.device_put(y, self.places.ring.automatic.sharding())
        # Without the mesh in their types.
        return y if self.places.mesh_of_f is None else jax.tree.map(lambda leaf: leaf.addressable_data(0), y)

    def _refuse_dependence(self, call: ApplyCall, first: int, index: int, leaves: list[Array]) -> None:
        """Refuses an ``f`` whose outputs depend on their batch, and warns of one that rounding changes much.

        See :func:`traced_errors`. Where another size of the batch changes the outputs, the neighbours are changed in a
        batch of the usual size, too, because some models depend on them in large batches only.
        """
        key = call, self.places, self._avals
        if key in _INDEPENDENT:
            return
        names = self.outputs.names if call.keep is None else [self.outputs.names[k] for k in call.keep]
        size = self._size
        width = width_of_neighbours(size, draws=bool(self._keys))
        neighbours, rows = self._errors_of_neighbours(call, first, index, width)
        sizes, compared = [0.0] * len(names), ""
        if not self._keys:
            few = smaller_batch(size)
            compared = f"between batches of {size} and {few}"
            sizes = self._errors_of_size(call, first, index, leaves, few)
            if any(sizes) and not any(neighbours) and size > 2:
                neighbours, _ = self._errors_of_neighbours(call, first, index, size)
        warn_or_refuse(names, map(BatchErrors, neighbours, sizes), compared)
        # Outputs that are zero, as those of a network with a zero head, tell nothing of those with other parameters.
        if all(row.any() for row in rows):
            _INDEPENDENT[key] = True
            if len(_INDEPENDENT) > REMEMBERED:
                _INDEPENDENT.popitem(last=False)

    @property
    def _at_once(self) -> tuple[int, int]:
        """The devices whose examples :meth:`_cut` takes at once, and how many there are."""
        return (1, self.share) if self._is_dealt and self._is_on_mesh else (self.places.count, self.n)

    def _errors_of_neighbours(
        self, call: ApplyCall, first: int, index: int, width: int
    ) -> tuple[list[float], list[np.ndarray]]:
        """How far the first example differs next to itself and next to others, in batches of one size; its outputs."""
        devices, examples = self._at_once
        rows, here = width * devices, (first, first + 1)
        others = (max(examples - rows + 1, 0), examples)
        both = [self._run(call, self._cut(rows, *ranges), index) for ranges in ((here,), (here, others))]
        alone, next_to_others = (first_rows(1, jax.tree.leaves(y)) for y in both)
        errors = [host_error(a, b, exactness) for a, b in zip(alone, next_to_others, strict=True)]
        return errors, next_to_others

    def _errors_of_size(self, call: ApplyCall, first: int, index: int, leaves: list[Array], few: int) -> list[float]:
        """How far the first examples of a batch that has run differ in a batch of ``few``."""
        (devices, examples), size = self._at_once, self._size
        rows = self._cut(few * devices, (first, min(first + few * devices, examples)))
        self._refuse_other_outputs(rows, size, few, index)
        other = jax.tree.leaves(self._run(call, rows, index))
        both = (first_rows(min(few, size), y) for y in (leaves, other))
        return [host_error(a, b, tolerance) for a, b in zip(*both, strict=True)]

    def _refuse_other_outputs(self, rows: list[Any], size: int, few: int, index: int) -> None:
        arrays = self._params, rows, self._whole, self._keys_of(index)
        with back_on(self.places.mesh_of_f):
            y = NamedOutputs.unchecked(on_batches(self._call, self.places).eval_shape(*arrays))
        refuse_other_outputs(self.outputs, size, y, few, self.argument)
        refuse_other_rows(y, few, self.argument, self.places.count)


_INDEPENDENT: OrderedDict[Any, bool] = OrderedDict()
"""The calls whose outputs were found not to depend on the other examples in the batch, which are not checked again."""


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
