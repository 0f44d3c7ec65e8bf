"""A kernel by its entries, which are held or lie on the disk, and are used tile by tile in float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import repeat
from typing import Any

import jax
import numpy as np

from .._threads import cores
from ..metrics import Gram
from ._factor import rounding

ROWS = 2048
"""Rows of a tile of a kernel in memory: a product of it takes longer than starting it."""
STRIP = 2**17
"""Entries that are converted at once, so that they are still in the cache when they are multiplied."""


class Entries:
    """A kernel ``(N, N)``.

    Attributes:
        kernel: anything with a shape, a dtype and slices of rows and columns.
        n: N.
        trace: ``tr K``.
        noise: the rounding error of the eigenvalues.
    """

    kernel: Any
    n: int
    trace: float
    noise: float

    def __init__(self, kernel: Any):
        if isinstance(kernel, Gram):
            kernel = kernel.dense()
        is_sliced = hasattr(kernel, "shape") and hasattr(kernel, "dtype") and not isinstance(kernel, jax.Array)
        self.kernel = kernel if is_sliced else np.asarray(kernel)
        refuse_other_arrays(self.kernel)
        self.n = self.kernel.shape[0]
        self._kept: dict[tuple[int, int], np.ndarray | None] = {}
        diagonal = self._checked_diagonal()
        self.trace = float(np.sum(diagonal))
        self.noise = rounding(diagonal, float(np.finfo(self.kernel.dtype).eps))

    def held(self) -> np.ndarray:
        """All entries, in float64."""
        return np.asarray(self.kernel).astype(np.float64)

    def times(self, columns: np.ndarray) -> np.ndarray:
        """``K v`` for columns ``(N, C)``, in their dtype; a tile above the diagonal is read for that below it, too.

        It starts threads, so that BLAS should not: see :func:`one_blas_thread`.
        """
        product = np.zeros_like(columns)

        def of_tile(rows: slice, others: slice) -> tuple[np.ndarray, np.ndarray]:
            return times_both(self._kept_tile(rows, others), columns[rows], columns[others])

        # To read and to convert a tile takes longer than its product, so that a thread does all three.
        with ThreadPoolExecutor(cores()) as pool:
            for i, rows in enumerate(self._blocks):
                others = self._blocks[i:]
                for place, (own, mirrored) in zip(others, pool.map(of_tile, repeat(rows), others), strict=True):
                    product[rows] += own
                    if place != rows:
                        product[place] += mirrored
        return product

    def keep(self, budget: int) -> None:
        """Tiles of up to so many bytes are read from the disk once, by the first product."""
        if isinstance(self.kernel, np.ndarray):
            return
        size = self.kernel.dtype.itemsize
        for i, rows in enumerate(self._blocks):
            for others in self._blocks[i:]:
                budget -= size * (rows.stop - rows.start) * (others.stop - others.start)
                if budget < 0:
                    return
                self._kept[rows.start, others.start] = None

    def _kept_tile(self, rows: slice, others: slice) -> np.ndarray:
        place = rows.start, others.start
        tile = self._kept.get(place)
        if tile is None:
            tile = np.asarray(self.kernel[rows, others])
            if place in self._kept:
                self._kept[place] = tile
        return tile

    @cached_property
    def _blocks(self) -> list[slice]:
        # A stored tile is read as a whole.
        size = getattr(self.kernel, "block_rows", ROWS)
        return [slice(start, min(start + size, self.n)) for start in range(0, self.n, size)]

    def _tile(self, rows: slice, others: slice) -> np.ndarray:
        return np.asarray(self.kernel[rows, others]).astype(np.float64)

    def _checked_diagonal(self) -> np.ndarray:
        """The diagonal.

        Raises:
            ValueError: the kernel is not symmetric, or holds NaN or infinity.
        """
        diagonal, apart, largest = np.zeros(self.n), 0.0, 0.0
        for rows, others in ((a, b) for i, a in enumerate(self._blocks) for b in self._blocks[i:]):
            tile = self._tile(rows, others)
            mirrored = tile if rows == others else self._tile(others, rows)
            if not (np.isfinite(tile).all() and np.isfinite(mirrored).all()):
                raise ValueError("the kernel holds NaN or infinity; nngp.gram names the examples.")
            apart = max(apart, np.max(np.abs(tile - mirrored.T)))
            largest = max(largest, np.max(np.abs(tile)))
            if rows == others:
                diagonal[rows] = np.diagonal(tile)
        if apart > 1e-3 * largest:
            raise ValueError(
                f"kernel is not symmetric: K and its transpose differ by {apart:.3g}. If these are features, wrap them "
                "as nngp.metrics.FeatureGram(phi)."
            )
        return diagonal


def times_both(tile: np.ndarray, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``T v`` and ``Tᵀ u`` in the dtype of u and v, for u of the rows of a tile T and v of its columns."""
    if tile.dtype == others.dtype:
        return tile @ others, tile.T @ rows
    own, mirrored = np.empty_like(rows), np.zeros_like(others)
    size = max(1, STRIP // len(others))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        strip = tile[part].astype(others.dtype)
        own[part] = strip @ others
        mirrored += strip.T @ rows[part]
    return own, mirrored


def refuse_other_arrays(kernel: Any) -> None:
    """Refuses what cannot be a kernel.

    Raises:
        ValueError: it has another shape or another dtype.
    """
    shape, dtype = tuple(kernel.shape), np.dtype(kernel.dtype)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"kernel has shape {shape}; pass (N, N), or wrap features (N, D) as nngp.metrics.FeatureGram(phi)."
        )
    if dtype.kind != "f":
        raise ValueError(f"kernel holds {dtype}; pass real floats.")
