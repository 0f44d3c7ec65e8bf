"""Every decision about sizes, made before a kernel starts: forward passes, blocks, tiles, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .._tables import as_text, human
from ._axes import Contraction, Role
from ._contract import accumulation_dtype
from ._inputs import Range, ranges
from ._nngp import KernelFn, LeafPair
from ._outputs import NamedOutputs

if TYPE_CHECKING:
    from rich.table import Table

_ACCELERATOR_TILE_ROWS = 2048
# The columns of an array whose width is a power of two share lines of a CPU's cache, so this is no power of two.
_CPU_TILE_ROWS = 560


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
        flops: the floating-point operations for each pair of examples that is contracted.
    """

    name: str
    contraction: Contraction
    role: Role
    mirror: tuple[int, ...] | None
    shape: tuple[int, ...]
    dtype: Any
    flops: int

    @property
    def batch_axes(self) -> int:
        """How many axes of the kernel count examples."""
        return {"paired": 2, "diagonal": 1, "traced": 0}[self.role]

    @property
    def cell(self) -> int:
        """The bytes of the kernel for each pair of examples."""
        return _nbytes(self.shape[self.batch_axes :], self.dtype)


@dataclass(frozen=True)
class KernelPlan:
    """All decisions about a batched kernel, and what it costs; ``print(plan)`` shows it as a table.

    Attributes:
        n1: examples of ``x1``.
        n2: examples of ``x2``; None if ``x2`` is None.
        batch_rows: examples in a forward pass, over all devices.
        block_rows: examples whose outputs are held at once on a side. If that is not all of them, the other examples
            run through the network again for each block.
        tile_rows: rows and columns of a tile of the kernel.
        row_bytes: bytes of the outputs of one example, on the side where that is more.
        orders: the transposition of each output into the axes that its contraction reads, for ``x1`` and for ``x2``.
        pairs: the kernels, by the places of their outputs.
    """

    n1: int
    n2: int | None
    batch_rows: int
    block_rows: int
    tile_rows: int
    row_bytes: int
    orders: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    pairs: dict[LeafPair, PlannedKernel]

    @property
    def symmetric(self) -> bool:
        """Whether ``x2`` is None, so that one half of the kernel mirrors the other one."""
        return self.n2 is None

    def blocks(self) -> Iterator[tuple[Range, list[Range]]]:
        """Each block of ``x1`` with the blocks of ``x2`` that it meets."""
        rows = ranges(0, self.n1, self.block_rows)
        columns = rows if self.n2 is None else ranges(0, self.n2, self.block_rows)
        crossed = any(pair.role == "paired" for pair in self.pairs.values())
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
                if meet and not mirrored:
                    yield i, j

    @property
    def forward_rows(self) -> int:
        """Examples that go through the network: N, or N + M, if the outputs fit into memory."""
        total = 0
        for block, columns in self.blocks():
            total += self._run_for(block, self.n1)
            total += sum(self._run_for(c, self.n2 or self.n1) for c in columns if not self.symmetric or c != block)
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
        for rows, blocks in self.blocks():
            for columns in blocks:
                for pair in self.pairs:
                    for i, j in self.tiles(pair, rows, columns):
                        yield pair, i, j

    @property
    def output_bytes(self) -> int:
        """Bytes of the outputs that are held at once."""
        sides = [self.n1] if self.n2 is None else [self.n1, self.n2]
        held = sum(min(self.block_rows, examples) for examples in sides)
        if self.symmetric and self.block_rows < self.n1:
            held += self.block_rows
        return held * self.row_bytes

    @property
    def kernel_bytes(self) -> int:
        """Bytes of the kernels."""
        return sum(_nbytes(pair.shape, pair.dtype) for pair in self.pairs.values())

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
        table.add_row("rows through the network", f"{self.forward_rows:,}{again}")
        table.add_row("rows in a forward pass", f"{self.batch_rows:,}")
        table.add_row("outputs held", human(self.output_bytes, "B"))
        table.add_row("contraction", human(self.flops, "FLOP"))
        tile = human(self.tile_bytes, "B")
        table.add_row("tiles", f"{self.tile_count:,} of {self.tile_rows:,} rows, {tile}")
        table.add_row("kernels", human(self.kernel_bytes, "B"))
        return table

    def __str__(self) -> str:
        return as_text(self.__rich__())


def make_plan(
    kernel_fn: KernelFn,
    outputs1: NamedOutputs,
    outputs2: NamedOutputs | None,
    *,
    batch_rows: int,
    budget: int,
    tile_rows: int | None = None,
    tile_bytes: int | None = None,
    one_tile: bool = False,
) -> KernelPlan:
    """Decides how the outputs of ``x1`` and ``x2`` become kernels.

    Args:
        kernel_fn: says which axes are traced and which are kept as diagonals.
        outputs1: shapes and dtypes of the outputs of ``x1``.
        outputs2: shapes and dtypes of the outputs of ``x2``; None if ``x2`` is None.
        batch_rows: examples in a forward pass.
        budget: bytes that outputs may take.
        tile_rows: rows of a tile; None chooses them.
        tile_bytes: bytes of a tile if its rows are chosen; None for the tile that contracts fastest.
        one_tile: whether a kernel with another ``x2`` may be a single tile, which needs not be put together.

    Raises:
        ValueError: the axes are wrong, or pair the batch axis with a different axis.
    """
    others = outputs1 if outputs2 is None else outputs2
    contractions = kernel_fn.contractions(outputs1, others)
    pairs = {
        (a, b): _planned(outputs1, a, others, b, contraction, contractions[b, a] if outputs2 is None else None)
        for (a, b), contraction in contractions.items()
    }
    row_bytes = max(sum(_nbytes(leaf.shape[1:], leaf.dtype) for leaf in side.leaves) for side in (outputs1, others))
    n1, n2 = outputs1.leaves[0].shape[0], None if outputs2 is None else outputs2.leaves[0].shape[0]
    block_rows = most = max(n1, n2 or 0)
    if (n1 + (n2 or 0)) * row_bytes > budget:
        block_rows = min(most, max(batch_rows, budget // (2 * row_bytes)))
    tiles_are_chunks = tile_rows is not None or tile_bytes is not None
    if tile_rows is None and tile_bytes:
        tile_rows = min(block_rows, *(max(1, math.isqrt(tile_bytes // pair.cell)) for pair in pairs.values()))
    elif tile_rows is None:
        tile_rows = min(_fastest_tile_rows(pair, block_rows, one_tile and n2 is not None) for pair in pairs.values())
    if block_rows < most:
        block_rows = _whole_units(block_rows, batch_rows, tile_rows, tiles_are_chunks)
    orders1, orders2 = zip(*(contractions[a, a].operand_orders() for a in range(len(outputs1.leaves))), strict=True)
    return KernelPlan(n1, n2, batch_rows, block_rows, tile_rows, row_bytes, (orders1, orders2), pairs)


def _whole_units(block_rows: int, batch_rows: int, tile_rows: int, tiles_are_chunks: bool) -> int:
    """Rows of a block that holds whole batches and whole tiles, if both fit.

    If they do not fit, whole batches run fewer rows twice, but a tile that is a chunk of a file must be whole.
    """
    unit = math.lcm(batch_rows, tile_rows)
    if unit > block_rows:
        unit = tile_rows if tiles_are_chunks else batch_rows
    return max(block_rows // unit, 1) * unit


def _planned(
    outputs1: NamedOutputs,
    a: int,
    outputs2: NamedOutputs,
    b: int,
    contraction: Contraction,
    mirror: Contraction | None,
) -> PlannedKernel:
    leaf1, leaf2 = outputs1.leaves[a], outputs2.leaves[b]
    name = outputs1.names[a] if a == b else f"{outputs1.names[a]} with {outputs2.names[b]}"
    role = contraction.batch_role()
    if role is None:
        raise ValueError(
            f"trace_axes and diagonal_axes pair batch axis 0 with another axis for {name}, with shapes {leaf1.shape} "
            f"and {leaf2.shape}; batches need axis 0 to meet axis 0."
        )
    shape = contraction.shape(leaf1.shape, leaf2.shape)
    dtype = accumulation_dtype(leaf1.dtype, leaf2.dtype)
    terms = contraction.size // (leaf1.shape[0] if role == "traced" else 1)
    transposition = None if mirror is None else contraction.mirrored(mirror)
    kernel = PlannedKernel(name, contraction.of_operands(), role, transposition, shape, dtype, 0)
    return replace(kernel, flops=2 * terms * math.prod(shape[kernel.batch_axes :]))


def _fastest_tile_rows(kernel: PlannedKernel, rows: int, one_tile: bool) -> int:
    """Rows of a tile: enough to keep the processor busy, few enough to save half of a symmetric kernel."""
    order = kernel.contraction.order
    transposed = order != tuple(range(len(order)))
    if one_tile and not transposed:
        return rows
    side = _CPU_TILE_ROWS if jax.default_backend() == "cpu" else _ACCELERATOR_TILE_ROWS
    numbers = side**2 * (3 if transposed else 1)
    tile = max(1, math.isqrt(numbers * jnp.dtype(kernel.dtype).itemsize // kernel.cell))
    return tile if rows > 2 * tile else rows


def _nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize
