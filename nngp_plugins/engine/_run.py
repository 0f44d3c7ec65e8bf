"""The loop of a batched kernel: blocks of outputs, and the tiles where they meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ._contract import Tile
from ._empirical import Outputs
from ._job import Job, Range, ranges
from ._memory import At, Memory

Place = tuple[int, int]
Ticks = tuple[Callable[[int], None], Callable[[int], None]]


class Side(Protocol):
    """Where the outputs of ``x1`` or of ``x2`` come from."""

    @property
    def outputs(self) -> Outputs:
        """Shapes and dtypes of all outputs."""

    def tiles(
        self, start: int, stop: int, size: int, memory: Memory, on_rows: Callable[[int], None]
    ) -> list[list[Any]]:
        """The outputs of the examples from ``start`` to ``stop`` in tiles of ``size`` rows, a list of leaves each."""


class Sink(Protocol):
    """Where tiles of kernels go."""

    def wants(self, place: Place, rows: Range, columns: Range) -> bool:
        """Whether a tile is still to be computed."""

    def start(self, tile: Tile) -> Any:
        """Begins with a tile that :meth:`write` takes next but one."""

    def write(self, place: Place, rows: Range, columns: Range, tile: Any) -> None:
        """Takes a tile, and its mirror image with it."""


def run(job: Job, precision: Any, side1: Side, side2: Side | None, memory: Memory, sink: Sink, on: Ticks) -> None:
    """Carries out a job: blocks of outputs, and the tiles where they meet."""
    on_rows, on_tiles = on
    waiting: list[tuple[Any, ...]] = []
    for rows, blocks in job.blocks():
        held = None
        for columns in blocks:
            tiles = [(place, i, j) for place in job.pairs for i, j in job.tiles(place, rows, columns)]
            todo = [tile for tile in tiles if sink.wants(*tile)]
            on_tiles(len(tiles) - len(todo))
            if not todo:
                continue
            if held is None:
                held = _operands(job.orders[0], side1.tiles(*rows, job.tile_rows, memory, on_rows))
            same = side2 is None and columns == rows
            others = held
            if not same:
                others = _operands(job.orders[1], (side2 or side1).tiles(*columns, job.tile_rows, memory, on_rows))
            for (a, b), i, j in todo:
                pair = job.pairs[a, b]
                y1 = held[(i[0] - rows[0]) // job.tile_rows][a]
                y2 = others[(j[0] - columns[0]) // job.tile_rows][b]
                own_mirror = pair.mirror if a == b and i == j else None
                shape = pair.plan.shape(y1.shape, y2.shape)
                tile = Tile(y1, y2, pair.plan, precision, shape, own_mirror)
                # one tile is computed while the one before is put in its place
                waiting.append(((a, b), i, j, sink.start(tile)))
                if len(waiting) > 1:
                    sink.write(*waiting.pop(0))
                on_tiles(1)
    for last in waiting:
        sink.write(*last)


def _operands(orders: Sequence[tuple[int, ...]], tiles: list[list[Any]]) -> list[list[Any]]:
    """Outputs transposed once for the many products they go into."""
    for tile in tiles:
        for k, order in enumerate(orders):
            if order != tuple(range(len(order))):
                moved = tile[k].transpose(order)
                tile[k] = np.ascontiguousarray(moved) if isinstance(moved, np.ndarray) else moved
    return tiles


@contextmanager
def ticks(job: Job, show: bool) -> Iterator[Ticks]:
    """Two functions to call with what is done, rows and tiles; a progress bar shows what is left."""
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
        rows = bars.add_task("rows through the network", total=job.forward_rows)
        tiles = bars.add_task("tiles of the kernel", total=job.tile_count)
        yield (lambda done: bars.advance(rows, done)), (lambda done: bars.advance(tiles, done))


@dataclass
class Ready:
    """Outputs that are already there."""

    side: str
    outputs: Outputs

    @property
    def rows(self) -> int:
        """Number of examples.

        Raises:
            ValueError: an output has none, or another one than the first.
        """
        rows = self.outputs.leaves[0].shape[:1]
        for name, leaf in zip(self.outputs.names, self.outputs.leaves, strict=True):
            if not rows or leaf.shape[:1] != rows:
                raise ValueError(
                    f"{name} in {self.side} has shape {leaf.shape}; every output needs a row for each example along "
                    f"axis 0, as {self.outputs.names[0]} has with shape {self.outputs.leaves[0].shape}."
                )
        return rows[0]

    def tiles(
        self, start: int, stop: int, size: int, memory: Memory, on_rows: Callable[[int], None]
    ) -> list[list[Any]]:
        on_rows(stop - start)
        leaves = self.outputs.leaves
        if size >= stop - start == leaves[0].shape[0]:
            return [list(leaves)]
        return [[leaf[low:high] for leaf in leaves] for low, high in ranges(start, stop, size)]


@dataclass
class InMemory:
    """Kernels as arrays, put together from tiles."""

    job: Job
    memory: Memory
    arrays: dict[Place, Any] = field(default_factory=dict)

    def wants(self, place: Place, rows: Range, columns: Range) -> bool:
        return True

    def start(self, tile: Tile) -> Any:
        return self.memory.start(tile)

    def write(self, place: Place, rows: Range, columns: Range, tile: Any) -> None:
        pair = self.job.pairs[place]
        at = self._at(place, rows, columns)
        if pair.mirror is None or (rows == columns and place[0] == place[1]):
            self._put(place, tile, at)
            return
        mirrored = replace(self._at(place[::-1], columns, rows), order=pair.mirror)
        if place[0] == place[1]:
            self._put(place, tile, at, mirrored)
        else:
            self._put(place, tile, at)
            self._put(place[::-1], tile, mirrored)

    def _at(self, place: Place, rows: Range, columns: Range) -> At:
        pair = self.job.pairs[place]
        first = (rows[0], columns[0])[: pair.batch_axes]
        return At((*first, *[0] * (len(pair.shape) - len(first))))

    def _put(self, place: Place, tile: Any, *places: At) -> None:
        pair, array = self.job.pairs[place], self.arrays.get(place)
        if pair.role == "traced":  # a sum over tiles
            tile = self.memory.put(None, pair, tile, *places)
            self.arrays[place] = tile if array is None else array + tile
        else:
            self.arrays[place] = self.memory.put(array, pair, tile, *places)
