"""The kernel of outputs with themselves: exactly symmetric, and as fast as the backend can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._contract import summed_product
from ._plan import PlannedKernel

# Below this many rows, the routine for symmetric products does not fill a GPU.
SYRK_ROWS = 1536


def is_whole_product_best(kernel: PlannedKernel, rows: int, tile_rows: int, precision: Any) -> bool:
    """Whether one product, or one call of a routine for symmetric products, beats tiles."""
    return rows <= tile_rows or _has_routine(kernel, rows, precision)


def whole_product(y: Array, kernel: PlannedKernel, precision: Any) -> Array:
    """The kernel of outputs with themselves, as the backend computes it best.

    Args:
        y: outputs, transposed into the axes that the contraction reads.
        kernel: how they are contracted.
        precision: the precision of the contraction.
    """
    if not _has_routine(kernel, y.shape[0], precision):
        return product_with_itself(y, kernel, precision)
    matrix = y.reshape(y.shape[0], -1)
    nothing = lax.empty((len(matrix), len(matrix)), matrix.dtype)
    scale = 1 / kernel.contraction.size
    return lax.linalg.symmetric_product(matrix, nothing, alpha=scale, beta=0.0, symmetrize_output=True)


def product_with_itself(y: Array, kernel: PlannedKernel, precision: Any) -> Array:
    """The kernel of outputs with themselves: the mean of a product and its mirror image."""
    product = summed_product(y, y, kernel.contraction, precision)
    # The division comes last, because a fused multiply-add would round the two summands differently.
    return (product + product.transpose(kernel.mirror).conj()) / float(2 * kernel.contraction.size)


def panels(
    product: Callable[[int, int, int, int], Array], kernel: PlannedKernel, rows: int, height: int
) -> Iterator[tuple[int, Array]]:
    """The part of a symmetric kernel on and above the diagonal, in panels that reach to the right edge.

    GPUs compute few large products faster than many tiles.

    Args:
        product: the product of some rows with some columns, by the first of each and how many they are.
        kernel: how outputs are contracted.
        rows: how many rows there are.
        height: rows of a panel.

    Yields:
        The first row of each panel, and the panel, whose square on the diagonal is exactly symmetric.
    """
    for start in range(0, rows, height):
        size = min(height, rows - start)
        panel = product(start, size, start, rows - start)
        square = panel[:, :size]
        square = (square + square.transpose(kernel.mirror).conj()) / 2
        yield start, jnp.concatenate([square, panel[:, size:]], axis=1)


def _has_routine(kernel: PlannedKernel, rows: int, precision: Any) -> bool:
    """Whether the GPU's routine for symmetric products (syrk) computes this kernel at this precision."""
    return (
        jax.default_backend() == "gpu"
        and rows >= SYRK_ROWS
        and kernel.mirror == (1, 0)
        and not kernel.contraction.diagonal[0]
        and jnp.dtype(kernel.input_dtype) in (jnp.float32, jnp.float64)
        and precision in ("highest", lax.Precision.HIGHEST)
    )
