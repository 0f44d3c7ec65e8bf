"""What one compiled program computes: a tile of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
from jax import Array

from ._axes import Contraction
from ._contract import contract, summed_product

if TYPE_CHECKING:
    from jaxtyping import Shaped


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["y1", "y2"],
    meta_fields=["contraction", "precision", "shape", "own_mirror"],
)
@dataclass(frozen=True)
class Tile:
    """A tile of a kernel that is still to be computed, so that one program can compute it and put it in its place.

    Attributes:
        y1: the outputs of the rows of the tile.
        y2: the outputs of its columns.
        contraction: how the two become the tile.
        precision: the precision of the contraction.
        shape: the shape of the tile.
        own_mirror: for a tile on the diagonal of a symmetric kernel, the transposition into its mirror image, which it
            is then made exactly equal to; None for all other tiles.
    """

    y1: Shaped[Array, "rows ..."]
    y2: Shaped[Array, "columns ..."]
    contraction: Contraction
    precision: Any
    shape: tuple[int, ...]
    own_mirror: tuple[int, ...] | None = None

    @jax.jit
    def __call__(self) -> Array:
        """Computes the tile."""
        if self.own_mirror is None:
            return contract(self.y1, self.y2, self.contraction, self.precision)
        product = summed_product(self.y1, self.y2, self.contraction, self.precision)
        # The division comes last, because a fused multiply-add would round the two summands differently.
        return (product + product.transpose(self.own_mirror).conj()) / float(2 * self.contraction.size)
