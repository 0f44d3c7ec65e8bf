"""The loop of a batched kernel: groups of outputs, blocks of examples, and what becomes of their kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .._live import Bars
from ._arrays import ArrayBackend, on_first_device
from ._inputs import Range
from ._nngp import LeafPair
from ._outputs import Held, HeldLayout, OutputSource
from ._overflow import refuse_overflow, refuse_overflow_of
from ._plan import KernelPlan, LayerGroup
from ._program import Kernels, block_program
from ._ring import Ring
from ._sharded import sharded_program
from ._tile import TileProgram, tile_program

OnProgress = tuple[Callable[[int], None], Callable[[int], None]]
"""Two functions that are told how much is done: how many examples, and how many tiles."""


class TileSink(Protocol):
    """Where the tiles of kernels go."""

    def wants(self, pair: LeafPair, rows: Range, columns: Range) -> bool:
        """Whether a tile is still to be computed."""

    def write(self, pair: LeafPair, rows: Range, columns: Range, tile: np.ndarray) -> None:
        """Takes a tile, which stands for its mirror image too."""


@dataclass(frozen=True)
class Job:
    """What a loop needs.

    Attributes:
        plan: which groups, blocks and tiles there are.
        source1: the outputs of ``x1``.
        source2: the outputs of ``x2``; None if ``x2`` is None.
        arrays: where the outputs of a block are put together.
        on_progress: is told how much is done.
        warnings: of each block, whether products of its outputs might overflow.
    """

    plan: KernelPlan
    source1: OutputSource
    source2: OutputSource | None
    arrays: ArrayBackend
    on_progress: OnProgress
    warnings: list[Any] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, int]:
        """Examples on both sides."""
        return self.plan.n1, self.plan.n1 if self.plan.n2 is None else self.plan.n2

    def columns(self, group: LayerGroup, rows: Range, columns: Range) -> Held | None:
        """The outputs of a block of columns; None if they are those of the rows."""
        if self.source2 is None and rows == columns:
            return None
        return self.held(1, group, columns)

    def held(self, side: int, group: LayerGroup, rows: Range) -> Held:
        """The outputs of a block."""
        source = self.source1 if side == 0 or self.source2 is None else self.source2
        layout = HeldLayout(group.leaves, self.plan.orders[side], group.block_rows, self.plan.tile_rows)
        return source.held(rows, layout, self.arrays, self.on_progress[0])

    def tiles(self, group: LayerGroup, rows: Range, columns: Range) -> dict[tuple[Range, Range], list[LeafPair]]:
        """The tiles of two blocks, and the kernels that have each."""
        tiles: dict[tuple[Range, Range], list[LeafPair]] = {}
        for pair in group.pairs:
            for tile in self.plan.tiles(pair, rows, columns):
                tiles.setdefault(tile, []).append(pair)
        return tiles

    def program(
        self, group: LayerGroup, pairs: tuple[LeafPair, ...], at: tuple[Range, Range], in_order: tuple[bool, bool]
    ) -> TileProgram:
        """The program of a tile. A sum over examples takes exactly these; other tiles may hold more."""
        exact = any(self.plan.pairs[pair].role == "traced" for pair in pairs)
        sizes = [
            stop - start if exact else min(self.plan.tile_rows, limit)
            for (start, stop), limit in zip(at, self.sizes, strict=True)
        ]
        own = self.plan.symmetric and at[0] == at[1]
        return tile_program(self.plan, group, pairs, (sizes[0], sizes[1]), own, in_order)


def in_one_piece(job: Job) -> Kernels:
    """The kernels as arrays on a device, a program a block.

    Raises:
        ValueError: products of finite outputs overflow.
    """
    kernels: Kernels = {}
    for group in job.plan.groups:
        so_far: Kernels | None = None
        for rows, blocks in job.plan.blocks(group):
            so_far = _row_of_blocks(job, group, rows, blocks, so_far)
        kernels |= so_far or {}
    if any(jax.device_get(job.warnings)):
        refuse_overflow_of(job.plan, kernels)
    return kernels


def by_all_devices(job: Job, ring: Ring, rows: tuple[int, int], home: NamedSharding | None) -> Kernels:
    """The kernels as arrays, of which each device computes its rows, a program a group of outputs.

    Outputs stay where they are.

    Args:
        job: the job, whose blocks have all examples.
        ring: the devices.
        rows: the examples of each device on both sides.
        home: where the rows of the kernels go; None for the first device.

    Raises:
        ValueError: products of finite outputs overflow.
    """
    kernels: Kernels = {}
    for group in job.plan.groups:
        held, others = job.held(0, group, (0, job.sizes[0])), None
        if job.source2 is not None:
            others = job.held(1, group, (0, job.sizes[1]))
        in_order = held.in_order, (others or held).in_order
        program = sharded_program(job.plan, group, ring, rows, in_order)
        made, warning = program.compiled(held.leaves, None if others is None else others.leaves)
        job.warnings.append(warning)
        kernels |= _brought_home(job, made, home)
        job.on_progress[1](sum(map(len, job.tiles(group, (0, job.sizes[0]), (0, job.sizes[1])).values())))
    if any(jax.device_get(job.warnings)):
        refuse_overflow_of(job.plan, kernels)
    return kernels


def _brought_home(job: Job, kernels: Kernels, home: NamedSharding | None) -> Kernels:
    """Kernels where the user looks for them."""
    roles = {pair: job.plan.pairs[pair].role for pair in kernels}
    if home is not None:
        everywhere = NamedSharding(home.mesh, PartitionSpec())
        return {pair: jax.device_put(k, everywhere if roles[pair] == "traced" else home) for pair, k in kernels.items()}
    brought = {pair: kernel.addressable_shards[0].data for pair, kernel in kernels.items() if roles[pair] == "traced"}
    split = {pair: kernel for pair, kernel in kernels.items() if roles[pair] != "traced"}
    if split:
        brought |= dict(zip(split, on_first_device(list(split.values()), job.plan.n1), strict=True))
    return brought


def _row_of_blocks(job: Job, group: LayerGroup, rows: Range, blocks: list[Range], so_far: Kernels | None) -> Kernels:
    """The kernels with one row of blocks; outputs are let go of before others are held."""
    held = job.held(0, group, rows)
    for columns in blocks:
        so_far = _block(job, group, (rows, columns), held, so_far)
    return so_far or {}


def _block(job: Job, group: LayerGroup, at: tuple[Range, Range], held: Held, so_far: Kernels | None) -> Kernels:
    rows, columns = at
    others = job.columns(group, rows, columns)
    second = others or held
    sizes = rows[1] - rows[0], columns[1] - columns[0]
    own = job.plan.symmetric and rows == columns
    program = block_program(job.plan, group, *sizes, own, (held.in_order, second.in_order))
    places = rows[0], columns[0], held.first, second.first
    # A single block begins at zero, which the compiler knows then.
    where = [np.asarray(places, np.int32)] if any(places) or so_far or sizes != job.sizes else []
    kernels, warning = program.compiled(so_far, held.leaves, None if others is None else others.leaves, *where)
    job.warnings.append(warning)
    job.on_progress[1](sum(map(len, job.tiles(group, rows, columns).values())))
    return kernels


def in_tiles(job: Job, sink: TileSink) -> None:
    """Computes the tiles that a sink wants, a program for a tile of all kernels.

    Raises:
        ValueError: products of finite outputs overflow.
    """
    waiting: list[tuple[Any, ...]] = []
    for group in job.plan.groups:
        for rows, blocks in job.plan.blocks(group):
            _tiles_of(job, sink, group, rows, blocks, waiting)
    for last in waiting:
        _write(job, sink, *last)


def _tiles_of(
    job: Job, sink: TileSink, group: LayerGroup, rows: Range, blocks: list[Range], waiting: list[tuple[Any, ...]]
) -> None:
    """The tiles of one row of blocks; outputs are let go of before others are held."""
    held, others = None, None
    for columns in blocks:
        tiles = job.tiles(group, rows, columns)
        todo = {at: [pair for pair in pairs if sink.wants(pair, *at)] for at, pairs in tiles.items()}
        job.on_progress[1](sum(map(len, tiles.values())) - sum(map(len, todo.values())))
        if not any(todo.values()):
            continue
        others = None
        held = held or job.held(0, group, rows)
        others = job.columns(group, rows, columns) or held
        for at, pairs in todo.items():
            if pairs:
                starts = at[0][0] - rows[0] + held.first, at[1][0] - columns[0] + others.first
                program = job.program(group, tuple(tiles[at]), at, (held.in_order, others.in_order))
                # One tile is computed while the one before it is put in its place.
                waiting.append((at, pairs, *program(held, others, starts)))
                if len(waiting) > 1:
                    _write(job, sink, *waiting.pop(0))


def _write(
    job: Job,
    sink: TileSink,
    at: tuple[Range, Range],
    pairs: list[LeafPair],
    tiles: dict[LeafPair, Any],
    warning: Any,
    offsets: tuple[int, int],
) -> None:
    for pair in pairs:
        batch_axes = job.plan.pairs[pair].batch_axes
        cut = tuple(
            slice(offset, offset + stop - start)
            for offset, (start, stop) in zip(offsets[:batch_axes], at[:batch_axes], strict=True)
        )
        tile = np.asarray(tiles[pair])[cut]
        if np.asarray(warning):
            refuse_overflow(job.plan, pair, tile, at)
        sink.write(pair, *at, tile)
        job.on_progress[1](1)


@contextmanager
def progress(show: bool, rows: int, tiles: tuple[str, int]) -> Iterator[OnProgress]:
    """Two functions that are told how much is done; a progress bar on stderr shows it if ``show`` is true.

    Args:
        show: whether to show it.
        rows: how many examples will go through the network.
        tiles: what is made of them, and how many there will be.
    """
    if not show:
        yield (lambda done: None), (lambda done: None)
        return
    with Bars() as bars:
        yield bars.add("rows through the network", rows), bars.add(*tiles)


@dataclass
class AssembleArrays:
    """Puts kernels together from tiles, as NumPy arrays.

    Attributes:
        plan: the shapes of the kernels, and how they are mirrored.
        arrays: the kernels so far.
    """

    plan: KernelPlan
    arrays: dict[LeafPair, Any] = field(default_factory=dict)

    def wants(self, pair: LeafPair, rows: Range, columns: Range) -> bool:
        """Takes every tile."""
        return True

    def write(self, pair: LeafPair, rows: Range, columns: Range, tile: np.ndarray) -> None:
        """Puts a tile and its mirror image in their places."""
        kernel = self.plan.pairs[pair]
        self._put(pair, tile, (rows, columns)[: kernel.batch_axes])
        if kernel.mirror is not None and (rows != columns or pair[0] != pair[1]):
            self._put(pair[::-1], tile.transpose(kernel.mirror).conj(), (columns, rows)[: kernel.batch_axes])

    def _put(self, pair: LeafPair, tile: np.ndarray, places: tuple[Range, ...]) -> None:
        kernel = self.plan.pairs[pair]
        if kernel.role == "traced":
            # A kernel whose batch axis is traced is a sum over tiles.
            self.arrays[pair] = self.arrays[pair] + tile if pair in self.arrays else np.array(tile)
            return
        if pair not in self.arrays:
            self.arrays[pair] = np.empty(kernel.shape, kernel.dtype)
        self.arrays[pair][tuple(slice(*place) for place in places)] = tile
