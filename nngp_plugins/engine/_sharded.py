"""A block of kernels of outputs that several devices share, as one compiled program in which all of them work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from ._devices import compiler_options
from ._meetings import Meetings
from ._nngp import LeafPair
from ._overflow import may_overflow
from ._plan import KernelPlan, LayerGroup, PlannedKernel
from ._program import BlockProgram, Kernels, View
from ._ring import Ring


@dataclass(frozen=True)
class ShardedProgram:
    """The kernels of a group of outputs on all examples, by all devices of a ring.

    Each device has a block of rows of the outputs, and makes these rows of the kernels. Blocks visit each other. Half
    of a symmetric kernel is computed, and then sent to where its mirror image is.

    Attributes:
        plan: the plan.
        group: the outputs.
        ring: the devices, on a mesh without explicit axes.
        rows: the examples of each device on both sides. The last devices may have rows that are no examples.
        in_order: whether the outputs of both sides are transposed into the axes that contractions read.
    """

    plan: KernelPlan
    group: LayerGroup
    ring: Ring
    rows: tuple[int, int]
    in_order: tuple[bool, bool]

    @cached_property
    def compiled(self) -> Callable[..., tuple[Kernels, Array]]:
        """The kernels of outputs, and whether products of outputs might overflow, as a compiled function."""
        return jax.jit(self._traced, compiler_options=compiler_options())

    def axes(self, side: int) -> list[int]:
        """The axis of each output that counts examples."""
        orders = self.plan.orders[side]
        return [orders[k].index(0) if self.in_order[side] else 0 for k in self.group.leaves]

    def _traced(self, y1: list[Array], y2: list[Array] | None) -> tuple[Kernels, Array]:
        specs = [[self.ring.spec(axis) for axis in self.axes(side)] for side in range(2)]
        roles = {pair: self.plan.pairs[pair].role for pair in self.group.pairs}
        out_specs = {pair: PartitionSpec() if role == "traced" else self.ring.spec() for pair, role in roles.items()}
        if y2 is None:
            kernels = self.ring.map(lambda y: self._on_device(y, None), (specs[0],), out_specs)(y1)
        else:
            kernels = self.ring.map(self._on_device, tuple(specs), out_specs)(y1, y2)
        sides = [dict(zip(self.group.leaves, leaves, strict=True)) for leaves in (y1, y1 if y2 is None else y2)]
        return kernels, may_overflow(self.plan, self.group.pairs, *sides)

    def _on_device(self, y1: list[Array], y2: list[Array] | None) -> Kernels:
        """The rows of the kernels that one device makes of its blocks."""
        paired = [pair for pair in self.group.pairs if self.plan.pairs[pair].role == "paired"]
        others = [pair for pair in self.group.pairs if self.plan.pairs[pair].role != "paired"]
        kernels = self._unpaired(others, y1, y2) if others else {}
        if paired:
            symmetric = self.plan.symmetric and y2 is None
            kernels |= self._symmetric(paired, y1) if symmetric else self._rectangular(paired, y1, y2 or y1)
        return {pair: self._cut(pair, kernel) for pair, kernel in kernels.items()}

    def _cut(self, pair: LeafPair, kernel: Array) -> Array:
        columns = self.plan.n1 if self.plan.n2 is None else self.plan.n2
        return kernel[:, :columns] if self.plan.pairs[pair].role == "paired" else kernel

    def _symmetric(self, pairs: Sequence[LeafPair], own: list[Array]) -> Kernels:
        rows = self.rows[0]
        whole = rows, self.ring.size * rows
        places = 0, self.ring.columns(0, rows), 0, 0
        kernels = self._program(pairs, (rows, rows), whole, own=True)(self._empty(pairs), own, None, places)
        most = self.plan.tile_rows if jax.default_backend() == "cpu" else rows
        made: Kernels = Meetings(self.ring, rows, most, self._take, partial(self._with_image, pairs))(own, kernels)
        return made

    def _rectangular(self, pairs: Sequence[LeafPair], y1: list[Array], y2: list[Array]) -> Kernels:
        product = partial(self._product, pairs)
        kernels: Kernels = self.ring.rectangular(y1, y2, self.rows[1], self._empty(pairs), product)
        return kernels

    def _take(self, y: list[Array], start: Any, size: int) -> list[Array]:
        return [View(leaf, k, start, size).all() for leaf, k in zip(y, self.axes(0), strict=True)]

    def _with_image(self, pairs: Sequence[LeafPair], y1: list[Array], y2: list[Array]) -> tuple[Kernels, Kernels]:
        """The kernels of two different blocks, and their mirror images."""
        # The fewer rows come first: a CPU multiplies a few rows by many columns faster than the other way round.
        images = self._product(pairs, y2, y1)
        orders = {pair: self.plan.pairs[pair].mirror or () for pair in pairs}
        return {pair[::-1]: image.transpose(orders[pair]).conj() for pair, image in images.items()}, images

    def _product(self, pairs: Sequence[LeafPair], y1: list[Array], y2: list[Array]) -> Kernels:
        """The kernels of two blocks."""
        sizes = self._sizes(y1, y2)
        return self._program(pairs, sizes, sizes, own=False)(None, y1, y2)

    def _sizes(self, y1: list[Array], y2: list[Array]) -> tuple[int, int]:
        first, second = (min(y[0].shape[self.axes(k)[0]], self.rows[k]) for k, y in enumerate((y1, y2)))
        return first, second

    def _program(
        self, pairs: Sequence[LeafPair], sizes: tuple[int, int], of: tuple[int, int], *, own: bool
    ) -> BlockProgram:
        """The program of a block, within kernels of so many rows and columns. An ``own`` block mirrors itself."""
        plan = replace(self.plan, pairs={pair: self._of_size(pair, of, own) for pair in pairs})
        return BlockProgram(plan, replace(self.group, pairs=tuple(pairs)), *sizes, own, self.in_order)

    def _of_size(self, pair: LeafPair, of: tuple[int, int], own: bool) -> PlannedKernel:
        kernel = self.plan.pairs[pair]
        shape = (*of[: kernel.batch_axes], *kernel.shape[kernel.batch_axes :])
        return replace(kernel, shape=shape, mirror=kernel.mirror if own else None)

    def _empty(self, pairs: Sequence[LeafPair]) -> Kernels:
        whole = self.rows[0], self.ring.size * self.rows[1]
        planned = {pair: self._of_size(pair, whole, False) for pair in pairs}
        return {pair: lax.empty(kernel.shape, kernel.dtype) for pair, kernel in planned.items()}

    def _unpaired(self, pairs: Sequence[LeafPair], y1: list[Array], y2: list[Array] | None) -> Kernels:
        """Kernels whose batch axis is traced, which are sums over devices, or kept as a diagonal."""
        sides = [
            [self._examples(y, axis) for y, axis in zip(leaves, self.axes(side), strict=True)]
            for side, leaves in enumerate([y1] if y2 is None else [y1, y2])
        ]
        program = self._program(pairs, self.rows, self.rows, own=self.plan.symmetric)
        kernels = program(None, sides[0], sides[1] if len(sides) > 1 else None)
        traced = {pair for pair in pairs if self.plan.pairs[pair].role == "traced"}
        return {pair: self.ring.sum(kernel) if pair in traced else kernel for pair, kernel in kernels.items()}

    def _examples(self, y: Array, axis: int) -> Array:
        """An output with zeros in the rows that are no examples, which a sum must not count."""
        rows = self.rows[0]
        if rows * self.ring.size == self.plan.n1 and y.shape[axis] == rows:
            return y
        y = lax.slice_in_dim(y, 0, rows, axis=axis)
        number = self.ring.place() * rows + lax.broadcasted_iota(jnp.int32, y.shape, axis)
        return jnp.where(number < self.plan.n1, y, 0)


@lru_cache(maxsize=256)
def sharded_program(
    plan: KernelPlan, group: LayerGroup, ring: Ring, rows: tuple[int, int], in_order: tuple[bool, bool]
) -> ShardedProgram:
    """The program of a group, which is compiled once."""
    return ShardedProgram(plan, group, ring, rows, in_order)
