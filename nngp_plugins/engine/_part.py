"""The share of a job that one process does, so that any number of processes write one store without a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import jax

TILE_BYTES = 16_000_000
"""Bytes of a tile that is a file."""


@dataclass(frozen=True)
class Part:
    """The share of a job.

    Attributes:
        index: its number, from 0.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, part: Any) -> Part:
        """What the user passed as ``part``; None is this process of all processes of ``jax.distributed``.

        Raises:
            ValueError: it is no pair ``(i, n)`` with ``0 <= i < n``.
        """
        if part is None:
            return cls(jax.process_index(), jax.process_count())
        pair = isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(k, Integral) for k in part)
        if not pair or not 0 <= part[0] < part[1]:
            raise ValueError(f"part={part!r} must be (i, n): part i of n parts, with 0 <= i < n.")
        return cls(int(part[0]), int(part[1]))

    @property
    def is_all(self) -> bool:
        """Whether it is the whole job."""
        return self.count == 1

    def of_range(self, size: int) -> range:
        """Its share of consecutive numbers."""
        return range(self.index * size // self.count, (self.index + 1) * size // self.count)


WHOLE = Part()
"""All of a job."""


def tiles_of(part: Part, grid: Sequence[int], symmetric: bool) -> frozenset[tuple[int, int]]:
    """The tiles that a part computes: those on and above the diagonal of a symmetric kernel, all of another one.

    The tiles are put in Morton order, and cut into pieces of equal size. A piece is a square, or a few of them, so that
    it needs few rows of outputs: about ``N / √n`` of N.
    """
    tiles = [(i, j) for i in range(grid[0]) for j in range(i if symmetric else 0, grid[1])]
    if not part.is_all:
        tiles.sort(key=_morton)
    own = part.of_range(len(tiles))
    return frozenset(tiles[own.start : own.stop])


def square_of(part: Part, tiles: int) -> int:
    """The side of the largest square of the Morton order that is no larger than a piece, in tiles."""
    return 1 << max(0, math.floor(math.log2(max(1, tiles / part.count)) / 2))


def _morton(tile: tuple[int, int]) -> int:
    """The bits of both numbers, in turn."""
    i, j = (int(f"{number:b}", 4) for number in tile)
    return 2 * i + j
