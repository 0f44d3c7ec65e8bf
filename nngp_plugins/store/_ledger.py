"""The ledgers: which chunks of a store exist, a line for each, written after the chunk is safe on the disk."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from .._durable import AppendedLines
from ..engine import Part
from ._layout import Kind

LEDGER = "ledger.jsonl"

Chunk = tuple[int, ...]
"""A chunk of a store: the number of its array, and its place along each axis."""


class Ledger:
    """The chunks that one process, or several in turn, have finished, each with the checksum that its file ends with.

    A line is ``[sum, [array, *chunk], checksum]``; ``sum`` is the CRC-32 of the rest. A last line without its end was
    torn when the process died, and its tile counts as not written.

    Args:
        path: the file.
        grids: the number of tiles along each axis, of each array.
        kind: what the store holds, for messages.
        argument: how the user passed the store, for messages.

    Attributes:
        tiles: the checksum of each chunk.
    """

    def __init__(self, path: Path, grids: Sequence[tuple[int, ...]], kind: Kind, argument: str = ""):
        self._lines, self._grids, self._kind = AppendedLines(path, argument), grids, kind
        self.tiles: dict[Chunk, str] = {}
        for number, line in enumerate(self._lines.take_lines(), 1):
            self.tiles.update([self._parse(line, number)])

    def _parse(self, line: bytes, number: int) -> tuple[Chunk, str]:
        try:
            said, chunk, checksum = json.loads(line)
            tile = tuple(int(place) for place in chunk), str(checksum)
        except (ValueError, TypeError, OverflowError, RecursionError):
            said = tile = None
        if tile is None or said != _sum(*tile) or not self._is_there(tile[0]):
            raise ValueError(
                f"{self._lines.path} is damaged in line {number}, so what it lists can't be trusted; delete it, and "
                f"run {self._kind.writer} again to compute all {self._kind.unit}s anew."
            )
        return tile

    def _is_there(self, chunk: Chunk) -> bool:
        """Whether the store has a tile in this place."""
        grid = self._grids[chunk[0]] if chunk and 0 <= chunk[0] < len(self._grids) else ()
        return len(chunk) == 1 + len(grid) and all(0 <= i < n for i, n in zip(chunk[1:], grid, strict=True))

    def open(self) -> None:
        """Refuses other writers, also those that come after somebody has deleted the lock of the folder.

        Raises:
            OSError: one of them is there, or the disk fails.
        """
        self._lines.open()

    def append(self, tiles: Iterable[tuple[Chunk, str]]) -> None:
        """Adds tiles that are safe on the disk; the ledger itself is safe there when this returns."""
        tiles = list(tiles)
        self._lines.append("".join(json.dumps([_sum(*tile), *tile]) + "\n" for tile in tiles))
        self.tiles.update(tiles)

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


def _sum(chunk: Chunk, checksum: str) -> int:
    return zlib.crc32(json.dumps([chunk, checksum]).encode())


def ledger_files(root: Path) -> list[Path]:
    """The ledgers of a store: one of the jobs that wrote all of it, and one of each part."""
    return sorted(path for path in root.glob("ledger.*") if path.name == LEDGER or _OF_PART.fullmatch(path.name))


def ledger_of(root: Path, part: Part) -> Path:
    """The ledger that a part writes."""
    return root / (LEDGER if part.is_all else f"ledger.{part.index}-of-{part.count}.jsonl")


_OF_PART = re.compile(r"ledger\.\d+-of-\d+\.jsonl")

Listed = dict[Chunk, frozenset[str]]
"""The checksums of each chunk that a ledger lists. Two ledgers may list a chunk that was damaged and written again."""


def listed_in(ledgers: Iterable[Ledger]) -> Listed:
    """What any of the ledgers lists."""
    listed: Listed = {}
    for ledger in ledgers:
        for chunk, checksum in ledger.tiles.items():
            listed[chunk] = listed.get(chunk, frozenset()) | {checksum}
    return listed
