"""A block of kernels as one compiled program: every tile of every output, put in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ._contract import contract
from ._devices import compiler_options
from ._nngp import LeafPair
from ._plan import KernelPlan, LayerGroup, PlannedKernel
from ._symmetric import is_whole_product_best, panels, product_with_itself, whole_product

Kernels = dict[LeafPair, Array]
# So few tiles are written out one by one. More of them are a loop, whose compilation does not grow.
UNROLLED = 6


class View(NamedTuple):
    """Some rows of outputs.

    Attributes:
        y: the outputs.
        axis: the axis that counts examples.
        first: the first of these rows; it may be traced.
        size: how many there are.
    """

    y: Array
    axis: int
    first: Any
    size: int

    def rows(self, start: Any, size: int) -> Array:
        """Rows from ``start`` on."""
        if size == self.y.shape[self.axis]:
            return self.y
        return lax.dynamic_slice_in_dim(self.y, self.first + start, size, self.axis)

    def all(self) -> Array:
        """All of these rows."""
        return self.rows(0, self.size)


@dataclass(frozen=True)
class BlockProgram:
    """The kernels of a group of outputs, on a block of rows and a block of columns.

    Attributes:
        plan: the plan.
        group: the outputs.
        rows: examples in the block of rows.
        columns: examples in the block of columns.
        own: whether the columns are the rows, so that half of a kernel mirrors the other half.
        in_order: whether the outputs of both sides are transposed into the axes that contractions read.
    """

    plan: KernelPlan
    group: LayerGroup
    rows: int
    columns: int
    own: bool
    in_order: tuple[bool, bool]

    @cached_property
    def compiled(self) -> Callable[..., Kernels]:
        """:meth:`__call__` as a compiled function; the kernels so far must not be used afterwards."""
        return jax.jit(self.__call__, donate_argnums=0, compiler_options=compiler_options())

    def __call__(
        self, kernels: Kernels | None, y1: list[Array], y2: list[Array] | None, places: Sequence[Any] | Array = (0,) * 4
    ) -> Kernels:
        """Computes the block, within a compiled function.

        Args:
            kernels: the kernels so far; None makes new ones.
            y1: the outputs of the rows.
            y2: those of the columns; None for ``y1``.
            places: the numbers of the first examples of the rows and of the columns, and the rows of ``y1`` and ``y2``
                that hold them.
        """
        sides = self._ordered(y1, 0), self._ordered(y1, 0) if y2 is None else self._ordered(y2, 1)
        state: dict[LeafPair, Array | None] = {pair: kernels[pair] if kernels else None for pair in self.group.pairs}
        for pair in self.group.pairs:
            kernel = self.plan.pairs[pair]
            if kernel.mirror is not None and self.own and pair[0] > pair[1]:
                continue  # It is the mirror image of another kernel, which writes both.
            rows, columns = (self._view(sides[side], side, pair[side], places[2 + side]) for side in range(2))
            of_kind = self._paired if kernel.role == "paired" else self._unpaired
            state |= of_kind(state, pair, rows, columns, (places[0], places[1]))
        return state  # type: ignore[return-value]

    def _view(self, leaves: list[Array], side: int, k: int, first: Any) -> View:
        axis = self.plan.orders[side][k].index(0)
        return View(leaves[self.group.leaves.index(k)], axis, first, (self.rows, self.columns)[side])

    def _ordered(self, leaves: list[Array], side: int) -> list[Array]:
        if self.in_order[side]:
            return leaves
        return [y.transpose(self.plan.orders[side][k]) for k, y in zip(self.group.leaves, leaves, strict=True)]

    def _unpaired(
        self, state: Mapping[LeafPair, Array | None], pair: LeafPair, y1: View, y2: View, starts: tuple[Any, Any]
    ) -> Kernels:
        """A kernel whose batch axis is traced or kept as a diagonal, with its mirror image."""
        kernel = self.plan.pairs[pair]
        parts: Kernels = {}
        if kernel.mirror is not None and pair[0] == pair[1]:
            parts[pair] = product_with_itself(y1.all(), kernel, self.plan.precision)
        else:
            parts[pair] = contract(y1.all(), y2.all(), kernel.contraction, self.plan.precision)
            if kernel.mirror is not None:
                parts[pair[::-1]] = parts[pair].transpose(kernel.mirror).conj()
        return {k: self._joined(state[k], k, part, starts[0]) for k, part in parts.items()}

    def _joined(self, old: Array | None, pair: LeafPair, part: Array, start: Any) -> Array:
        kernel = self.plan.pairs[pair]
        if kernel.role == "traced":
            return part if old is None else old + part
        return part if part.shape == kernel.shape else _put(_or_new(old, kernel), part, (start,))

    def _paired(
        self, state: Mapping[LeafPair, Array | None], pair: LeafPair, y1: View, y2: View, starts: tuple[Any, Any]
    ) -> Kernels:
        """A kernel of all pairs of examples, with its mirror image."""
        kernel, precision, mirror = self.plan.pairs[pair], self.plan.precision, pair[::-1]
        own = self.own and pair[0] == pair[1] and kernel.mirror is not None
        if own and is_whole_product_best(kernel, y1.size, self.plan.tile_rows, precision):
            part = whole_product(y1.all(), kernel, precision)
            return {pair: part if part.shape == kernel.shape else _put(_or_new(state[pair], kernel), part, starts)}

        def product(i: Any, rows: int, j: Any, columns: int) -> Array:
            return contract(y1.rows(i, rows), y2.rows(j, columns), kernel.contraction, precision)

        (rows, columns), first, second = self._tiles(kernel, own)
        if kernel.mirror is None and len(first) == 1:
            part = product(0, rows, 0, columns)
            return {pair: part if part.shape == kernel.shape else _put(_or_new(state[pair], kernel), part, starts)}
        arrays = {k: _or_new(state[k], self.plan.pairs[k]) for k in ({pair, mirror} if kernel.mirror else {pair})}

        def put(arrays: Kernels, part: Array, i: Any, j: Any) -> Kernels:
            arrays = arrays | {pair: _put(arrays[pair], part, (starts[0] + i, starts[1] + j))}
            if kernel.mirror is not None:
                image = part.transpose(kernel.mirror).conj()
                arrays |= {mirror: _put(arrays[mirror], image, (starts[1] + j, starts[0] + i))}
            return arrays

        if own and jax.default_backend() != "cpu":
            for start, square, right in panels(product, kernel, rows=y1.size, height=rows):
                arrays = {pair: _put(arrays[pair], square, (starts[0] + start, starts[1] + start))}
                arrays = arrays if right is None else put(arrays, right, start, start + rows)
            return arrays

        def alone(arrays: Kernels, i: Any, j: Any) -> Kernels:
            part = whole_product(y1.rows(i, rows), kernel, precision)
            return {pair: _put(arrays[pair], part, (starts[0] + i, starts[1] + i))}

        # Tiles on the diagonal come last: they overwrite what the tiles beside them, if these overlap, leave unequal.
        arrays = _loop(lambda arrays, i, j: put(arrays, product(i, rows, j, columns), i, j), arrays, first)
        return _loop(alone, arrays, second)

    def _tiles(self, kernel: PlannedKernel, own: bool) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
        """The size of all tiles, and where they start: those that are no mirror images of themselves, then the others.

        All tiles have one size, so the last one of a row may overlap the one before it.
        """
        rows, columns, tile = self.rows, self.columns, self.plan.tile_rows
        is_one_best = jax.default_backend() != "cpu" or (kernel.mirror is None and not kernel.is_transposed)
        if is_one_best and not own:
            return (rows, columns), np.zeros((1, 2), np.int32), np.zeros((0, 2), np.int32)
        sizes = min(tile, rows), min(tile, columns)
        starts = [
            [min(i, whole - size) for i in range(0, whole, size)]
            for whole, size in zip((rows, columns), sizes, strict=True)
        ]
        places = [(i, j) for i in starts[0] for j in starts[1] if not own or i < j]
        diagonal = [(i, i) for i in starts[0]] if own else []
        apart, alone = (np.asarray(some, np.int32).reshape(-1, 2) for some in (places, diagonal))
        return sizes, apart, alone


@lru_cache(maxsize=256)
def block_program(
    plan: KernelPlan, group: LayerGroup, rows: int, columns: int, own: bool, in_order: tuple[bool, bool]
) -> BlockProgram:
    """The program of a block, which is compiled once."""
    return BlockProgram(plan, group, rows, columns, own, in_order)


def of_given(plan: KernelPlan, y1: Sequence[Array], y2: Sequence[Array] | None) -> Kernels:
    """The kernels of outputs that exist already, within a compiled function."""
    columns = plan.n1 if plan.n2 is None else plan.n2
    program = BlockProgram(plan, plan.groups[0], plan.n1, columns, plan.symmetric, (False, False))
    return program(None, list(y1), None if y2 is None else list(y2))


def _or_new(kernel: Array | None, planned: PlannedKernel) -> Array:
    return lax.empty(planned.shape, planned.dtype) if kernel is None else kernel


def _put(kernel: Array, part: Array, starts: Sequence[Any]) -> Array:
    """Writes a part whose first axes, those of examples, start there."""
    indices = [*starts, *[0] * (kernel.ndim - len(starts))]
    return lax.dynamic_update_slice(kernel, part, [jnp.asarray(index, jnp.int32) for index in indices])


def _loop(step: Callable[[Kernels, Any, Any], Kernels], kernels: Kernels, places: np.ndarray) -> Kernels:
    """Carries out a step for each tile."""
    if len(places) <= UNROLLED:
        for i, j in places.tolist():
            kernels = step(kernels, i, j)
        return kernels

    def of_number(k: Array, kernels: Kernels) -> Kernels:
        i, j = jnp.asarray(places)[k]
        return step(kernels, i, j)

    return lax.fori_loop(0, len(places), of_number, kernels)
