"""What is decided about a kernel before it starts, and what it will cost: the plan that ``nngp.plan`` returns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from .._show import as_html
from .._tables import as_text, human
from ._axes import Contraction, Role
from ._inputs import Range, ranges
from ._nngp import LeafPair
from ._part import WHOLE, Part, square_of, tiles_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class PlannedKernel:
    """One kernel of a plan.

    Attributes:
        name: the name of its output, or of its two outputs.
        contraction: how a tile of it is contracted, from outputs in the plan's ``orders``.
        role: what becomes of the batch axis.
        mirror: with ``x2=None``, the transposition of a tile into its mirror image.
        shape: the shape of the kernel.
        dtype: the dtype of the kernel.
        input_dtype: the dtype of the outputs, promoted to one.
        flops: the floating-point operations for each pair of examples that is contracted.
    """

    name: str
    contraction: Contraction
    role: Role
    mirror: tuple[int, ...] | None
    shape: tuple[int, ...]
    dtype: Any
    input_dtype: Any
    flops: int

    @property
    def batch_axes(self) -> int:
        """How many axes of the kernel count examples."""
        return {"paired": 2, "diagonal": 1, "traced": 0}[self.role]

    @property
    def is_transposed(self) -> bool:
        """Whether the product has its axes in another order than the kernel."""
        order = self.contraction.order
        return order != tuple(range(len(order)))

    @property
    def cell(self) -> int:
        """The bytes of the kernel for each pair of examples."""
        return nbytes(self.shape[self.batch_axes :], self.dtype)


@dataclass(frozen=True)
class LayerGroup:
    """Outputs that are computed and held together; the network runs once more for each group.

    Attributes:
        leaves: the places of the outputs.
        pairs: the kernels that are made of them.
        row_bytes: bytes of these outputs of one example, on the side where that is more.
        block_rows: examples whose outputs are held at once on a side. If that is not all of them, the other examples
            run through the network again for each block.
    """

    leaves: tuple[int, ...]
    pairs: tuple[LeafPair, ...]
    row_bytes: int
    block_rows: int


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """All decisions about a batched kernel, and what it costs; ``print(plan)`` shows it as a table.

    Attributes:
        n1: examples of ``x1``.
        n2: examples of ``x2``; None if ``x2`` is None.
        batch_rows: examples in a forward pass, over all devices.
        tile_rows: rows and columns of a tile of the kernel.
        orders: the transposition of each output into the axes that its contraction reads, for ``x1`` and for ``x2``.
        pairs: the kernels, by the places of their outputs.
        groups: which outputs are held together.
        precision: the precision of the contraction.
        part: the share of one process, which rows, tiles and operations are those of.
        seconds: what the forward passes and the contraction take at the rates of a short probe; None if not measured.
        devices: how many devices share the forward passes, and how many the contraction; what plans say of rows and
            operations is of all of them together.
    """

    n1: int
    n2: int | None
    batch_rows: int
    tile_rows: int
    orders: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    pairs: dict[LeafPair, PlannedKernel]
    groups: tuple[LayerGroup, ...]
    precision: Any = "highest"
    part: Part = WHOLE
    seconds: tuple[float, float] | None = None
    devices: tuple[int, int] = (1, 1)

    def of_part(self, part: Part) -> KernelPlan:
        """The share of one process; its blocks are no larger than its squares, so that other rows need not run."""
        return self if part == self.part else _of_part(self, part)

    def on_devices(self, network: int, contraction: int) -> KernelPlan:
        """The same plan for so many devices."""
        return self if (network, contraction) == self.devices else _on_devices(self, (network, contraction))

    @cached_property
    def own_tiles(self) -> frozenset[tuple[int, int]]:
        """The tiles of the part, by their places."""
        return tiles_of(self.part, self._grid, self.symmetric)

    @property
    def _grid(self) -> tuple[int, int]:
        """The tiles along both axes."""
        return -(-self.n1 // self.tile_rows), -(-(self.n2 or self.n1) // self.tile_rows)

    @property
    def symmetric(self) -> bool:
        """Whether ``x2`` is None, so that one half of the kernel mirrors the other one."""
        return self.n2 is None

    @property
    def block_rows(self) -> int:
        """Examples whose outputs are held at once on a side, in the group where these are fewest."""
        return min(group.block_rows for group in self.groups)

    @property
    def row_bytes(self) -> int:
        """Bytes of the outputs of one example, on the side where that is more."""
        return sum(group.row_bytes for group in self.groups)

    def blocks(self, group: LayerGroup) -> Iterator[tuple[Range, list[Range]]]:
        """Each block of ``x1`` with the blocks of ``x2`` that it meets."""
        rows = ranges(0, self.n1, group.block_rows)
        columns = rows if self.n2 is None else ranges(0, self.n2, group.block_rows)
        crossed = any(self.pairs[pair].role == "paired" for pair in group.pairs)
        for i, block in enumerate(rows):
            if not crossed:
                yield block, [block]
            else:
                yield block, columns[i:] if self.symmetric else columns

    def tiles(self, pair: LeafPair, rows: Range, columns: Range) -> Iterator[tuple[Range, Range]]:
        """The tiles of a kernel that are contracted for two blocks; mirror images are left out."""
        for i in ranges(*rows, self.tile_rows):
            for j in ranges(*columns, self.tile_rows):
                meet = i == j or self.pairs[pair].role == "paired"
                mirrored = self.symmetric and (j < i or (i == j and pair[1] < pair[0]))
                if meet and not mirrored and self._owns(i, j):
                    yield i, j

    def _owns(self, i: Range, j: Range) -> bool:
        return self.part.is_all or (i[0] // self.tile_rows, j[0] // self.tile_rows) in self.own_tiles

    @property
    def forward_rows(self) -> int:
        """Examples that go through the network: N, or N + M, if the outputs fit into memory."""
        return sum(self._rows_of(group) for group in self.groups)

    def _rows_of(self, group: LayerGroup) -> int:
        total = 0
        for block, columns in self.blocks(group):
            meets = [c for c in columns if any(any(self.tiles(pair, block, c)) for pair in group.pairs)]
            total += self._run_for(block, self.n1) if meets else 0
            total += sum(self._run_for(c, self.n2 or self.n1) for c in meets if not self.symmetric or c != block)
        return total

    def _run_for(self, block: Range, examples: int) -> int:
        """Examples in the whole batches that a block needs."""
        first, last = block[0] // self.batch_rows, -(-block[1] // self.batch_rows)
        return min(last * self.batch_rows, examples) - first * self.batch_rows

    @property
    def tile_count(self) -> int:
        """How many tiles are contracted, over all kernels."""
        return sum(1 for _ in self._all_tiles())

    @property
    def flops(self) -> int:
        """Floating-point operations of all contractions."""
        total = 0
        for pair, (start1, stop1), (start2, stop2) in self._all_tiles():
            examples = (stop1 - start1) * (stop2 - start2 if self.pairs[pair].role == "paired" else 1)
            total += examples * self.pairs[pair].flops
        return total

    def _all_tiles(self) -> Iterator[tuple[LeafPair, Range, Range]]:
        for group in self.groups:
            for rows, blocks in self.blocks(group):
                for columns in blocks:
                    for pair in group.pairs:
                        for i, j in self.tiles(pair, rows, columns):
                            yield pair, i, j

    @property
    def output_bytes(self) -> int:
        """Bytes of the outputs that are held at once."""
        return max(self._held_by(group) for group in self.groups)

    def _held_by(self, group: LayerGroup) -> int:
        sides = [self.n1] if self.n2 is None else [self.n1, self.n2]
        held = sum(min(group.block_rows, examples) for examples in sides)
        if self.symmetric and group.block_rows < self.n1:
            held += group.block_rows
        return held * group.row_bytes

    @property
    def feature_bytes(self) -> int:
        """Bytes of the outputs of all examples, if they were stored."""
        return (self.n1 + (self.n2 or 0)) * self.row_bytes

    @property
    def kernel_bytes(self) -> int:
        """Bytes of the kernels."""
        return sum(nbytes(pair.shape, pair.dtype) for pair in self.pairs.values())

    @property
    def tile_bytes(self) -> int:
        """Bytes of the largest tile."""
        rows = min(self.tile_rows, self.n1), min(self.tile_rows, self.n2 or self.n1)
        return max(pair.cell * math.prod(rows[: pair.batch_axes]) for pair in self.pairs.values())

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title="kernel job", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        examples = f"{self.n1:,}, x2 = x1" if self.symmetric else f"{self.n1:,} and {self.n2:,}"
        again = "" if self.forward_rows <= self.n1 + (self.n2 or 0) else " (outputs do not fit: some run again)"
        table.add_row("examples", examples)
        if not self.part.is_all:
            table.add_row("part", f"{self.part.index} of {self.part.count}")
        table.add_row("rows through the network", f"{self.forward_rows:,}{again}")
        table.add_row("rows in a forward pass", f"{self.batch_rows:,}")
        table.add_row("outputs held", human(self.output_bytes, "B"))
        if len(self.groups) > 1:
            table.add_row("groups of outputs, held in turn", f"{len(self.groups):,}")
        table.add_row("contraction", human(self.flops, "FLOP"))
        tile = human(self.tile_bytes, "B")
        table.add_row("tiles", f"{self.tile_count:,} of {self.tile_rows:,} rows, {tile}")
        if max(self.devices) > 1:
            rows, flops = -(-self.forward_rows // self.devices[0]), self.flops / self.devices[1]
            alone = "" if self.devices[1] > 1 else " by the first one"
            table.add_row(f"each of {self.devices[0]} devices", f"{rows:,} rows, {human(flops, 'FLOP')}{alone}")
        table.add_row("features", human(self.feature_bytes, "B"))
        table.add_row("kernels", human(self.kernel_bytes, "B"))
        if self.seconds is not None:
            forward, contraction = (f"{seconds:,.3g} s" for seconds in self.seconds)
            table.add_row("time at the measured rate", f"{forward} for the network, {contraction} for the contraction")
        return table

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def __repr__(self) -> str:
        rows, kernels = self.n2 or self.n1, len(self.pairs)
        what = f"{kernels} kernel{'s' * (kernels != 1)} of {self.n1:,} × {rows:,} examples"
        return f"KernelPlan({what}, {human(self.flops, 'FLOP')}, {human(self.kernel_bytes, 'B')})"

    def _repr_html_(self) -> str:
        return as_html(self.__rich__())


@lru_cache(maxsize=64)
def _on_devices(plan: KernelPlan, devices: tuple[int, int]) -> KernelPlan:
    return replace(plan, devices=devices)


@lru_cache(maxsize=64)
def _of_part(plan: KernelPlan, part: Part) -> KernelPlan:
    groups = plan.groups
    # Of two or three parts, each needs most rows.
    if part.count >= 4:
        rows, columns = plan._grid
        most = plan.tile_rows * square_of(part, rows * columns // (2 if plan.symmetric else 1))
        groups = tuple(replace(group, block_rows=min(group.block_rows, most)) for group in groups)
    return replace(plan, groups=groups, part=part)


def nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    """The bytes of an array."""
    return math.prod(shape) * jnp.dtype(dtype).itemsize
