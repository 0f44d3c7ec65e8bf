"""Which tiles of a stored kernel exist: a file of one line for each, written after the tile is safe on the disk."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

# place of the array in the store, chunk along each axis
Chunk = tuple[int, ...]


class Ledger:
    """The finished tiles of a store, each with the checksum that its file ends with.

    A line is ``[sum, [array, *chunk], checksum]``, ``sum`` being the CRC-32 of the rest. A last line without its end
    was torn when the process died: its tile counts as not written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.tiles: dict[Chunk, str] = {}
        self._whole = 0  # bytes of whole lines
        self._file: int | None = None
        data = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            self._whole += len(line) + 1
            self.tiles.update([self._parse(line, number)])

    def _parse(self, line: bytes, number: int) -> tuple[Chunk, str]:
        try:
            said, chunk, checksum = json.loads(line)
            tile = tuple(int(place) for place in chunk), str(checksum)
        except (ValueError, TypeError):
            said = tile = None
        if tile is None or said != _sum(*tile):
            raise ValueError(
                f"{self.path} is damaged in line {number}, so what it lists can't be trusted; delete it, and run "
                "write_kernel again to compute all tiles anew."
            )
        return tile

    def append(self, tiles: Iterable[tuple[Chunk, str]]) -> None:
        """Adds tiles that are safe on the disk, and is itself safe there when it returns."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._file, self._whole)
        tiles = list(tiles)
        lines = "".join(json.dumps([_sum(*tile), *tile]) + "\n" for tile in tiles).encode()
        try:
            written = os.pwrite(self._file, lines, self._whole)
            if written != len(lines):
                raise OSError(f"only {written} of {len(lines)} bytes fit into {self.path}")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._whole)
            raise
        self._whole += len(lines)
        self.tiles.update(tiles)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _sum(chunk: Chunk, checksum: str) -> int:
    return zlib.crc32(json.dumps([chunk, checksum]).encode())
