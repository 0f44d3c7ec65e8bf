"""How far a kernel has moved. Small changes keep all their digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._catalogue import INNER, ROTATION, SCALE, entry
from ._features import FeatureGram
from ._gram import Gram
from ._products import of_columns, product, same_width
from ._to_grams import as_gram_pair, rounding

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="Relative change since init",
    formula="‖K − K₀‖ / ‖K₀‖",
    range="≥ 0",
    cost=f"3 × {INNER}",
    tells="how far the kernel is from the reference; it stays near 0 throughout lazy training",
    misleads="scale counts: if the loss diverges, or the weights only grow, it is large though nothing was learnt",
    log_axis=True,
    relative_to_reference=True,
    tracked=True,
)
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


@entry(
    title="Kernel distance to init",
    formula="1 − ⟨K, L⟩ / (‖K‖ ‖L‖)",
    range="[0, 1]",
    cost=f"3 × {INNER}",
    tells="how far the kernel has turned, whatever its size; accurate down to 1e-14 in float32",
    misleads="without centring, it misses changes that are small beside a large mean",
    invariant=(ROTATION, SCALE),
    log_axis=True,
    relative_to_reference=True,
    tracked=True,
)
def kernel_distance(a: Gram | Array, b: Gram | Array, center: bool = False) -> Float[Array, ""]:
    """Kernel distance ``1 − ⟨K, L⟩ / (‖K‖ ‖L‖)``: one minus the cosine, whatever the sizes of the kernels.

    It is computed as ``sin² / (1 + cos)`` from the part of ``K − L`` that is orthogonal to L. Distances are therefore
    accurate down to the square of the rounding error.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        center: centre both kernels first, which gives 1 − biased CKA.

    Returns:
        A scalar in [0, 1]; nan for a zero kernel, and with ``center=True`` for a constant one.

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
        distance = _one_minus_cosine(*same_width(a.features, b.features))
    else:
        root, apart = _log4(sizes[1]), _log4(sizes[0] / sizes[1])
        k, l = a.dense() * _power_of_2(-2 * (root + apart)), b.dense() * _power_of_2(-2 * root)  # noqa: E741
        distance = _distance(*_parts(k - l, l))
    return jnp.where((sizes[0] > 0) & (sizes[1] > 0), distance, jnp.nan)


def _power_of_2(exponent: Array) -> Array:
    """``2^exponent`` exactly. Scaling by powers of 4 brings traces to about 1 without rounding."""
    return jnp.ldexp(jnp.ones((), jnp.result_type(float)), exponent)


def _log4(size: Array) -> Array:
    """Base-4 logarithm of a size, rounded to an integer; 0 for a size of zero, NaN or infinity."""
    root = jnp.round(jnp.log2(size) / 2)
    return jnp.where(jnp.isfinite(root), root, 0).astype(int)


def _centered(a: Gram) -> Gram:
    """The centred Gram; nan for a constant kernel, whose centred form is only rounding error."""
    centered = a.center()
    above_rounding = centered.trace() > rounding(a)
    masked: Gram = jax.tree.map(lambda leaf: jnp.where(above_rounding, leaf, jnp.nan), centered)
    return masked


Parts = tuple[Array, Array, Array, Array]
"""For ``K = L + Δ``: ``‖Δ‖²``, ``‖Δ⊥‖²`` with ``Δ⊥`` the part orthogonal to L, ``⟨K, L⟩`` and ``‖L‖²``."""


def _parts(change: Array, base: Array) -> Parts:
    """The parts from the matrices Δ (``change``) and L (``base``) in any common basis."""
    size = jnp.sum(base**2)
    along = jnp.sum(change * base)
    aside = change - along / jnp.where(size > 0, size, jnp.nan) * base
    return jnp.sum(change**2), jnp.sum(aside**2), size + along, size


def _parts_of_features(phi: Array, psi: Array, root: Array) -> Parts:
    """The parts for ``K = phi phiᵀ`` and ``L = psi psiᵀ``, both divided by ``4^root``.

    Normally ``(D, D)`` products of ``delta = phi − psi`` and ``psi`` suffice. Their digits cancel if the features
    change but the kernel hardly does, as in a rotation. Then the triangular factor of ``[delta, psi] = Q R`` is used.
    """
    (n, d), delta, scale = phi.shape, phi - psi, _power_of_2(-root)

    def from_matrices(delta: Array, psi: Array) -> Parts:
        cross = product(delta, psi.T)
        return _parts(cross + cross.T + product(delta, delta.T), product(psi, psi.T))

    if 2 * d >= n:
        return from_matrices(delta * scale, psi * scale)

    def from_triangle() -> Parts:
        beside = jnp.pad(jnp.concatenate([delta, psi], axis=1) * scale, ((0, n % 2), (0, 0)))
        # XLA transposes the operand of a QR for LAPACK, even if this branch is not taken. Halves avoid that cost.
        halves = jnp.linalg.qr(beside.reshape(2, -1, 2 * d), mode="r")
        r = jnp.linalg.qr(halves.reshape(-1, 2 * d), mode="r")
        return from_matrices(r[:, :d], r[:, d:])

    dd = product(delta.T, delta) * scale * scale
    dp = product(delta.T, psi) * scale * scale
    pp = of_columns(psi, None) * scale * scale
    # With total = phi + psi = 2 psi + delta, these are deltaᵀ total and totalᵀ total.
    delta_sum, sum_sum = 2 * dp + dd, 4 * pp + 2 * (dp + dp.T) + dd
    most = jnp.sum(dd * sum_sum)
    change = (most + jnp.sum(delta_sum * delta_sum.T)) / 2
    along, size = 2 * jnp.sum(dp * pp) + jnp.sum(dp**2), jnp.sum(pp**2)
    aside = change - along**2 / jnp.where(size > 0, size, jnp.nan)
    return lax.cond(aside < 1e-3 * most, from_triangle, lambda: (change, aside, size + along, size))


def _distance(change: Array, aside: Array, inner: Array, size: Array) -> Array:
    """``1 − cos = sin² / (1 + cos)``."""
    square = aside + inner**2 / size  # This is ‖K‖².
    scale = jnp.where((size > 0) & (square > 0), jnp.sqrt(size) * jnp.sqrt(square), jnp.nan)
    return aside / jnp.where(square > 0, square, jnp.nan) / (1 + inner / scale)


def _with_derivative_of(smooth: Callable[..., Array]) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Gives a function the derivative of a simpler formula for the same number.

    QR has no derivative if a unit is dead, which makes a column of zeros.
    """

    def wrap(function: Callable[..., Array]) -> Callable[..., Array]:
        accurate = jax.custom_jvp(function)

        @accurate.defjvp
        def jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
            return accurate(*primals), jax.jvp(smooth, primals, tangents)[1]

        return accurate

    return wrap


def _smooth_one_minus_cosine(phi: Array, psi: Array) -> Array:
    a, b = (FeatureGram(f * _power_of_2(-_log4(lax.stop_gradient(jnp.sum(f**2))))) for f in (phi, psi))
    return 1 - a.inner(b) / (a.frobenius() * b.frobenius())


@_with_derivative_of(_smooth_one_minus_cosine)
def _one_minus_cosine(phi: Array, psi: Array) -> Array:
    sizes = jnp.sum(phi**2), jnp.sum(psi**2)
    root, apart = _log4(sizes[1]), _log4(sizes[0] / sizes[1])
    # These are the parts that relative_change needs too; XLA computes them once for both.
    near = _parts_of_features(phi, psi, root)
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
    # At norm 0, the minimum, the derivative does not exist and 0 is a subgradient.
    return norm, jnp.where(norm > 0, change / jnp.where(norm > 0, norm, 1), 0)
