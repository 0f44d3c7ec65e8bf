"""Draws of examples with replacement, from features that are read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from ._blocks import FeatureBlocks, by_threads
from ._streamed import StreamedGram
from ._sums import KeptSums, chunks_of, weighted_moments

# Fewer chunks than this leave an error of more than 5 % in a standard error.
CHUNKS = 200
# Bytes of the sums of all draws that are made in one pass.
SUMS_BYTES = 10**9


class Draws:
    """Chunks of consecutive examples, to be drawn with replacement.

    Attributes:
        count: the number of chunks.
    """

    def __init__(self, streams: Sequence[StreamedGram]):
        self._streams = streams
        self._phi: list[FeatureBlocks] = [stream.phi for stream in streams]
        self._split = -(-CHUNKS // len(chunks_of(self._phi)))
        self._chunks = chunks_of(self._phi, self._split)
        self.count = len(self._chunks)

    def each(self, drawn: np.ndarray) -> Iterator[tuple[list[StreamedGram], np.ndarray]]:
        """The streams of the examples of each draw with their sums, and the numbers of these examples.

        Args:
            drawn: numbers of chunks, ``(R, count)``.
        """
        pairs = list(combinations_with_replacement(range(len(self._phi)), 2))
        widths = [phi.shape[1] for phi in self._phi]
        at_once = max(1, SUMS_BYTES // (8 * sum(widths[i] * widths[j] for i, j in pairs)))
        dtype: Any = np.result_type(*(stream.product_dtype for stream in self._streams))
        for start in range(0, len(drawn), at_once):
            some = drawn[start : start + at_once]
            weights = np.stack([np.bincount(one, minlength=self.count) for one in some])
            for one, sums in zip(some, weighted_moments(self._phi, pairs, dtype, weights, self._split), strict=True):
                chunks = [self._chunks[number] for number in one]
                phi = [_Drawn(phi, chunks) for phi in self._phi]
                streams = []
                for k, stream in enumerate(self._streams):
                    kept = KeptSums(sums[k, k])
                    if k + 1 < len(phi):
                        kept.other, kept.both = phi[k + 1], sums[k, k + 1]
                    streams.append(StreamedGram(phi[k], centered=stream.centered, memory=kept))
                yield streams, np.concatenate(chunks)


class _Drawn:
    """The features of some chunks, one after another."""

    def __init__(self, phi: FeatureBlocks, chunks: list[range]):
        self._phi, self._chunks, self._ends = phi, chunks, np.cumsum([len(chunk) for chunk in chunks])
        self.shape, self.dtype, self.by_threads = (int(self._ends[-1]), phi.shape[1]), phi.dtype, by_threads(phi)

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        parts = []
        for chunk, end in zip(self._chunks, self._ends.tolist(), strict=True):
            begin = end - len(chunk)
            some = chunk[max(start - begin, 0) : max(stop - begin, 0)]
            if some:
                parts.append(np.asarray(self._phi[some.start : some.stop]))
        return np.concatenate(parts)
