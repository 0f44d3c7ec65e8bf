"""The loop of a batched kernel: blocks of outputs become tiles, and tiles go to a sink."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ._arrays import ArrayBackend, Placement
from ._inputs import Range
from ._nngp import LeafPair
from ._outputs import OutputSource
from ._program import Tile
from ._tiling import KernelPlan, PlannedKernel

OnProgress = tuple[Callable[[int], None], Callable[[int], None]]
"""Two functions that are told how much is done: how many examples, and how many tiles."""


class TileSink(Protocol):
    """Where the tiles of kernels go."""

    def wants(self, pair: LeafPair, rows: Range, columns: Range) -> bool:
        """Whether a tile is still to be computed."""

    def start(self, tile: Tile) -> Any:
        """Begins with a tile; :meth:`write` takes what this returns, one tile later."""

    def write(self, pair: LeafPair, rows: Range, columns: Range, tile: Any) -> None:
        """Takes a tile, which stands for its mirror image too."""


def run(
    plan: KernelPlan,
    precision: Any,
    source1: OutputSource,
    source2: OutputSource | None,
    arrays: ArrayBackend,
    sink: TileSink,
    on_progress: OnProgress,
) -> None:
    """Carries out a plan.

    Args:
        plan: which blocks and tiles there are.
        precision: the precision of the contraction.
        source1: the outputs of ``x1``.
        source2: the outputs of ``x2``; None if ``x2`` is None.
        arrays: where the outputs of a block are put together.
        sink: where tiles go.
        on_progress: is told how much is done.
    """
    on_rows, on_tiles = on_progress
    waiting: list[tuple[Any, ...]] = []
    for rows, blocks in plan.blocks():
        held = None
        for columns in blocks:
            tiles = [(pair, i, j) for pair in plan.pairs for i, j in plan.tiles(pair, rows, columns)]
            todo = [tile for tile in tiles if sink.wants(*tile)]
            on_tiles(len(tiles) - len(todo))
            if not todo:
                continue
            if held is None:
                held = _operands(plan.orders[0], source1.tiles(*rows, plan.tile_rows, arrays, on_rows))
            others = held
            if source2 is not None or columns != rows:
                source = source1 if source2 is None else source2
                others = _operands(plan.orders[1], source.tiles(*columns, plan.tile_rows, arrays, on_rows))
            for (a, b), i, j in todo:
                y1 = held[(i[0] - rows[0]) // plan.tile_rows][a]
                y2 = others[(j[0] - columns[0]) // plan.tile_rows][b]
                tile = _tile(plan.pairs[a, b], y1, y2, precision, is_own_mirror=a == b and i == j)
                # One tile is computed while the one before it is put in its place.
                waiting.append(((a, b), i, j, sink.start(tile)))
                if len(waiting) > 1:
                    sink.write(*waiting.pop(0))
                on_tiles(1)
    for last in waiting:
        sink.write(*last)


def _tile(kernel: PlannedKernel, y1: Any, y2: Any, precision: Any, is_own_mirror: bool) -> Tile:
    shape = kernel.contraction.shape(y1.shape, y2.shape)
    return Tile(y1, y2, kernel.contraction, precision, shape, kernel.mirror if is_own_mirror else None)


def _operands(orders: Sequence[tuple[int, ...]], tiles: list[list[Any]]) -> list[list[Any]]:
    """Transposes outputs once, for the many products that they are part of."""
    for tile in tiles:
        for k, order in enumerate(orders):
            if order != tuple(range(len(order))):
                moved = tile[k].transpose(order)
                tile[k] = np.ascontiguousarray(moved) if isinstance(moved, np.ndarray) else moved
    return tiles


@contextmanager
def progress(plan: KernelPlan, show: bool) -> Iterator[OnProgress]:
    """Two functions that are told how much is done; a progress bar on stderr shows it if ``show`` is true."""
    if not show:
        yield (lambda rows: None), (lambda tiles: None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        rows = bars.add_task("rows through the network", total=plan.forward_rows)
        tiles = bars.add_task("tiles of the kernel", total=plan.tile_count)
        yield (lambda done: bars.advance(rows, done)), (lambda done: bars.advance(tiles, done))


@dataclass
class AssembleArrays:
    """Puts kernels together from tiles, as arrays.

    Attributes:
        plan: the shapes of the kernels, and how they are mirrored.
        backend: where the arrays are.
        arrays: the kernels so far.
    """

    plan: KernelPlan
    backend: ArrayBackend
    arrays: dict[LeafPair, Any] = field(default_factory=dict)

    def wants(self, pair: LeafPair, rows: Range, columns: Range) -> bool:
        """Takes every tile."""
        return True

    def start(self, tile: Tile) -> Any:
        """Begins with a tile as the backend does it best."""
        return self.backend.start(tile)

    def write(self, pair: LeafPair, rows: Range, columns: Range, tile: Any) -> None:
        """Puts a tile and its mirror image in their places."""
        kernel = self.plan.pairs[pair]
        place = self._place(pair, rows, columns)
        if kernel.mirror is None or (rows == columns and pair[0] == pair[1]):
            self._put(pair, tile, place)
            return
        mirrored = replace(self._place(pair[::-1], columns, rows), order=kernel.mirror)
        if pair[0] == pair[1]:
            self._put(pair, tile, place, mirrored)
        else:
            self._put(pair, tile, place)
            self._put(pair[::-1], tile, mirrored)

    def _place(self, pair: LeafPair, rows: Range, columns: Range) -> Placement:
        kernel = self.plan.pairs[pair]
        first = (rows[0], columns[0])[: kernel.batch_axes]
        return Placement((*first, *[0] * (len(kernel.shape) - len(first))))

    def _put(self, pair: LeafPair, tile: Any, *places: Placement) -> None:
        kernel, array = self.plan.pairs[pair], self.arrays.get(pair)
        if kernel.role == "traced":
            # A kernel whose batch axis is traced is a sum over tiles.
            tile = self.backend.put(None, kernel, tile, *places)
            self.arrays[pair] = tile if array is None else array + tile
        else:
            self.arrays[pair] = self.backend.put(array, kernel, tile, *places)
