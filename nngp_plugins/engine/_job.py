"""What a batched kernel will do, decided before it starts: passes of the network, tiles, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .._tables import as_text, human
from ._axes import Plan, Role
from ._contract import accumulation_dtype
from ._empirical import KernelFn, Outputs
from ._memory import nbytes

if TYPE_CHECKING:
    from rich.table import Table

Range = tuple[int, int]
# rows of a tile by default, on accelerators and on a CPU: there no power of two, whose columns share cache lines
TILE = 2048, 560


@dataclass(frozen=True)
class Pair:
    """One kernel of a job.

    Attributes:
        name: of the output, or of the two of them.
        plan: how a tile of it is contracted, from outputs in the job's ``orders``.
        role: what becomes of the batch axis.
        mirror: with ``x2=None``, the transposition of a tile into its mirror image.
        shape: of the kernel.
        dtype: of the kernel.
        flops: of the contraction, for each pair of examples that it takes.
    """

    name: str
    plan: Plan
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
        """Bytes of the kernel for each pair of examples."""
        return nbytes(self.shape[self.batch_axes :], self.dtype)


@dataclass(frozen=True)
class Job:
    """What a batched kernel costs; ``print(job)`` shows it as a table.

    Attributes:
        n1: examples of ``x1``.
        n2: examples of ``x2``; None where that is None.
        batch_rows: examples in a forward pass, over all devices.
        block_rows: examples whose outputs are held at once on a side; where that is fewer than there are, the others
            run again for each block.
        tile_rows: rows and columns of a tile of the kernel.
        row_bytes: bytes of the outputs of one example, of the side with more.
        orders: of the axes in which each output is kept, as its contraction reads them; of ``x1`` and of ``x2``.
        pairs: the kernels, by the places of their outputs.
    """

    n1: int
    n2: int | None
    batch_rows: int
    block_rows: int
    tile_rows: int
    row_bytes: int
    orders: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    pairs: dict[tuple[int, int], Pair]

    @property
    def symmetric(self) -> bool:
        """Whether ``x2`` is None, so that half of the kernel mirrors the other."""
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

    def tiles(self, pair: tuple[int, int], rows: Range, columns: Range) -> Iterator[tuple[Range, Range]]:
        """The tiles of a kernel to contract where two blocks meet, but for mirror images."""
        for i in ranges(*rows, self.tile_rows):
            for j in ranges(*columns, self.tile_rows):
                meet = i == j or self.pairs[pair].role == "paired"
                mirrored = self.symmetric and (j < i or (i == j and pair[1] < pair[0]))
                if meet and not mirrored:
                    yield i, j

    @property
    def forward_rows(self) -> int:
        """Examples that go through the network: N, or N + M, where the outputs fit."""
        total = 0
        for block, columns in self.blocks():
            total += self._run_for(block, self.n1)
            total += sum(self._run_for(c, self.n2 or self.n1) for c in columns if not self.symmetric or c != block)
        return total

    def _run_for(self, block: Range, examples: int) -> int:
        """Examples in the batches that a block takes, whole ones."""
        first, last = block[0] // self.batch_rows, -(-block[1] // self.batch_rows)
        return min(last * self.batch_rows, examples) - first * self.batch_rows

    @property
    def tile_count(self) -> int:
        """Tiles to contract, over all kernels."""
        return sum(1 for _ in self._all_tiles())

    @property
    def flops(self) -> int:
        """Floating-point operations of the contraction."""
        total = 0
        for pair, (start1, stop1), (start2, stop2) in self._all_tiles():
            examples = (stop1 - start1) * (stop2 - start2 if self.pairs[pair].role == "paired" else 1)
            total += examples * self.pairs[pair].flops
        return total

    def _all_tiles(self) -> Iterator[tuple[tuple[int, int], Range, Range]]:
        for rows, blocks in self.blocks():
            for columns in blocks:
                for pair in self.pairs:
                    for i, j in self.tiles(pair, rows, columns):
                        yield pair, i, j

    @property
    def output_bytes(self) -> int:
        """Bytes of the outputs that are held at once."""
        sides = [self.n1] if self.n2 is None else [self.n1, self.n2]
        held = min(self.block_rows, sides[0]) + (min(self.block_rows, sides[1]) if len(sides) > 1 else 0)
        if self.symmetric and self.block_rows < self.n1:
            held += self.block_rows
        return held * self.row_bytes

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
        from rich.table import Table  # here, for it takes as long to import as all of this package

        table = Table(title="kernel job", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        examples = f"{self.n1:,}" + (", x2 = x1" if self.symmetric else f" and {self.n2:,}")
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


def ranges(start: int, stop: int, size: int) -> list[Range]:
    """``start`` to ``stop`` in pieces of ``size``; the last may be smaller."""
    return [(low, min(low + size, stop)) for low in range(start, stop, size)]


def make_job(
    kernel_fn: KernelFn,
    outputs1: Outputs,
    outputs2: Outputs | None,
    *,
    batch_rows: int,
    budget: int,
    tile_rows: int | None = None,
    tile_bytes: int | None = None,
    whole: bool = False,
) -> Job:
    """Decides how the outputs of ``x1`` and ``x2`` (None: of ``x1`` again) become kernels.

    Args:
        kernel_fn: the axes.
        outputs1: shapes and dtypes of the outputs of ``x1``.
        outputs2: the same of ``x2``.
        batch_rows: examples in a forward pass.
        budget: bytes that outputs may take.
        tile_rows: rows of a tile; None chooses.
        tile_bytes: bytes of a tile of its choice; None for what contracts fastest.
        whole: whether a kernel with another ``x2`` may be a single tile, which saves putting it together.

    Raises:
        ValueError: the axes are wrong, or pair the batch axis with another one.
    """
    others = outputs1 if outputs2 is None else outputs2
    plans = kernel_fn.plans(outputs1, others)
    pairs = {
        (a, b): _pair(outputs1, a, others, b, leaf_plan, plans[b, a] if outputs2 is None else None)
        for (a, b), leaf_plan in plans.items()
    }
    row_bytes = max(sum(nbytes(leaf.shape[1:], leaf.dtype) for leaf in side.leaves) for side in (outputs1, others))
    n1, n2 = outputs1.leaves[0].shape[0], None if outputs2 is None else outputs2.leaves[0].shape[0]
    block_rows = most = max(n1, n2 or 0)
    if (n1 + (n2 or 0)) * row_bytes > budget:
        block_rows = min(most, max(batch_rows, budget // (2 * row_bytes)))
    aligned = tile_rows is not None or tile_bytes is not None
    if tile_rows is None:
        whole = whole and n2 is not None
        if tile_bytes:
            tile_rows = min(block_rows, *(max(1, math.isqrt(tile_bytes // pair.cell)) for pair in pairs.values()))
        else:
            tile_rows = min(_tile_rows(pair, block_rows, whole) for pair in pairs.values())
    if block_rows < most:
        # whole batches and whole tiles; where these do not fit, a tile that is a chunk must be whole, else a batch
        unit = math.lcm(batch_rows, tile_rows)
        unit = unit if unit <= block_rows else tile_rows if aligned else batch_rows
        block_rows = max(block_rows // unit, 1) * unit
    orders1, orders2 = zip(*(plans[a, a].operands() for a in range(len(outputs1.leaves))), strict=True)
    return Job(n1, n2, batch_rows, block_rows, tile_rows, row_bytes, (orders1, orders2), pairs)


def _pair(outputs1: Outputs, a: int, outputs2: Outputs, b: int, leaf_plan: Plan, mirror: Plan | None) -> Pair:
    leaf1, leaf2 = outputs1.leaves[a], outputs2.leaves[b]
    name = outputs1.names[a] if a == b else f"{outputs1.names[a]} with {outputs2.names[b]}"
    role = leaf_plan.batch_role()
    if role is None:
        raise ValueError(
            f"trace_axes and diagonal_axes pair batch axis 0 with another axis for {name}, with shapes {leaf1.shape} "
            f"and {leaf2.shape}; batches need axis 0 to meet axis 0."
        )
    shape = leaf_plan.shape(leaf1.shape, leaf2.shape)
    dtype = accumulation_dtype(leaf1.dtype, leaf2.dtype)
    terms = leaf_plan.size // (leaf1.shape[0] if role == "traced" else 1)
    transposition = None if mirror is None else leaf_plan.mirrored(mirror)
    pair = Pair(name, leaf_plan.of_operands(), role, transposition, shape, dtype, 0)
    return replace(pair, flops=2 * terms * math.prod(shape[pair.batch_axes :]))


def _tile_rows(pair: Pair, rows: int, whole: bool) -> int:
    """Rows of a tile: enough to keep the processor busy, few enough to save half of a symmetric kernel."""
    transposed = pair.plan.order != tuple(range(len(pair.plan.order)))
    if whole and not transposed:
        return rows
    numbers = TILE[jax.default_backend() == "cpu"] ** 2 * (3 if transposed else 1)
    tile = max(1, math.isqrt(numbers * jnp.dtype(pair.dtype).itemsize // pair.cell))
    return tile if rows > 2 * tile else rows
