"""Products of features of many examples: as each platform computes them fastest, on CPUs without copies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# On a CPU, fewer examples than this are one product, which XLA shares among all metrics of a program.
MANY = 8192
# Examples per block of the others; a block and its products fit into the cache.
ROWS = 512
# Columns per block; only blocks on or above the diagonal of phiᵀ phi are computed.
COLUMNS = 256
# An accelerator computes this many entries of products side by side: 128 tiles of 128 × 128, which keep it busy.
FILLED = 2**21


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


class Features(NamedTuple):
    """Features ``phi · power − offset``, which are put together where they are used.

    Attributes:
        phi: ``(N, D)``.
        offset: ``(D,)``; None for no offset.
        power: a scalar; None for 1.
    """

    phi: Array
    offset: Array | None = None
    power: Array | None = None

    def rows(self, phi: Array) -> Array:
        """The features of some rows of ``phi``."""
        scaled = phi if self.power is None else phi * self.power
        return scaled if self.offset is None else scaled - self.offset[None]

    def all(self) -> Array:
        """All features."""
        return self.rows(self.phi)


@jax.jit
def column_mean(features: Features) -> Array:
    """Mean of the rows. If all rows are equal, it is exactly that row."""
    phi, power = features.phi, features.power
    difference = jnp.mean(phi - phi[:1], axis=0)
    if power is not None:
        # XLA copies features that are scaled before they are summed up. Only a sum that overflows needs that.
        difference = lax.cond(
            jnp.isfinite(difference).all(),
            lambda: difference * power,
            lambda: jnp.mean((phi - phi[:1]) * power, axis=0),
        )
    return features.rows(phi[:1])[0] + difference


@jax.jit
def row_squares(features: Features) -> Array:
    """``‖phi[i]‖²`` of each row."""
    return jnp.sum(features.all() ** 2, axis=-1)


@jax.jit
def of_rows(a: Array, b: Array) -> Array:
    """``aᵀ b``, a product of columns that sums over rows.

    One product of many rows with few columns leaves most of an accelerator idle. There, parts of the rows are
    multiplied side by side, and then added up.
    """
    (n, d), e = a.shape, b.shape[1]
    parts = min(n // ROWS, FILLED // (d * e)) if d * e else 1

    def by_parts(a: Array, b: Array) -> Array:
        even = n - n % parts
        split = [f[:even].reshape(parts, -1, f.shape[1]) for f in (a, b)]
        return product(split[0].mT, split[1]).sum(axis=0) + product(a[even:].T, b[even:])

    def at_once(a: Array, b: Array) -> Array:
        return product(a.T, b)

    return at_once(a, b) if parts < 2 else lax.platform_dependent(a, b, cpu=at_once, default=by_parts)


def of_columns(features: Features) -> Array:
    """``phiᵀ phi`` of features.

    Without an offset, it is the product of the centred features plus the part of the mean. Both are positive
    semi-definite, so no digits cancel, and XLA shares the product with the centred Gram.
    """
    if features.offset is not None:
        moved = features.all()
        return of_rows(moved, moved)
    mean = column_mean(features)
    return of_columns(features._replace(offset=mean)) + features.phi.shape[0] * jnp.outer(mean, mean)


@partial(jax.jit, static_argnames="pairs")
def squares(features: tuple[Features, ...], pairs: tuple[tuple[int, int], ...]) -> tuple[list[Array], list[Array]]:
    """``‖phiᵀ psi‖²`` of pairs of features, and ``‖phi[i]‖²`` of each row of all features.

    Args:
        features: of the same examples.
        pairs: which features to multiply; ``(0, 0)`` are the first with themselves.
    """
    at_once, by_blocks = partial(_squares_at_once, pairs), partial(_squares_by_blocks, pairs)
    if features[0].phi.shape[0] < MANY:
        return at_once(features)
    return lax.platform_dependent(features, cpu=by_blocks, default=at_once)


def _squares_at_once(pairs: Sequence[tuple[int, int]], features: Sequence[Features]) -> tuple[list[Array], list[Array]]:
    """What :func:`squares` returns, from whole products."""
    moved = [f.all() for f in features]
    products = [of_columns(features[i]) if i == j else of_rows(moved[i], moved[j]) for i, j in pairs]
    return [jnp.sum(p**2) for p in products], [row_squares(f) for f in features]


def _squares_by_blocks(
    pairs: Sequence[tuple[int, int]], features: Sequence[Features]
) -> tuple[list[Array], list[Array]]:
    """What :func:`squares` returns, by blocks of rows, each of which is read once for all pairs."""
    n = features[0].phi.shape[0]
    rest = n % ROWS or ROWS

    def block(start: int | Array, rows: int) -> tuple[list[list[Array]], list[Array]]:
        moved = [f.rows(lax.dynamic_slice_in_dim(f.phi, start, rows)) for f in features]
        products = [_upper(moved[i]) if i == j else [product(moved[i].T, moved[j])] for i, j in pairs]
        return products, [jnp.sum(f**2, axis=1) for f in moved]

    def add(sums: list[list[Array]], i: Array) -> tuple[list[list[Array]], list[Array]]:
        products, of_row = block(i * ROWS, ROWS)
        return jax.tree.map(jnp.add, sums, products), of_row

    # The last block may be smaller, and the others are added to it.
    sums, last = block(n - rest, rest)
    sums, of_row = lax.scan(add, sums, jnp.arange((n - rest) // ROWS))
    rows = [jnp.concatenate([first.ravel(), end]) for first, end in zip(of_row, last, strict=True)]
    return [_square(blocks, i == j) for blocks, (i, j) in zip(sums, pairs, strict=True)], rows


def _upper(phi: Array) -> list[Array]:
    """The blocks of rows of ``phiᵀ phi``, each from the diagonal on."""
    return [product(phi[:, k : k + COLUMNS].T, phi[:, k:]) for k in range(0, phi.shape[1], COLUMNS)]


def _square(blocks: Sequence[Array], symmetric: bool) -> Array:
    """``‖A‖²`` of the product of a pair: of itself, or of the blocks of :func:`_upper`."""
    if not symmetric:
        return jnp.sum(blocks[0] ** 2)
    start = jnp.zeros((), blocks[0].dtype)
    return sum((jnp.sum(b[:, : len(b)] ** 2) + 2 * jnp.sum(b[:, len(b) :] ** 2) for b in blocks), start)
