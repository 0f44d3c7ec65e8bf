"""Every example through the network once: the outputs of one side of a kernel, batch by batch."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._static import Static
from .._trees import arrays_alone
from .._typing import PyTree, as_jax_takes_it
from ._apply import REMEMBERED, ApplyCall, Avals, first_rows, on_batches, outputs_of, refuse_traced
from ._arrays import ArrayBackend
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
from ._keys import KEYS, keys_of_batches
from ._outputs import Held, HeldLayout, NamedOutputs, refuse_other_rows

WHOLE = ("state", *KEYS)
"""The keyword arguments that are never cut into batches."""


class NetworkOutputs:
    """The outputs of one side of a kernel, computed by forward passes as they are asked for.

    Attributes:
        argument: the argument that the inputs were passed as, for messages.
        n: the number of examples.
        batch_rows: the number of examples in a forward pass, over all devices.
    """

    argument: str
    n: int
    batch_rows: int

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
        self._fold_keys, self._check = fold, check and not (self.n == self.batch_rows == batch_size)
        self._checked: set[tuple[int, ...] | None] = set()
        self._mesh = jax.sharding.Mesh(np.asarray(devices), ("devices",), axis_types=(AxisType.Auto,))
        self._sort_leaves(f, x, kwargs, {*WHOLE, *shared})
        self._waits = hold_numpy(jax.tree.leaves((params, self._rows, self._whole)))
        everywhere = NamedSharding(self._mesh, PartitionSpec()) if len(devices) > 1 else devices[0]
        self._params, self._whole[:] = _placed((arrays_alone(params), self._whole), everywhere)

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
        y = outputs_of(self._call, self._mesh, self._avals)
        refuse_other_rows(y, self.batch_rows // self._mesh.size, self.argument, self._mesh.size)
        leaves = (jax.ShapeDtypeStruct((self.n, *leaf.shape[1:]), leaf.dtype) for leaf in y.leaves)
        return NamedOutputs(y.structure, y.paths, tuple(leaves))

    @cached_property
    def _avals(self) -> Avals:
        rows = [
            jax.ShapeDtypeStruct((self.batch_rows, *leaf.shape[1:]), as_jax_takes_it(leaf.dtype)) for leaf in self._rows
        ]
        return Avals.of((self._params, rows, self._whole, self._keys_of(0)))

    def held(self, rows: Range, layout: HeldLayout, arrays: ArrayBackend, on_rows: Callable[[int], None]) -> Held:
        """Runs the network on a block; see :meth:`OutputSource.held`."""
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
            held = held or arrays.empty([self._like(layout, k) for k in layout.leaves])
            held = arrays.write(held, parts, first - origin, orders)
        return Held(held or [], True, rows[0] - origin)

    def batches(self, rows: Range, on_rows: Callable[[int], None]) -> Iterator[tuple[int, list[Array]]]:
        """The outputs of each batch of a range, with the number of its first example, while the next batch runs."""
        return self._batches(self._call, *rows, True, on_rows)

    def _like(self, layout: HeldLayout, k: int) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an array with room for every block: for whole batches, and for whole tiles."""
        rows, before = min(layout.block_rows, self.n), 0
        if layout.block_rows < self.n and layout.block_rows % self.batch_rows:
            before = self.batch_rows - 1
        room = max(_rounded_up(before + rows, self.batch_rows), before + _rounded_up(rows, layout.tile_rows))
        leaf, order = self.outputs.leaves[k], layout.orders[k]
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
        cut = self._cut(rows, self._examples_of(numbers[0]))
        for index in numbers:
            first = index * rows
            leaves = jax.tree.leaves(self._run(call, cut, index))
            if self._check and call.keep not in self._checked:
                self._checked.add(call.keep)
                self._refuse_dependence(call, first, index, leaves)
            if index + 1 in numbers:
                cut = self._cut(rows, self._examples_of(index + 1))
            jax.block_until_ready(before)
            before = min(leaves, key=lambda leaf: leaf.size)
            running.append((first, self._on_first_device(leaves)))
            on_rows(min(rows, self.n - first))
            while len(running) > waits:
                yield running.popleft()
        if self._waits:
            jax.block_until_ready(before)
        yield from running

    def _examples_of(self, index: int) -> Range:
        first = index * self.batch_rows
        return first, min(first + self.batch_rows, self.n)

    def _on_first_device(self, leaves: list[Array]) -> list[Array]:
        return jax.device_put(leaves, self._mesh.devices.flat[0]) if self._mesh.size > 1 else leaves

    def _cut(self, rows: int, *ranges: Range) -> list[Any]:
        """The examples of the ranges; the last one is repeated until there are ``rows`` of them."""
        on_device = [leaf for leaf in self._rows if isinstance(leaf, jax.Array)]
        taken = iter(_take(on_device, _numbers(rows, ranges)) if on_device else ())
        return [next(taken) if isinstance(leaf, jax.Array) else self._moved(leaf, rows, ranges) for leaf in self._rows]

    def _moved(self, leaf: Any, rows: int, ranges: Sequence[Range]) -> Any:
        """Examples of an array in host memory or on the disk, which begin to move to the device."""
        parts = [np.asarray(leaf[start:stop]) for start, stop in ranges]
        missing = rows - sum(len(part) for part in parts)
        if missing:
            parts.append(np.broadcast_to(parts[-1][-1:], (missing, *parts[-1].shape[1:])))
        cut = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return jax.device_put(cut, self._mesh.devices.flat[0]) if self._mesh.size == 1 else cut

    def _keys_of(self, index: int) -> list[Array]:
        count = self._mesh.size
        if self._fold_keys:
            return [keys_of_batches(key, index * count, count) for key in self._keys]
        return [key[None] for key in self._keys]

    def _run(self, call: ApplyCall, rows: list[Any], index: int) -> PyTree:
        y = on_batches(call, self._mesh)(self._params, rows, self._whole, self._keys_of(index))
        refuse_traced(y)
        return y

    def _refuse_dependence(self, call: ApplyCall, first: int, index: int, leaves: list[Array]) -> None:
        """Refuses an ``f`` whose outputs depend on their batch, and warns of one that rounding changes much.

        See :func:`traced_errors`. Where another size of the batch changes the outputs, the neighbours are changed in a
        batch of the usual size, too, because some models depend on them in large batches only.
        """
        key = call, self._mesh, self._avals
        if key in _INDEPENDENT:
            return
        names = self.outputs.names if call.keep is None else [self.outputs.names[k] for k in call.keep]
        size = self.batch_rows // self._mesh.size
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

    def _errors_of_neighbours(
        self, call: ApplyCall, first: int, index: int, width: int
    ) -> tuple[list[float], list[np.ndarray]]:
        """How far the first example differs next to itself and next to others, in batches of one size; its outputs."""
        rows, here = width * self._mesh.size, (first, first + 1)
        others = (max(self.n - rows + 1, 0), self.n)
        both = [self._run(call, self._cut(rows, *ranges), index) for ranges in ((here,), (here, others))]
        alone, next_to_others = (first_rows(1, jax.tree.leaves(y)) for y in both)
        errors = [host_error(a, b, exactness) for a, b in zip(alone, next_to_others, strict=True)]
        return errors, next_to_others

    def _errors_of_size(self, call: ApplyCall, first: int, index: int, leaves: list[Array], few: int) -> list[float]:
        """How far the first examples of a batch that has run differ in a batch of ``few``."""
        count, size = self._mesh.size, self.batch_rows // self._mesh.size
        rows = self._cut(few * count, (first, min(first + few * count, self.n)))
        self._refuse_other_outputs(rows, size, few, index)
        other = jax.tree.leaves(self._run(call, rows, index))
        both = (first_rows(min(few, size), y) for y in (leaves, other))
        return [host_error(a, b, tolerance) for a, b in zip(*both, strict=True)]

    def _refuse_other_outputs(self, rows: list[Any], size: int, few: int, index: int) -> None:
        arrays = self._params, rows, self._whole, self._keys_of(index)
        y = NamedOutputs.unchecked(on_batches(self._call, self._mesh).eval_shape(*arrays))
        refuse_other_outputs(self.outputs, size, y, few, self.argument)
        refuse_other_rows(y, few, self.argument, self._mesh.size)


def _placed(tree: PyTree, where: Any) -> PyTree:
    """The arrays of a tree on a device, or on all devices of a mesh."""
    leaves = jax.tree.leaves(tree)
    # Putting hundreds of arrays where they are already takes as long as a small kernel.
    if isinstance(where, jax.Device) and all(isinstance(a, jax.Array) and a.devices() == {where} for a in leaves):
        return tree
    return jax.device_put(tree, where)


_INDEPENDENT: OrderedDict[Any, bool] = OrderedDict()
"""The calls whose outputs were found not to depend on the other examples in the batch, which are not checked again."""


@jax.jit
def _take(leaves: list[Array], examples: Array) -> list[Array]:
    return [leaf[examples] for leaf in leaves]


def _numbers(rows: int, ranges: Sequence[Range]) -> np.ndarray:
    """The numbers of the examples of the ranges, the last one repeated."""
    numbers = np.full(rows, ranges[-1][1] - 1, np.int32)
    filled = 0
    for start, stop in ranges:
        numbers[filled : filled + stop - start] = np.arange(start, stop)
        filled += stop - start
    return numbers


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _on_one_device_or_host(leaf: Any) -> Any:
    """An input that can be sliced: one that is spread over devices comes to the host first."""
    return np.asarray(leaf) if isinstance(leaf, jax.Array) and len(leaf.devices()) > 1 else leaf
