"""Sums over the features of many examples, which are read block by block and never held together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from threading import local
from typing import Any, NamedTuple

import jax
import numpy as np

from ._blocks import LEAST_ROWS, Blocks, FeatureBlocks
from ._products import COLUMNS, product

Pair = tuple[int, int]
Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Moments:
    """Sums over the rows u of one array, and v of another one, both counted from a row of their own.

    Attributes:
        n: the number of rows.
        shifts: what the rows are counted from: a value near the mean, so that few digits cancel.
        sums: ``Σ u`` and ``Σ v``.
        squares: ``Σ ‖u‖²`` and ``Σ ‖v‖²``.
        product: ``Σ u vᵀ``.
        by_squares: ``Σ ‖v‖² u`` and ``Σ ‖u‖² v``.
        both: ``Σ ‖u‖² ‖v‖²``.
    """

    n: int
    shifts: tuple[Vector, Vector]
    sums: tuple[Vector, Vector]
    squares: tuple[float, float]
    product: Vector
    by_squares: tuple[Vector, Vector]
    both: float

    def multiply(self, a: float, b: float) -> None:
        """Makes the sums those of ``a u`` and ``b v``."""
        self.sums = a * self.sums[0], b * self.sums[1]
        self.squares = a * a * self.squares[0], b * b * self.squares[1]
        self.product *= a * b
        self.by_squares = a * b * b * self.by_squares[0], a * a * b * self.by_squares[1]
        self.both *= a * a * b * b

    @property
    def means(self) -> tuple[Vector, Vector]:
        """The means of both arrays."""
        first, second = (shift + total / self.n for shift, total in zip(self.shifts, self.sums, strict=True))
        return first, second

    @cached_property
    def covariance(self) -> Vector:
        """``Σ (u − ū)(v − v̄)ᵀ``."""
        return self.product - np.outer(self.sums[0], self.sums[1]) / self.n

    @property
    def dot(self) -> float:
        """``Σ ‖u − ū‖² ‖v − v̄‖²``: the inner product of the diagonals of both centred kernels."""
        a, b = self.sums[0] / self.n, self.sums[1] / self.n
        squares_a, squares_b = a @ a, b @ b
        linear = self.by_squares[0] @ a + self.by_squares[1] @ b
        own = squares_b * self.squares[0] + squares_a * self.squares[1]
        return float(self.both - 2 * linear + own + 4 * (a @ self.product @ b) - 3 * self.n * squares_a * squares_b)


@dataclass
class KeptSums:
    """Sums that were made already: of an array by itself, its eigenvalues, and with the last array beside it."""

    own: Moments | None = None
    eigenvalues: dict[bool, Vector] = field(default_factory=dict)
    other: FeatureBlocks | None = None
    both: Moments | None = None


def moments(arrays: Sequence[FeatureBlocks], pairs: Sequence[Pair], dtype: Any) -> dict[Pair, Moments]:
    """The moments of pairs of arrays with a row for each example, from one pass over all.

    Args:
        arrays: of the same examples.
        pairs: which arrays to multiply; ``(0, 0)`` is the first one with itself.
        dtype: of the products of a block. These are added up in float64, so that float32 leaves an error of about
            1e-7 of the largest entries. Those in float32 are computed on the default device, and others on the host.
    """
    return weighted_moments(arrays, pairs, dtype, np.ones((1, len(chunks_of(arrays)))))[0]


def chunks_of(arrays: Sequence[FeatureBlocks], split: int = 1) -> list[range]:
    """The examples of each chunk, of which a block has so many, or fewer."""
    n, rows = arrays[0].shape[0], Blocks(arrays).rows
    blocks, size = [range(start, min(start + rows, n)) for start in range(0, n, rows)], -(-rows // split)
    return [block[first : first + size] for block in blocks for first in range(0, len(block), size)]


def weighted_moments(
    arrays: Sequence[FeatureBlocks], pairs: Sequence[Pair], dtype: Any, weights: np.ndarray, split: int = 1
) -> list[dict[Pair, Moments]]:
    """:func:`moments` in which chunks of examples count so many times.

    Args:
        arrays: as for :func:`moments`.
        pairs: as for :func:`moments`.
        dtype: as for :func:`moments`.
        weights: how often each chunk counts, ``(R, chunks)``, whole numbers.
        split: as for :func:`chunks_of`.
    """
    on_host = dtype != np.float32 or jax.default_backend() == "cpu"
    blocks, counts = Blocks(arrays), weights @ [len(chunk) for chunk in chunks_of(arrays, split)]
    first, size = blocks.read(0), -(-blocks.rows // split)
    shifts, units = [_near_mean(rows) for rows in first], [_power_of_2(rows) for rows in first]
    found = [{pair: _no_moments(int(n), [shifts[k] for k in pair]) for pair in pairs} for n in counts]
    given = [shift.astype(dtype) for shift in shifts], [np.asarray(1 / unit, dtype) for unit in units], tuple(pairs)
    scratch, filled = local(), min(size, len(first[0]))

    def work(start: int, block: list[np.ndarray]) -> list[Any]:
        chunks = [[rows[k : k + size] for rows in block] for k in range(0, len(block[0]), size)]
        if on_host:
            return [_on_host(chunk, *given, scratch) for chunk in chunks]
        return [[_filled(rows, shift, filled) for rows, shift in zip(chunk, given[0], strict=True)] for chunk in chunks]

    running: list[BlockSums] | None = None
    columns = iter(weights.T)
    for chunk in chain.from_iterable(blocks.each(work, first)):
        following = chunk if on_host else _on_device(chunk, *given)
        # One chunk is multiplied while the sums of the one before it are added up.
        if running is not None:
            _add(found, running, next(columns))
        running = following
    _add(found, running or [], next(columns))
    for pair, sums in chain.from_iterable(each.items() for each in found):
        if pair[0] == pair[1]:
            sums.product = np.triu(sums.product) + np.triu(sums.product, 1).T
        sums.multiply(units[pair[0]], units[pair[1]])
    return found


class BlockSums(NamedTuple):
    """What one block adds to the moments of a pair; ``product`` is in rows of blocks from the diagonal on, or whole."""

    sums: tuple[Any, Any]
    squares: tuple[Any, Any]
    product: list[Any]
    by_squares: tuple[Any, Any]
    both: Any


@partial(jax.jit, static_argnums=3)
def _sums_by_xla(blocks: Any, shifts: Any, inverse: Any, pairs: tuple[Pair, ...]) -> list[BlockSums]:
    moved = [(rows - shift[None]) * one for rows, shift, one in zip(blocks, shifts, inverse, strict=True)]
    squares = [(rows * rows).sum(axis=1) for rows in moved]
    found = []
    for i, j in pairs:
        u, v, uu, vv = moved[i], moved[j], squares[i], squares[j]
        width = COLUMNS if i == j else u.shape[1]
        parts = [product(u[:, k : k + width].T, v[:, k if i == j else 0 :]) for k in range(0, u.shape[1], width)]
        sums = (u.sum(axis=0), v.sum(axis=0)), (uu.sum(), vv.sum())
        found.append(BlockSums(*sums, parts, (product(vv, u), product(uu, v)), product(uu, vv)))
    return found


def _on_device(blocks: Any, shifts: Any, inverse: Any, pairs: tuple[Pair, ...]) -> list[BlockSums]:
    sums: list[BlockSums] = _sums_by_xla(*jax.device_put((blocks, shifts, inverse)), pairs)
    return sums


@np.errstate(all="ignore")
def _on_host(
    blocks: Sequence[np.ndarray], shifts: Any, inverse: Any, pairs: tuple[Pair, ...], scratch: Any
) -> list[BlockSums]:
    """The same by NumPy: on a CPU, BLAS computes half of the product of an array with itself, and XLA all of it.

    Args:
        blocks: the rows of each array.
        shifts: of each array, in the dtype of the products.
        inverse: what the rows of each array are multiplied by.
        pairs: of arrays.
        scratch: memory of this thread, to be used again: new memory takes the system as long as a pass over it.
    """
    moved = [_memory(scratch, k, rows, shift) for k, (rows, shift) in enumerate(zip(blocks, shifts, strict=True))]
    for rows, near, shift, one in zip(blocks, moved, shifts, inverse, strict=True):
        np.subtract(rows, shift, out=near, dtype=near.dtype)
        if one != 1:
            near *= one
    squares = [np.einsum("ij,ij->i", rows, rows) for rows in moved]
    sizes = [float(of_rows.sum()) for of_rows in squares]
    # The sums of the rows, and of the rows times the squares of each array.
    weights = np.stack([np.ones_like(squares[0]), *squares])
    sums = [weights @ rows for rows in moved]
    found = []
    for i, j in pairs:
        by_squares = sums[i][1 + j], sums[j][1 + i]
        parts = [moved[i].T @ moved[j]]
        found.append(
            BlockSums((sums[i][0], sums[j][0]), (sizes[i], sizes[j]), parts, by_squares, squares[i] @ squares[j])
        )
    return found


def _memory(scratch: Any, number: int, rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Memory of a thread for the rows of an array."""
    held = scratch.__dict__.setdefault("held", {})
    if number not in held or len(held[number]) < len(rows):
        held[number] = np.empty(rows.shape, like.dtype)
    memory: np.ndarray = held[number][: len(rows)]
    return memory


def _filled(rows: np.ndarray, shift: np.ndarray, size: int) -> np.ndarray:
    """Rows of the dtype of the shift, which fills a last block up: it adds nothing, and all blocks use one program."""
    rows = rows.astype(shift.dtype, copy=False)
    missing = size - len(rows)
    return np.concatenate([rows, np.tile(shift, (missing, 1))]) if missing else rows


def exponent_of_size(size: float) -> int:
    """A whole number e, for which ``size / 4^e`` is about 1; 0 for a size that is zero or not finite."""
    return math.frexp(size)[1] // 2 if 0 < size < math.inf else 0


def _power_of_2(rows: np.ndarray) -> float:
    """1 for rows of an ordinary size; otherwise the power of two of the largest number."""
    exponent = math.frexp(float(np.abs(rows).max()))[1]
    return 1.0 if abs(exponent) < 8 or not np.isfinite(rows).all() else 2.0**exponent


def _near_mean(rows: np.ndarray) -> Vector:
    """The mean of the first rows, to the digits of float32; if all are equal, it is exactly that row."""
    rows, first = rows[:LEAST_ROWS], rows[:1].astype(float)
    return (first[0] + (rows.astype(float) - first).mean(axis=0)).astype(np.float32).astype(float)


def _no_moments(n: int, shifts: Sequence[Vector]) -> Moments:
    a, b = shifts
    u, v = np.zeros_like(a), np.zeros_like(b)
    return Moments(n, (a, b), (u, v), (0.0, 0.0), np.zeros((len(a), len(b))), (u, v), 0.0)


def _add(found: list[dict[Pair, Moments]], chunk: list[BlockSums], weights: np.ndarray) -> None:
    """Adds the sums of a chunk, once they are computed, as often as it counts in each of the moments."""
    chunk = jax.device_get(chunk)
    for each, weight in zip(found, weights.tolist(), strict=True):
        for sums, new in zip(each.values(), chunk, strict=True) if weight else ():
            first = 0
            for part in new.product:
                place = slice(first, first + len(part)), slice(sums.product.shape[1] - part.shape[1], None)
                sums.product[place] += part if weight == 1 else weight * part
                first += len(part)
            sums.sums = _sum(sums.sums, new.sums, weight)
            sums.squares = _sum(sums.squares, new.squares, weight)
            sums.by_squares = _sum(sums.by_squares, new.by_squares, weight)
            sums.both += weight * float(new.both)


def _sum(sums: tuple[Any, Any], new: tuple[Any, Any], weight: float) -> tuple[Any, Any]:
    return sums[0] + weight * np.float64(new[0]), sums[1] + weight * np.float64(new[1])
