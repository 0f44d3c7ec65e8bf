"""Products of features, by blocks of examples where there are many: no copy of them, and half of what is symmetric."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

ROWS = 1024  # of a block of examples: with its products it stays in the cache
MANY = 8  # blocks; fewer are one product, which XLA computes once for all metrics of a program
COLUMNS = 128  # of a block of features of which only products with later ones are taken


def product(a: Array, b: Array) -> Array:
    """A matrix product that accelerators do not round to TF32 or bfloat16."""
    return jnp.matmul(a, b, precision="highest")


def same_width(phi: Array, psi: Array) -> tuple[Array, Array]:
    """Features with columns of zeros beside the narrower ones, which changes no kernel."""
    width = max(phi.shape[1], psi.shape[1])
    return tuple(jnp.pad(f, ((0, 0), (0, width - f.shape[1]))) for f in (phi, psi))  # type: ignore[return-value]


def diagonal(matrix: Array) -> Array:
    """``A[i, i]`` of a square matrix, without indices, which XLA takes out of loops and so fails to share."""
    return matrix.ravel()[:: len(matrix) + 1]


def add_to_diagonal(matrix: Array, value: Array) -> Array:
    """``A + value I``, without indices."""
    n = len(matrix)
    padded = lax.pad(jnp.full(n, value, matrix.dtype), jnp.zeros((), matrix.dtype), [(0, 0, n)])
    return matrix + padded.reshape(n, n)


@jax.jit
def column_mean(phi: Array, offset: Array | None) -> Array:
    """Mean of the rows less the offset; exactly that of one row where all are equal."""
    first = phi[0]
    return (first if offset is None else first - offset) + jnp.mean(phi - first, axis=0)


@jax.jit
def row_squares(phi: Array, offset: Array | None) -> Array:
    """``‖phi[i]‖²`` of each row less the offset."""
    return jnp.sum((phi if offset is None else phi - offset) ** 2, axis=-1)


@jax.jit
def square_of_cross(phi: Array, phi_offset: Array | None, psi: Array, psi_offset: Array | None) -> Array:
    """``‖phiᵀ psi‖²`` of features less their offsets."""
    (cross,) = _sum_over_rows(lambda a, b: [product(a.T, b)], (phi, phi_offset), (psi, psi_offset))
    return jnp.sum(cross**2)


def of_columns(phi: Array, offset: Array | None) -> Array:
    """``phiᵀ phi`` of features less their offset.

    Without one by centred features, which adds two positive matrices, so that XLA computes one product for both forms.
    """
    if offset is not None:
        return product((phi - offset).T, phi - offset)
    mean = column_mean(phi, None)
    return of_columns(phi, mean) + phi.shape[0] * jnp.outer(mean, mean)


@jax.jit
def square_of_gram(phi: Array, offset: Array | None) -> Array:
    """``‖phiᵀ phi‖²`` of features less their offset: twice what lies above the diagonal, and what lies on it."""

    def upper(a: Array) -> list[Array]:
        return [product(a[:, k : k + COLUMNS].T, a[:, k:]) for k in range(0, a.shape[1], COLUMNS)]

    if phi.shape[0] < MANY * ROWS:
        return jnp.sum(of_columns(phi, offset) ** 2)
    blocks = _sum_over_rows(upper, (phi, offset))
    return sum(jnp.sum(b[:, : b.shape[0]] ** 2) + 2 * jnp.sum(b[:, b.shape[0] :] ** 2) for b in blocks)  # type: ignore[return-value]


def _sum_over_rows(products: Callable[..., Sequence[Array]], *features: tuple[Array, Array | None]) -> Sequence[Array]:
    """``products`` of blocks of rows, summed."""

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
