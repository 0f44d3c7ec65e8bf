"""Products of features: by blocks of rows if there are many, without copies, and symmetric ones by half."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

# Examples per block; a block and its products fit into the cache.
ROWS = 1024
# Fewer blocks than this are computed as one product, which XLA shares among all metrics of a program.
MANY = 8
# Columns per block; only blocks on or above the diagonal of phiᵀ phi are computed.
COLUMNS = 128


def product(a: Array, b: Array) -> Array:
    """A matrix product at full precision; by default, accelerators round to TF32 or bfloat16."""
    return jnp.matmul(a, b, precision="highest")


def same_width(phi: Array, psi: Array) -> tuple[Array, Array]:
    """Pads the narrower features with columns of zeros, which does not change their kernel."""
    width = max(phi.shape[1], psi.shape[1])

    def pad(f: Array) -> Array:
        return jnp.pad(f, ((0, 0), (0, width - f.shape[1])))

    return pad(phi), pad(psi)


def diagonal(matrix: Array) -> Array:
    """``A[i, i]`` of a square matrix, by a slice: XLA moves index arrays out of loops and then does not share them."""
    return matrix.ravel()[:: len(matrix) + 1]


def add_to_diagonal(matrix: Array, value: Array) -> Array:
    """``A + value I``, without index arrays, as in :func:`diagonal`."""
    n = len(matrix)
    padded = lax.pad(jnp.full(n, value, matrix.dtype), jnp.zeros((), matrix.dtype), [(0, 0, n)])
    return matrix + padded.reshape(n, n)


@jax.jit
def column_mean(phi: Array, offset: Array | None) -> Array:
    """Mean of the rows minus the offset. If all rows are equal, it is exactly that row."""
    first = phi[0]
    return (first if offset is None else first - offset) + jnp.mean(phi - first, axis=0)


@jax.jit
def row_squares(phi: Array, offset: Array | None) -> Array:
    """``‖phi[i]‖²`` of each row minus the offset."""
    return jnp.sum((phi if offset is None else phi - offset) ** 2, axis=-1)


@jax.jit
def square_of_cross(phi: Array, phi_offset: Array | None, psi: Array, psi_offset: Array | None) -> Array:
    """``‖phiᵀ psi‖²`` of features minus their offsets."""
    (cross,) = _sum_over_rows(lambda a, b: [product(a.T, b)], (phi, phi_offset), (psi, psi_offset))
    return jnp.sum(cross**2)


def of_columns(phi: Array, offset: Array | None) -> Array:
    """``phiᵀ phi`` of features minus their offset.

    Without an offset, it is the product of the centred features plus the part of the mean. Both are positive
    semi-definite, so no digits cancel, and XLA shares the product with the centred Gram.
    """
    if offset is not None:
        return product((phi - offset).T, phi - offset)
    mean = column_mean(phi, None)
    return of_columns(phi, mean) + phi.shape[0] * jnp.outer(mean, mean)


@jax.jit
def square_of_gram(phi: Array, offset: Array | None) -> Array:
    """``‖phiᵀ phi‖²`` of features minus their offset: blocks on the diagonal, and twice the blocks above it."""

    def upper(a: Array) -> list[Array]:
        return [product(a[:, k : k + COLUMNS].T, a[:, k:]) for k in range(0, a.shape[1], COLUMNS)]

    if phi.shape[0] < MANY * ROWS:
        return jnp.sum(of_columns(phi, offset) ** 2)
    blocks = _sum_over_rows(upper, (phi, offset))
    total = jnp.zeros((), phi.dtype)
    for block in blocks:
        size = block.shape[0]
        total += jnp.sum(block[:, :size] ** 2) + 2 * jnp.sum(block[:, size:] ** 2)
    return total


def _sum_over_rows(products: Callable[..., Sequence[Array]], *features: tuple[Array, Array | None]) -> Sequence[Array]:
    """The sum of ``products(...)`` over blocks of rows of all features minus their offsets."""

    def block(start: int | Array, rows: int) -> Sequence[Array]:
        cut = (lax.dynamic_slice_in_dim(phi, start, rows) for phi, _ in features)
        return products(*(c if o is None else c - o for c, (_, o) in zip(cut, features, strict=True)))

    n = features[0][0].shape[0]
    count, rest = divmod(n, ROWS)
    if count < MANY:
        return block(0, n)

    def add(sums: Sequence[Array], i: Array) -> tuple[Sequence[Array], None]:
        return jax.tree.map(jnp.add, sums, block(i * ROWS, ROWS)), None

    sums, _ = lax.scan(add, block(0, ROWS), jnp.arange(1, count))
    return jax.tree.map(jnp.add, sums, block(n - rest, rest)) if rest else sums
