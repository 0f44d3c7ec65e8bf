"""Every decision about sizes, made before a kernel starts: forward passes, groups of outputs, blocks, tiles, bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp

from .._static import Static
from ._axes import Contraction
from ._contract import accumulation_dtype
from ._nngp import KernelFn, LeafPair
from ._outputs import NamedOutputs
from ._plan import KernelPlan, LayerGroup, PlannedKernel, nbytes

ACCELERATOR_TILE_ROWS = 2048
# The columns of an array whose width is a power of two share lines of a CPU's cache, so this is no power of two.
CPU_TILE_ROWS = 560
# Free memory changes from call to call. Plans are kept by the budget in these steps.
BUDGET_STEP = 1 << 26


def refuse_sizes(batch_size: Any, device_count: Any, memory_budget: Any, tile_size: Any) -> None:
    """Refuses arguments of ``nngp.batch`` that are no sizes.

    Raises:
        ValueError: names one.
    """
    if not isinstance(batch_size, Integral) or batch_size < 0:
        raise ValueError(f"batch_size={batch_size!r} must be a number of examples, or 0 for all at once.")
    count: Any = device_count
    available = jax.local_device_count()
    if not isinstance(count, Integral) or not (count == -1 or 1 <= int(count) <= available):
        raise ValueError(f"device_count={count!r} must be -1 for all devices of this process or 1 to {available}.")
    budget: Any = memory_budget
    if budget is not None and (not isinstance(budget, Real) or not 1 <= float(budget) < math.inf):
        raise ValueError(f"memory_budget={budget!r} must be a positive number of bytes, or None.")
    if tile_size is not None and (not isinstance(tile_size, Integral) or tile_size < 1):
        raise ValueError(f"tile_size={tile_size!r} must be a positive number of examples, or None.")


def make_plan(
    kernel_fn: KernelFn,
    outputs1: NamedOutputs,
    outputs2: NamedOutputs | None,
    *,
    batch_rows: int,
    budget: int | None,
    tile_rows: int | None = None,
    tile_bytes: int | None = None,
    one_tile: bool = False,
    devices: int = 1,
) -> KernelPlan:
    """Decides how the outputs of ``x1`` and ``x2`` become kernels; the same question gets the same plan again.

    Args:
        kernel_fn: says which axes are traced and which are kept as diagonals.
        outputs1: the outputs of ``x1``, or their shapes and dtypes.
        outputs2: those of ``x2``; None if ``x2`` is None.
        batch_rows: examples in a forward pass.
        budget: bytes that outputs may take; None for outputs that exist already, which are taken as they are.
        tile_rows: rows of a tile; None chooses them.
        tile_bytes: bytes of a tile if its rows are chosen; None for the tile that contracts fastest.
        one_tile: whether a kernel with another ``x2`` may be a single tile, which needs not be put together.
        devices: how many devices contract, each its share of the rows.

    Raises:
        ValueError: the axes are wrong, or pair the batch axis with a different axis.
    """
    sides = [outputs.structs() for outputs in (outputs1, outputs2) if outputs is not None]
    if budget is not None:
        bytes_of_all = max(map(_row_bytes, sides)) * sum(side.leaves[0].shape[0] for side in sides)
        fits, steps = bytes_of_all <= budget, budget // BUDGET_STEP * BUDGET_STEP
        budget = None if fits else steps or budget
    options = (batch_rows, budget, tile_rows, tile_bytes, one_tile, devices)
    # The backend and the width of numbers decide, too, and either may change while a process runs.
    surroundings = jax.default_backend(), jnp.result_type(float)
    return _plan_of(surroundings, Static(kernel_fn), sides[0], sides[1] if len(sides) > 1 else None, *options)


@lru_cache(maxsize=64)
def _plan_of(
    surroundings: Any,
    kernel_fn: Static,
    outputs1: NamedOutputs,
    outputs2: NamedOutputs | None,
    batch_rows: int,
    budget: int | None,
    tile_rows: int | None,
    tile_bytes: int | None,
    one_tile: bool,
    devices: int,
) -> KernelPlan:
    others = outputs1 if outputs2 is None else outputs2
    contractions = kernel_fn.value.contractions(outputs1, others)
    pairs = {
        (a, b): _planned(outputs1, a, others, b, contraction, contractions[b, a] if outputs2 is None else None)
        for (a, b), contraction in contractions.items()
    }
    bytes_of = [max(map(_bytes_of, both)) for both in zip(outputs1.leaves, others.leaves, strict=True)]
    n1, n2 = outputs1.leaves[0].shape[0], None if outputs2 is None else outputs2.leaves[0].shape[0]
    sizes = _Sizes(n1, n2, batch_rows, budget, bytes_of)
    tile = _tile_rows(pairs, -(-sizes.rows_of(range(len(bytes_of))) // devices), tile_rows, tile_bytes, n2, one_tile)
    orders1, orders2 = zip(*(contractions[a, a].operand_orders() for a in range(len(bytes_of))), strict=True)

    def plan(groups: Sequence[Sequence[int]]) -> KernelPlan:
        made = [
            LayerGroup(
                tuple(leaves),
                tuple(pair for pair in pairs if pair[0] in leaves),
                sum(bytes_of[k] for k in leaves),
                sizes.block_of(leaves, tile, tiles_are_chunks=tile_rows is not None or tile_bytes is not None),
            )
            for leaves in groups
        ]
        return KernelPlan(n1, n2, batch_rows, tile, (orders1, orders2), pairs, tuple(made), kernel_fn.value.precision)

    together = plan([range(len(bytes_of))])
    if budget is None or kernel_fn.value.cross_terms:
        return together
    return min(together, plan(_groups(bytes_of, budget // (n1 + (n2 or 0)))), key=lambda made: made.forward_rows)


@dataclass(frozen=True)
class _Sizes:
    """What decides how many examples are held at once.

    Attributes:
        n1: examples of ``x1``.
        n2: examples of ``x2``; None if ``x2`` is None.
        batch_rows: examples in a forward pass.
        budget: bytes that outputs may take; None if that is no question.
        bytes_of: bytes of each output of an example.
    """

    n1: int
    n2: int | None
    batch_rows: int
    budget: int | None
    bytes_of: Sequence[int]

    def rows_of(self, leaves: Sequence[int]) -> int:
        """Examples of a side whose outputs of these leaves fit, and no fewer than those of a batch."""
        most, row_bytes = max(self.n1, self.n2 or 0), sum(self.bytes_of[k] for k in leaves)
        if self.budget is None or (self.n1 + (self.n2 or 0)) * row_bytes <= self.budget:
            return most
        return min(most, max(self.batch_rows, self.budget // (2 * row_bytes)))

    def block_of(self, leaves: Sequence[int], tile_rows: int, *, tiles_are_chunks: bool) -> int:
        """Examples of a side whose outputs of these leaves are held at once, in whole batches and tiles."""
        rows = self.rows_of(leaves)
        whole = rows == max(self.n1, self.n2 or 0)
        return rows if whole else _whole_units(rows, self.batch_rows, tile_rows, tiles_are_chunks)


def _groups(bytes_of: Sequence[int], most: int) -> list[list[int]]:
    """Neighbours together, as many as fit; outputs that do not fit alone are a group of their own.

    Outputs are in the order of their names. Where that is the order of the network, an early group needs only its first
    layers, because XLA drops what nothing needs.
    """
    groups: list[list[int]] = []
    held = most + 1
    for k, size in enumerate(bytes_of):
        if held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(k)
        held += size
    return groups


def _row_bytes(outputs: NamedOutputs) -> int:
    return sum(map(_bytes_of, outputs.leaves))


def _bytes_of(leaf: jax.ShapeDtypeStruct) -> int:
    """The bytes of an output of one example."""
    return nbytes(leaf.shape[1:], leaf.dtype)


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
    input_dtype = leaf1.dtype if leaf1.dtype == leaf2.dtype else dtype
    kernel = PlannedKernel(name, contraction.of_operands(), role, transposition, shape, dtype, input_dtype, 0)
    return replace(kernel, flops=2 * terms * math.prod(shape[kernel.batch_axes :]))


def _tile_rows(
    pairs: dict[LeafPair, PlannedKernel],
    rows: int,
    given: int | None,
    tile_bytes: int | None,
    n2: int | None,
    one_tile: bool,
) -> int:
    if given is not None:
        return given
    if tile_bytes:
        return min(rows, *(max(1, math.isqrt(tile_bytes // pair.cell)) for pair in pairs.values()))
    return min(_fastest_tile_rows(pair, rows, one_tile and n2 is not None) for pair in pairs.values())


def _fastest_tile_rows(kernel: PlannedKernel, rows: int, one_tile: bool) -> int:
    """Rows of a tile: enough to keep the processor busy, few enough to save half of a symmetric kernel."""
    if one_tile and not kernel.is_transposed:
        return rows
    on_cpu = jax.default_backend() == "cpu"
    numbers = (CPU_TILE_ROWS if on_cpu else ACCELERATOR_TILE_ROWS) ** 2 * (3 if kernel.is_transposed else 1)
    tile = max(1, math.isqrt(numbers * jnp.dtype(kernel.dtype).itemsize // kernel.cell))
    if not on_cpu:
        # A quarter of the rows at a time leaves 5 / 8 of the work, in products that fill the processor.
        return rows if rows <= tile else min(tile, -(-rows // 4))
    # Tiles of one size, because the last one would overlap the one before it and compute those numbers twice. An odd
    # number of them, so that each meets as many of the others.
    count = -(-rows // tile)
    return rows if count == 1 else -(-rows // (count | 1))
