"""How the blocks of rows of a ring meet each other where half of what they make mirrors the other half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._ring import Ring, put


@dataclass(frozen=True)
class Meetings:
    """The rows of a symmetric matrix of products that a device has, but for the square on the diagonal.

    Every two blocks meet once, on one of their two devices, and what they make is sent to the other one. All devices
    compute as much. Blocks travel in parts, so that a device needs little memory besides the arrays.

    Attributes:
        ring: the devices.
        rows: the rows of a block.
        most: the most rows that travel at once.
        take: some rows of a block, by the first of them, which may be traced, and how many there are.
        product: what two blocks make, ``(rows of the first, rows of the second, ...)`` for each array, and the mirror
            image of it: what the second one and the first one make.
    """

    ring: Ring
    rows: int
    most: int
    take: Callable[[Any, Any, int], Any]
    product: Callable[[Any, Any], tuple[Any, Any]]

    def __call__(self, own: Any, arrays: Any) -> Any:
        """Writes what all blocks make, within a function of blocks.

        Args:
            own: this device's block, in any PyTree.
            arrays: where to write, ``(rows, size * rows, ...)`` each, in any PyTree.
        """
        if self.ring.size == 1:
            return arrays
        own = self.take(own, 0, self.rows)
        if self.ring.size % 2:
            return self._in_parts(partial(self._meet, own), arrays, 0, self.rows)
        # Two blocks that are half of the ring apart visit each other. Of the four quarters of their product, each
        # device computes two: what one half of the visiting rows makes with one half of its own, and what the other
        # half makes with the other one. All devices run the same program then, on other rows.
        half = self.rows // 2

        def meet_half(k: Any, arrays: Any) -> Any:
            mine = jnp.where(self._is_first(), k, 1 - k) * half
            some = self.take(own, mine, half)
            meet = partial(self._meet, own, opposite=(some, mine, half - mine))
            return self._in_parts(meet, arrays, k * half, half)

        if half:
            # In a loop, the second half of the device's own rows takes the memory of the first.
            arrays = lax.fori_loop(0, 2, meet_half, arrays)
        return self._last_row(own, arrays) if self.rows % 2 else arrays

    def _last_row(self, own: Any, arrays: Any) -> Any:
        """The last row, which belongs to no half: each device computes what all of its rows make with the visiting one.

        What the last rows of two opposite blocks make is computed twice, and the first device's counts.
        """
        last = self.rows - 1
        arrays = self._meet(own, arrays, last, 1, opposite=(own, 0, 0))
        column = self.ring.columns(self.ring.size // 2, self.rows) + last
        visiting = self.ring.turned(self.take(own, last, 1), self.ring.size // 2)
        mine, image = self.product(self.take(own, last, 1), visiting)
        theirs = self.ring.turned(image, -(self.ring.size // 2))
        corner = jax.tree.map(partial(jnp.where, self._is_first()), mine, theirs)
        return put(arrays, corner, last, column)

    def _is_first(self) -> Any:
        """Whether this device is the first of two that are half of the ring apart."""
        return self.ring.place() < self.ring.size // 2

    def _in_parts(self, meet: Callable[[Any, Any, int], Any], arrays: Any, start: Any, rows: int) -> Any:
        """Lets some rows travel, as many at once as may. If parts overlap, all devices write them in the same order."""
        count = -(-rows // self.most)
        size = -(-rows // count)
        if count == 1:
            return meet(arrays, start, size)
        return lax.fori_loop(
            0, count, lambda k, arrays: meet(arrays, start + jnp.minimum(k * size, rows - size), size), arrays
        )

    def _meet(self, own: Any, arrays: Any, first: Any, size: int, opposite: tuple[Any, Any, Any] | None = None) -> Any:
        """Rows of each block travel as far as blocks must that meet all others.

        Args:
            own: this device's block.
            arrays: where to write.
            first: the first of the rows that travel.
            size: how many they are.
            opposite: what those meet that come from the opposite device: rows of this device's block, and the first of
                them here, and there; None if no device is opposite.
        """
        half, visiting = self.ring.size // 2, self.take(own, first, size)
        for distance in range(1, self.ring.size - half):
            visiting = self.ring.turned(visiting, 1)
            arrays = self._exchange(arrays, own, visiting, distance, (first, 0, 0))
        if opposite is None:
            return arrays
        some, mine, theirs = opposite
        return self._exchange(arrays, some, self.ring.turned(visiting, 1), half, (first, mine, theirs))

    def _exchange(self, arrays: Any, own: Any, visiting: Any, distance: int, places: tuple[Any, Any, Any]) -> Any:
        first, mine, theirs = places
        made, image = self.product(own, visiting)
        arrays = put(arrays, made, mine, self.ring.columns(distance, self.rows) + first)
        got = self.ring.turned(image, -distance)
        return put(arrays, got, first, self.ring.columns(-distance, self.rows) + theirs)
