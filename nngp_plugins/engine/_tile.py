"""A tile of kernels as one compiled program, for kernels that leave the device tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import jax
import numpy as np
from jax import Array, lax

from ._contract import contract
from ._devices import compiler_options
from ._nngp import LeafPair
from ._outputs import Held
from ._overflow import may_overflow
from ._plan import KernelPlan, LayerGroup
from ._symmetric import product_with_itself


@dataclass(frozen=True)
class TileProgram:
    """One tile of some kernels.

    All tiles have one size, and so one program. At the end of a block, a tile may hold other rows besides those that
    are asked for, and the caller cuts them off.

    Attributes:
        plan: the plan.
        group: the outputs.
        pairs: the kernels.
        sizes: rows and columns.
        own: whether the columns are the rows.
        in_order: whether the outputs of both sides are transposed into the axes that contractions read.
    """

    plan: KernelPlan
    group: LayerGroup
    pairs: tuple[LeafPair, ...]
    sizes: tuple[int, int]
    own: bool
    in_order: tuple[bool, bool]

    def __call__(
        self, held1: Held, held2: Held, starts: tuple[int, int]
    ) -> tuple[dict[LeafPair, Array], Array, tuple[int, int]]:
        """Computes the tile.

        Args:
            held1: the outputs of the rows.
            held2: the outputs of the columns.
            starts: the first row of each that is asked for.

        Returns:
            The tile of each kernel, whether products of outputs might overflow, and the row and the column of the tile
            that are asked for first.
        """
        sides, firsts, offsets = [], [], []
        for side, (held, start, size) in enumerate(zip((held1, held2), starts, self.sizes, strict=True)):
            axes = self._axes(side)
            first = max(0, min(start, held.leaves[0].shape[axes[0]] - size))
            on_host = isinstance(held.leaves[0], np.ndarray)
            sides.append(
                [_rows(y, first, size, axis) if on_host else y for y, axis in zip(held.leaves, axes, strict=True)]
            )
            firsts.append(0 if on_host else first)
            offsets.append(start - first)
        return *self._compiled(*sides, np.asarray(firsts, np.int32)), (offsets[0], offsets[1])

    @cached_property
    def _compiled(self) -> Callable[..., tuple[dict[LeafPair, Array], Array]]:
        return jax.jit(self._traced, compiler_options=compiler_options())

    def _axes(self, side: int) -> list[int]:
        """The axis of each output that counts examples."""
        orders = self.plan.orders[side]
        return [orders[k].index(0) if self.in_order[side] else 0 for k in self.group.leaves]

    def _traced(self, y1: list[Array], y2: list[Array], starts: Array) -> tuple[dict[LeafPair, Array], Array]:
        sides = []
        for side, leaves in enumerate((y1, y2)):
            tiles = {}
            for k, y, axis in zip(self.group.leaves, leaves, self._axes(side), strict=True):
                size = min(self.sizes[side], y.shape[axis])
                tile = lax.dynamic_slice_in_dim(y, starts[side], size, axis)
                tiles[k] = tile if self.in_order[side] else tile.transpose(self.plan.orders[side][k])
            sides.append(tiles)
        kernels = {pair: self._tile(pair, sides[0][pair[0]], sides[1][pair[1]]) for pair in self.pairs}
        return kernels, may_overflow(self.plan, self.pairs, *sides)

    def _tile(self, pair: LeafPair, y1: Array, y2: Array) -> Array:
        kernel = self.plan.pairs[pair]
        if self.own and pair[0] == pair[1] and kernel.mirror is not None:
            return product_with_itself(y1, kernel, self.plan.precision)
        return contract(y1, y2, kernel.contraction, self.plan.precision)


@lru_cache(maxsize=256)
def tile_program(
    plan: KernelPlan,
    group: LayerGroup,
    pairs: tuple[LeafPair, ...],
    sizes: tuple[int, int],
    own: bool,
    in_order: tuple[bool, bool],
) -> TileProgram:
    """The program of a tile, which is compiled once."""
    return TileProgram(plan, group, pairs, sizes, own, in_order)


def _rows(y: np.ndarray, first: int, size: int, axis: int) -> np.ndarray:
    return y[(slice(None),) * axis + (slice(first, first + size),)]
