"""The kernel of outputs with themselves: exactly symmetric, and as fast as the backend can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._contract import summed_product
from ._plan import PlannedKernel

# All of these were measured on an H100. Below this many rows, the routine for symmetric products does not fill it.
SYRK_ROWS = 1536
# Up to this many rows, products of so long rows are faster in parts.
FEW_ROWS, LONG, PARTS = 512, 2048, 16


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
    matrix = y.reshape(y.shape[0], -1)
    if _has_routine(kernel, len(matrix), precision):
        nothing = lax.empty((len(matrix), len(matrix)), matrix.dtype)
        scale = 1 / kernel.contraction.size
        return lax.linalg.symmetric_product(matrix, nothing, alpha=scale, beta=0.0, symmetrize_output=True)
    if _leaves_idle(kernel, len(matrix), matrix.shape[1], precision):
        parts = matrix.reshape(len(matrix), PARTS, -1)
        product = jnp.einsum("npd,mpd->pnm", parts, parts, precision="highest").sum(axis=0)
        return _symmetrised(product, kernel)
    return product_with_itself(y, kernel, precision)


def product_with_itself(y: Array, kernel: PlannedKernel, precision: Any) -> Array:
    """The kernel of outputs with themselves: the mean of a product and its mirror image."""
    return _symmetrised(summed_product(y, y, kernel.contraction, precision), kernel)


def _symmetrised(product: Array, kernel: PlannedKernel) -> Array:
    # The division comes last, because a fused multiply-add would round the two summands differently.
    return (product + product.transpose(kernel.mirror).conj()) / float(2 * kernel.contraction.size)


def panels(
    product: Callable[[int, int, int, int], Array], kernel: PlannedKernel, rows: int, height: int
) -> Iterator[tuple[int, Array, Array | None]]:
    """The part of a symmetric kernel on and above the diagonal, in panels that reach to the right edge.

    GPUs compute few large products faster than many tiles.

    Args:
        product: the product of some rows with some columns, by the first of each and how many they are, before it is
            divided by the number of terms.
        kernel: how outputs are contracted.
        rows: how many rows there are.
        height: rows of a panel.

    Yields:
        The first row of each panel, its square on the diagonal, which is exactly symmetric, and what is right of that;
        None at the end.
    """
    for start in range(0, rows, height):
        size = min(height, rows - start)
        panel = product(start, size, start, rows - start)
        right = panel[:, size:] / float(kernel.contraction.size) if start + size < rows else None
        yield start, _symmetrised(panel[:, :size], kernel), right


def _has_routine(kernel: PlannedKernel, rows: int, precision: Any) -> bool:
    """Whether the GPU's routine for symmetric products (syrk) is the fastest for this kernel."""
    return rows >= SYRK_ROWS and _is_plain_on_gpu(kernel, precision)


def _leaves_idle(kernel: PlannedKernel, rows: int, width: int, precision: Any) -> bool:
    """Whether one product leaves much of a GPU idle, and shorter ones side by side, which are added, do not."""
    is_long = width >= LONG and width % PARTS == 0
    return rows <= FEW_ROWS and is_long and _is_plain_on_gpu(kernel, precision)


def _is_plain_on_gpu(kernel: PlannedKernel, precision: Any) -> bool:
    """Whether a kernel is one matrix product of real numbers at full precision, on a GPU."""
    return (
        jax.default_backend() == "gpu"
        and kernel.mirror == (1, 0)
        and not kernel.contraction.diagonal[0]
        and jnp.dtype(kernel.input_dtype) in (jnp.float32, jnp.float64)
        and precision in ("highest", lax.Precision.HIGHEST)
    )
