"""Inner products of the kernels of many layers, from features that are read block by block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from ._blocks import FeatureBlocks
from ._streamed import StreamedGram
from ._sums import exponent_of_size, moments

# Features of all layers of a group together: two groups of this size make products of 128 MB in float64.
GROUP = 2048


class LayerProducts:
    """Of the centred kernels of layers, of which each is divided by a power of 4.

    Attributes:
        products: inner products of every pair of layers ``(L, L)``.
        dots: inner products of the diagonals of every pair, ``(L, L)``.
        traces: the traces, ``(L,)``.
        exponents: the powers, ``(L,)``.
    """

    def __init__(self, layers: Sequence[StreamedGram], pairs: Iterable[tuple[int, int]]):
        self._phi: list[FeatureBlocks] = [layer.phi for layer in layers]
        self._dtype: Any = np.result_type(*(layer.product_dtype for layer in layers))
        count, n = len(layers), layers[0].n
        self.products, self.dots, self.traces = np.zeros((count, count)), np.zeros((count, count)), np.zeros(count)
        missing = {(min(pair), max(pair)) for pair in pairs} | {(k, k) for k in range(count)}
        # Two groups together leave nothing to do for either of them alone.
        by_two = sorted(combinations_with_replacement(self._groups(), 2), key=lambda both: both[0] is both[1])
        for first, second in by_two:
            together = sorted({*first, *second})
            now = sorted(pair for pair in missing if set(pair) <= set(together))
            if now:
                self._add(together, now)
                missing -= set(now)
        self.exponents = np.array([exponent_of_size(size) for size in (self.traces / n).tolist()])
        unit = np.exp2(-2.0 * self.exponents)
        self.traces *= unit
        for values in (self.products, self.dots):
            values *= np.outer(unit, unit)

    def _groups(self) -> list[list[int]]:
        """Consecutive layers that have few features together."""
        groups: list[list[int]] = []
        width = GROUP
        for number, phi in enumerate(self._phi):
            width += phi.shape[1]
            if width > GROUP:
                groups.append([])
                width = phi.shape[1]
            groups[-1].append(number)
        return groups

    def _add(self, together: list[int], pairs: list[tuple[int, int]]) -> None:
        """Fills in pairs of some layers, from one pass over these."""
        place = {number: k for k, number in enumerate(together)}
        found = moments([self._phi[k] for k in together], [(place[i], place[j]) for i, j in pairs], self._dtype)
        for i, j in pairs:
            of_pair = found[place[i], place[j]]
            self.products[i, j] = self.products[j, i] = np.sum(of_pair.covariance**2)
            self.dots[i, j] = self.dots[j, i] = of_pair.dot
            if i == j:
                self.traces[i] = np.trace(of_pair.covariance)
