"""How far a kernel has moved, with all the digits of small changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._gram import FeatureGram, Gram, as_gram_pair, rounding
from ._products import of_columns, product, same_width

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package


def relative_change(a: Gram | Array, a0: Gram | Array) -> Float[Array, ""]:
    """How far a kernel has moved from a reference: ``‖K − K0‖ / ‖K0‖`` in the Frobenius norm.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        a0: the reference, on the same examples.

    Returns:
        A scalar ≥ 0; nan when the reference is zero.

    Raises:
        ValueError: different N.

    Source: Fort et al., "Deep learning versus kernel learning", NeurIPS 2020 (kernel distance over training).

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.relative_change(3 * jnp.eye(4), jnp.eye(4)))
        2.0
    """
    a, a0 = as_gram_pair(a, a0)
    if isinstance(a, FeatureGram) and isinstance(a0, FeatureGram):
        change = _norm_of_change(*same_width(a.features, a0.features))
    else:
        change = jnp.linalg.norm(a.dense() - a0.dense())
    size = a0.frobenius()
    return change / jnp.where(size > 0, size, jnp.nan)


def kernel_distance(a: Gram | Array, b: Gram | Array, center: bool = False) -> Float[Array, ""]:
    """Kernel distance ``1 − ⟨K, L⟩ / (‖K‖ ‖L‖)``: one less the cosine, whatever the sizes of the kernels.

    Computed as ``sin² / (1 + cos)`` from the part of ``K − L`` that is orthogonal to L, so that small distances, down
    to the square of the rounding error, are right.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        center: centre both kernels first, which gives 1 − biased CKA.

    Returns:
        A scalar in [0, 1]; nan when a kernel is zero, or constant if centred.

    Raises:
        ValueError: different N.

    Source: Fort et al., "Deep learning versus kernel learning", NeurIPS 2020.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.kernel_distance(3 * jnp.eye(4), jnp.eye(4)))
        0.0
    """
    a, b = as_gram_pair(a, b)
    if center:
        a, b = _centered(a), _centered(b)
    sizes = a.trace(), b.trace()
    if isinstance(a, FeatureGram) and isinstance(b, FeatureGram):
        distance = _one_less_cosine(*same_width(a.features, b.features))
    else:
        root, apart = _log4(sizes[1]), _log4(sizes[0] / sizes[1])
        k, l = a.dense() * _power_of_2(-2 * (root + apart)), b.dense() * _power_of_2(-2 * root)  # noqa: E741
        distance = _distance(*_parts(k - l, l))
    return jnp.where((sizes[0] > 0) & (sizes[1] > 0), distance, jnp.nan)


def _power_of_2(exponent: Array) -> Array:
    """To bring traces to about 1 by powers of 4, which round nothing."""
    return jnp.ldexp(jnp.ones((), jnp.result_type(float)), exponent)


def _log4(size: Array) -> Array:
    root = jnp.round(jnp.log2(size) / 2)
    return jnp.where(jnp.isfinite(root), root, 0).astype(int)


def _centered(a: Gram) -> Gram:
    """The centred Gram; nan where that is the rounding error of a constant kernel."""
    centered = a.center()
    known = centered.trace() > rounding(a)
    return jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), centered)


def centered_kernel_velocity(a: Gram | Array, b: Gram | Array, steps: float | Array) -> Float[Array, ""]:
    """Kernel velocity: the centred :func:`kernel_distance` between two snapshots over the steps between them.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples, ``steps`` later or earlier.
        steps: of training between them, or epochs; positive.

    Returns:
        A scalar ≥ 0, per step.

    Raises:
        ValueError: different N.

    Source: Fort et al., "Deep learning versus kernel learning", NeurIPS 2020.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel = jnp.diag(jnp.arange(4.0))
        >>> float(nngp.metrics.centered_kernel_velocity(kernel, 2 * kernel, steps=10))
        0.0
    """
    return kernel_distance(a, b, center=True) / steps


Parts = tuple[Array, Array, Array, Array]
"""``‖Δ‖²``, ``‖Δ⊥‖²`` with ``Δ⊥`` orthogonal to L, ``⟨K, L⟩`` and ``‖L‖²``, where ``K = L + Δ``."""


def _parts(change: Array, base: Array) -> Parts:
    """From matrices, in any common basis."""
    size = jnp.sum(base**2)
    along = jnp.sum(change * base)
    aside = change - along / jnp.where(size > 0, size, jnp.nan) * base
    return jnp.sum(change**2), jnp.sum(aside**2), size + along, size


def _parts_of_features(phi: Array, psi: Array, root: Array) -> Parts:
    """Of ``K = phi phiᵀ`` and ``L = psi psiᵀ``, both over ``4^root``.

    Products ``(D, D)`` with ``delta = phi − psi`` give them, but for digits that cancel, as where features were rotated
    and the kernel is the same; then the triangular factor of ``[delta, psi] = Q R`` does.
    """
    (n, d), delta, scale = phi.shape, phi - psi, _power_of_2(-root)

    def from_matrices(delta: Array, psi: Array) -> Parts:
        cross = product(delta, psi.T)
        return _parts(cross + cross.T + product(delta, delta.T), product(psi, psi.T))

    if 2 * d >= n:
        return from_matrices(delta * scale, psi * scale)

    def from_triangle() -> Parts:
        beside = jnp.pad(jnp.concatenate([delta, psi], axis=1) * scale, ((0, n % 2), (0, 0)))
        # by halves: XLA would transpose all of it for LAPACK even where this branch is not taken
        halves = jnp.linalg.qr(beside.reshape(2, -1, 2 * d), mode="r")
        r = jnp.linalg.qr(halves.reshape(-1, 2 * d), mode="r")
        return from_matrices(r[:, :d], r[:, d:])

    dd, dp, pp = (m * scale * scale for m in (product(delta.T, delta), product(delta.T, psi), of_columns(psi, None)))
    delta_sum, sum_sum = 2 * dp + dd, 4 * pp + 2 * (dp + dp.T) + dd  # products with psi + (psi + delta)
    most = jnp.sum(dd * sum_sum)
    change = (most + jnp.sum(delta_sum * delta_sum.T)) / 2
    along, size = 2 * jnp.sum(dp * pp) + jnp.sum(dp**2), jnp.sum(pp**2)
    aside = change - along**2 / jnp.where(size > 0, size, jnp.nan)
    return lax.cond(aside < 1e-3 * most, from_triangle, lambda: (change, aside, size + along, size))


def _distance(change: Array, aside: Array, inner: Array, size: Array) -> Array:
    """``1 − cos = sin² / (1 + cos)``."""
    square = aside + inner**2 / size  # ‖K‖²
    scale = jnp.where((size > 0) & (square > 0), jnp.sqrt(size) * jnp.sqrt(square), jnp.nan)
    return aside / jnp.where(square > 0, square, jnp.nan) / (1 + inner / scale)


def _with_derivative_of(smooth: Callable[..., Array]) -> Callable[[Callable[..., Array]], Any]:
    """The derivative of a simpler formula of the same number: QR has none beside a dead unit, a column of zeros."""

    def of(function: Callable[..., Array]) -> Any:
        accurate = jax.custom_jvp(function)

        @accurate.defjvp
        def jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
            return accurate(*primals), jax.jvp(smooth, primals, tangents)[1]

        return accurate

    return of


def _cosine_by_products(phi: Array, psi: Array) -> Array:
    a, b = (FeatureGram(f * _power_of_2(-_log4(lax.stop_gradient(jnp.sum(f**2))))) for f in (phi, psi))
    return 1 - a.inner(b) / (a.frobenius() * b.frobenius())


@_with_derivative_of(_cosine_by_products)
def _one_less_cosine(phi: Array, psi: Array) -> Array:
    sizes = jnp.sum(phi**2), jnp.sum(psi**2)
    root, apart = _log4(sizes[1]), _log4(sizes[0] / sizes[1])
    near = _parts_of_features(phi, psi, root)  # those of relative_change, which XLA computes once for both
    parts = lax.cond(apart == 0, lambda: near, lambda: _parts_of_features(phi * _power_of_2(-apart), psi, root))
    return _distance(*parts)


@jax.custom_jvp
def _norm_of_change(phi: Array, psi: Array) -> Array:
    root = _log4(jnp.sum(psi**2))
    return jnp.sqrt(_parts_of_features(phi, psi, root)[0]) * _power_of_2(root) ** 2


@_norm_of_change.defjvp
def _norm_of_change_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """``d‖Δ‖ = 2 (⟨Δ phi, dphi⟩ − ⟨Δ psi, dpsi⟩) / ‖Δ‖``."""
    (phi, psi), (d_phi, d_psi) = primals, tangents
    norm = _norm_of_change(phi, psi)

    def times(v: Array) -> Array:
        return product(phi, product(phi.T, v)) - product(psi, product(psi.T, v))

    change = 2 * (jnp.sum(times(phi) * d_phi) - jnp.sum(times(psi) * d_psi))
    return norm, jnp.where(norm > 0, change / jnp.where(norm > 0, norm, 1), 0)  # at its minimum, the subgradient 0
