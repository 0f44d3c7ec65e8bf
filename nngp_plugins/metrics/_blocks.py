"""Reads features of many examples block by block, and works on several blocks at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np

from .._threads import cores, one_blas_thread

R = TypeVar("R")

# Bytes of the blocks that are read at once, where the array has no blocks of its own.
BLOCK_BYTES = 2**24
# Products of fewer rows take no longer than adding them up.
LEAST_ROWS = 1024
# Each thread holds a block a few times, so that many cores would take gigabytes.
MOST_THREADS = 16


class FeatureBlocks(Protocol):
    """Features ``(N, D)``: anything with ``shape``, ``dtype`` and slicing, such as a memmap or a stored array.

    If it has ``block_rows`` too, these many rows are read together, or a few times as many. If it has ``by_threads``
    and that is true, several threads read it at once, as they do a NumPy array.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, D)``."""

    @property
    def dtype(self) -> Any:
        """The dtype of the features."""

    def __getitem__(self, rows: slice, /) -> Any:
        """The features of some examples."""


class Blocks:
    """Arrays of the same examples, block by block.

    Attributes:
        rows: the examples of a block; the last one may have fewer.
    """

    def __init__(self, arrays: Sequence[FeatureBlocks]):
        self._arrays, self._n = arrays, arrays[0].shape[0]
        row_bytes = [array.shape[1] * np.dtype(array.dtype).itemsize for array in arrays]
        # Blocks of narrow features have many rows, which would take gigabytes of wide ones.
        widest = arrays[row_bytes.index(max(row_bytes))]
        unit = getattr(widest, "block_rows", BLOCK_BYTES // sum(row_bytes) + 1)
        self.rows = min(-(-LEAST_ROWS // unit) * unit if unit < LEAST_ROWS else unit, self._n)
        self._turn: Any = nullcontext() if all(map(by_threads, arrays)) else Lock()

    def read(self, start: int) -> list[np.ndarray]:
        """The rows of each array from one on."""
        with self._turn:
            return [np.asarray(array[start : start + self.rows]) for array in self._arrays]

    def each(self, work: Callable[[int, list[np.ndarray]], R], first: list[np.ndarray] | None = None) -> Iterator[R]:
        """What the work gives for each block and the number of its first row, in order.

        A thread for each core, of up to 16, reads blocks and works on them. BLAS starts no threads meanwhile, so that
        what it does not do takes part of the cores, too.

        Args:
            work: on a block.
            first: the first block, if it was read already.
        """

        def run(start: int) -> R:
            return work(start, self.read(start) if first is None or start else first)

        doing: deque[Future[R]] = deque()
        threads = min(cores(), MOST_THREADS)
        with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
            try:
                for start in range(0, self._n, self.rows):
                    doing.append(pool.submit(run, start))
                    if len(doing) > threads:
                        yield doing.popleft().result()
                while doing:
                    yield doing.popleft().result()
            finally:
                for future in doing:
                    future.cancel()


def by_threads(array: Any) -> bool:
    """Whether several threads may read an array at once."""
    return isinstance(array, np.ndarray) or getattr(array, "by_threads", False)
