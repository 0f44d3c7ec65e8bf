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

from ._contract import contract, summed_product
from ._devices import compiler_options
from ._nngp import LeafPair
from ._overflow import may_overflow
from ._plan import KernelPlan, LayerGroup, PlannedKernel
from ._symmetric import is_whole_product_best, panels, product_with_itself, whole_product

Kernels = dict[LeafPair, Array]
Tiles = tuple[tuple[int, int], np.ndarray, np.ndarray]
"""Rows and columns of a tile, where tiles of rows start, and for each of these where its tiles of columns start."""
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
    def compiled(self) -> Callable[..., tuple[Kernels, Array]]:
        """:meth:`checked` as a compiled function; the kernels so far must not be used afterwards."""
        return jax.jit(self.checked, donate_argnums=0, compiler_options=compiler_options())

    def checked(
        self, kernels: Kernels | None, y1: list[Array], y2: list[Array] | None, places: Sequence[Any] | Array = (0,) * 4
    ) -> tuple[Kernels, Array]:
        """What :meth:`__call__` returns, and whether products of outputs might overflow."""
        sides = self._ordered(y1, 0), self._ordered(y1, 0) if y2 is None else self._ordered(y2, 1)
        rows, columns = (
            {k: self._view(sides[side], side, k, places[2 + side]).all() for k in self.group.leaves}
            for side in range(2)
        )
        is_one = y2 is None and self.own
        warning = may_overflow(self.plan, self.group.pairs, rows, rows if is_one else columns)
        return self(kernels, y1, y2, places), warning

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
        return _in_place(old, kernel, part, (start,))

    def _paired(
        self, state: Mapping[LeafPair, Array | None], pair: LeafPair, y1: View, y2: View, starts: tuple[Any, Any]
    ) -> Kernels:
        """A kernel of all pairs of examples, with its mirror image."""
        kernel, precision, mirror = self.plan.pairs[pair], self.plan.precision, pair[::-1]
        own = self.own and pair[0] == pair[1] and kernel.mirror is not None
        if own and is_whole_product_best(kernel, y1.size, self.plan.tile_rows, precision):
            part = whole_product(y1.all(), kernel, precision)
            return {pair: _in_place(state[pair], kernel, part, starts)}

        sizes, starts1, starts2 = self._tiles(kernel, own)
        if kernel.mirror is None and starts2.size == 1:
            part = contract(y1.all(), y2.all(), kernel.contraction, precision)
            return {pair: _in_place(state[pair], kernel, part, starts)}
        arrays = {k: _or_new(state.get(k), self.plan.pairs[k]) for k in ({pair, mirror} if kernel.mirror else {pair})}
        if not own:
            return self._beside(arrays, pair, y1, y2, starts, (sizes, starts1, starts2))
        if jax.default_backend() != "cpu":
            return self._in_panels(arrays, pair, y1, starts, sizes[0])
        arrays = self._beside(arrays, pair, y1, y2, starts, (sizes, starts1, starts2))

        def alone(arrays: Kernels, k: Any) -> Kernels:
            i = _at(starts1, k)
            part = whole_product(y1.rows(i, sizes[0]), kernel, precision)
            return {pair: _put(arrays[pair], part, (starts[0] + i, starts[1] + i))}

        # Tiles on the diagonal come last: they overwrite what the tiles beside them, if these overlap, leave unequal.
        return _loop(alone, arrays, len(starts1), starts2.size)

    def _beside(
        self, arrays: Kernels, pair: LeafPair, y1: View, y2: View, starts: tuple[Any, Any], tiles: Tiles
    ) -> Kernels:
        """All tiles that are no mirror images of themselves."""
        contraction, precision = self.plan.pairs[pair].contraction, self.plan.precision
        (rows, columns), starts1, starts2 = tiles

        def row(arrays: Kernels, k: Any) -> Kernels:
            # A loop copies what it slices, so the rows are sliced once for all columns.
            i, of_row = _at(starts1, k), _at(starts2, k)
            y = y1.rows(i, rows)

            def tile(arrays: Kernels, m: Any) -> Kernels:
                j = _at(of_row, m)
                part = contract(y, y2.rows(j, columns), contraction, precision)
                return self._put_both(arrays, pair, part, starts, (i, j))

            return _loop(tile, arrays, starts2.shape[1], starts2.size)

        return _loop(row, arrays, len(starts1), starts2.size)

    def _in_panels(self, arrays: Kernels, pair: LeafPair, y: View, starts: tuple[Any, Any], height: int) -> Kernels:
        """A symmetric kernel in a few large products."""
        kernel = self.plan.pairs[pair]

        def product(i: int, rows: int, j: int, columns: int) -> Array:
            return summed_product(y.rows(i, rows), y.rows(j, columns), kernel.contraction, self.plan.precision)

        for i, square, right in panels(product, kernel, y.size, height):
            arrays = {pair: _put(arrays[pair], square, (starts[0] + i, starts[1] + i))}
            if right is not None:
                arrays = self._put_both(arrays, pair, right, starts, (i, i + height))
        return arrays

    def _put_both(
        self, arrays: Kernels, pair: LeafPair, part: Array, starts: tuple[Any, Any], at: tuple[Any, Any]
    ) -> Kernels:
        """Writes a part and its mirror image."""
        arrays = arrays | {pair: _put(arrays[pair], part, (starts[0] + at[0], starts[1] + at[1]))}
        if (order := self.plan.pairs[pair].mirror) is None:
            return arrays
        # A block of its own holds both, wherever its columns start.
        mirrored = starts if self.own else starts[::-1]
        image = part.transpose(order).conj()
        return arrays | {pair[::-1]: _put(arrays[pair[::-1]], image, (mirrored[0] + at[1], mirrored[1] + at[0]))}

    def _tiles(self, kernel: PlannedKernel, own: bool) -> Tiles:
        """The size of all tiles, where their rows start, and for each of these where their columns start.

        All tiles have one size, so the last one of a row may overlap the one before it. In a symmetric kernel, each
        tile of rows meets the half of the others that follow it; the first one follows the last.
        """
        rows, columns, tile = self.rows, self.columns, self.plan.tile_rows
        is_one_best = jax.default_backend() != "cpu" or (kernel.mirror is None and not kernel.is_transposed)
        if is_one_best and not own:
            return (rows, columns), np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
        sizes = min(tile, rows), min(tile, columns)
        starts1, starts2 = (
            np.asarray([min(i, whole - size) for i in range(0, whole, size)], np.int32)
            for whole, size in zip((rows, columns), sizes, strict=True)
        )
        if not own:
            return sizes, starts1, np.tile(starts2, (len(starts1), 1))
        count = len(starts1)
        following = np.arange(count)[:, None] + np.arange(1, count // 2 + 1)
        return sizes, starts1, starts1[following % count]


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


def _in_place(old: Array | None, planned: PlannedKernel, part: Array, starts: Sequence[Any]) -> Array:
    """The kernel with a part, which may be all of it."""
    return part if part.shape == planned.shape else _put(_or_new(old, planned), part, starts)


def _put(kernel: Array, part: Array, starts: Sequence[Any]) -> Array:
    """Writes a part whose first axes, those of examples, start there."""
    indices = [*starts, *[0] * (kernel.ndim - len(starts))]
    return lax.dynamic_update_slice(kernel, part, [jnp.asarray(index, jnp.int32) for index in indices])


def _at(numbers: Any, k: Any) -> Any:
    """The k-th of some numbers; a number, unless k is traced."""
    if isinstance(k, int) and isinstance(numbers, np.ndarray):
        return numbers[k] if numbers.ndim > 1 else int(numbers[k])
    return jnp.asarray(numbers)[k]


def _loop(step: Callable[[Kernels, Any], Kernels], kernels: Kernels, count: int, tiles: int) -> Kernels:
    """Carries out a step some times, within a loop over so many tiles."""
    if tiles > UNROLLED:
        return lax.fori_loop(0, count, lambda k, kernels: step(kernels, k), kernels)
    for k in range(count):
        kernels = step(kernels, k)
    return kernels
