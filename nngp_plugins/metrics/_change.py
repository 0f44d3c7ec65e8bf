"""How far a kernel has moved. Small changes keep all their digits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._catalogue import INNER, ROTATION, SCALE, entry
from ._features import FeatureGram
from ._gram import Gram
from ._powers import power_of_2, times_power_of_4
from ._products import column_mean, of_columns, product
from ._streamed import is_streamed
from ._streamed_change import change_of_streams
from ._to_grams import as_gram_pair, one_program, rounding, with_derivative_of

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
    if is_streamed(a, a0):
        return jnp.sqrt(change_of_streams(a, a0)[0])
    return _relative_change(*as_gram_pair(a, a0))


@one_program
def _relative_change(a: Gram, a0: Gram) -> Float[Array, ""]:
    k, k0, gap = _in_units_of(a, a0)
    if isinstance(a, FeatureGram) and isinstance(a0, FeatureGram):
        change = _norm_of_change(a, a0)
    else:
        change = jnp.linalg.norm(k.dense() - k0.dense())
    # Beside a kernel that is so much larger, the reference is less than its rounding error.
    change = jnp.where(_is_far(gap, change.dtype), times_power_of_4(a.normalised()[0].frobenius(), gap), change)
    size = k0.frobenius()
    return change / jnp.where(size > 0, size, jnp.nan)


def _in_units_of(a: Gram, b: Gram) -> tuple[Gram, Gram, Array]:
    """K and L divided by ``4^e`` so that the entries of L are about 1, and by how many powers of 4 K is larger.

    All metrics take L in these units, so that XLA computes its products once for all. A kernel K that is far larger
    stays in its own units.
    """
    base, exponent = b.normalised()
    own = a.size_exponent()
    gap = own - exponent
    return a.divided(jnp.where(_is_far(gap, base.trace().dtype), own, exponent)), base, gap


def _is_far(gap: Array, dtype: Any) -> Array:
    """Whether a number has no digits for two kernels that differ by this power of 4."""
    return gap > jnp.finfo(dtype).nmant - 3


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
    if is_streamed(a, b):
        return _distance(*change_of_streams(a, b, center))
    return _kernel_distance(*as_gram_pair(a, b), center)


@partial(one_program, static_argnames="center")
def _kernel_distance(a: Gram, b: Gram, center: bool) -> Float[Array, ""]:
    if center:
        a, b = _centered(a.normalised()[0]), _centered(b.normalised()[0])
    k, l = a.normalised()[0], b.normalised()[0]  # noqa: E741
    sizes = k.trace(), l.trace()
    if isinstance(a, FeatureGram) and isinstance(b, FeatureGram):
        distance = _one_minus_cosine(a, b)
    else:
        base = l.dense()
        distance = _distance(*_parts(k.divided(_log4(sizes[0] / sizes[1])).dense() - base, base))
    return jnp.where((sizes[0] > 0) & (sizes[1] > 0), distance, jnp.nan)


def _log4(size: Array) -> Array:
    """Base-4 logarithm of a size, rounded to an integer; 0 for a size of zero, NaN or infinity."""
    root = jnp.round(jnp.log2(size) / 2)
    return jnp.where(jnp.isfinite(root), root, 0).astype(jnp.int32)


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


def _parts_of_features(k: FeatureGram, l: FeatureGram, root: Array) -> Parts:  # noqa: E741
    """The parts of K and L, both divided by ``4^root``.

    Normally ``(D, D)`` products of ``delta = phi − psi`` and ``psi`` suffice. Their digits cancel if the features
    change but the kernel hardly does, as in a rotation. Then the triangular factor of ``[delta, psi] = Q R`` is used.
    """
    k, l = _same_width(k, l)  # noqa: E741
    (n, d), delta, scale = k.phi.shape, k.features - l.features, power_of_2(-root, k.phi.dtype)

    def from_matrices(delta: Array, psi: Array) -> Parts:
        cross = product(delta, psi.T)
        return _parts(cross + cross.T + product(delta, delta.T), product(psi, psi.T))

    if 2 * d >= n:
        return from_matrices(delta * scale, l.features * scale)

    def from_triangle() -> Parts:
        beside = jnp.pad(jnp.concatenate([delta, l.features], axis=1) * scale, ((0, n % 2), (0, 0)))
        # XLA transposes the operand of a QR for LAPACK, even if this branch is not taken. Halves avoid that cost.
        halves = jnp.linalg.qr(beside.reshape(2, -1, 2 * d), mode="r")
        r = jnp.linalg.qr(halves.reshape(-1, 2 * d), mode="r")
        return from_matrices(r[:, :d], r[:, d:])

    dd = product(delta.T, delta) * scale * scale
    # The centred features are there for pp; XLA would copy others for a product.
    centered = l.center()
    dp = (product(delta.T, centered.features) + jnp.outer(delta.sum(axis=0), column_mean(l.parts))) * scale * scale
    pp = of_columns(l.parts) * scale * scale
    # With total = phi + psi = 2 psi + delta, these are deltaᵀ total and totalᵀ total.
    delta_sum, sum_sum = 2 * dp + dd, 4 * pp + 2 * (dp + dp.T) + dd
    most = jnp.sum(dd * sum_sum)
    change = (most + jnp.sum(delta_sum * delta_sum.T)) / 2
    along, size = 2 * jnp.sum(dp * pp) + jnp.sum(dp**2), jnp.sum(pp**2)
    aside = change - along**2 / jnp.where(size > 0, size, jnp.nan)
    return lax.cond(aside < 1e-3 * most, from_triangle, lambda: (change, aside, size + along, size))


def _same_width(*grams: FeatureGram) -> list[FeatureGram]:
    """Pads the narrower features with columns of zeros, which does not change their kernel."""
    width = max(gram.phi.shape[1] for gram in grams)

    def padded(gram: FeatureGram) -> FeatureGram:
        missing = width - gram.phi.shape[1]
        offset = None if gram.offset is None else jnp.pad(gram.offset, (0, missing))
        return replace(gram, phi=jnp.pad(gram.phi, ((0, 0), (0, missing))), offset=offset)

    return [padded(gram) for gram in grams]


def _distance(change: Array, aside: Array, inner: Array, size: Array) -> Array:
    """``1 − cos = sin² / (1 + cos)``."""
    square = aside + inner**2 / size  # This is ‖K‖².
    scale = jnp.where((size > 0) & (square > 0), jnp.sqrt(size) * jnp.sqrt(square), jnp.nan)
    return aside / jnp.where(square > 0, square, jnp.nan) / (1 + inner / scale)


def _smooth_one_minus_cosine(a: FeatureGram, b: FeatureGram) -> Array:
    k, l = a.normalised()[0], b.normalised()[0]  # noqa: E741
    return 1 - k.inner(l) / (k.frobenius() * l.frobenius())


@with_derivative_of(_smooth_one_minus_cosine)
def _one_minus_cosine(a: FeatureGram, b: FeatureGram) -> Array:
    (k, own), (l, exponent) = a.normalised(), b.normalised()  # noqa: E741
    sizes = k.trace(), l.trace()
    apart = _log4(sizes[0] / sizes[1])
    near, _ = _parts_in_units_of(a, b)

    def far() -> Parts:
        return _parts_of_features(a.divided(own + apart), b.divided(exponent), _log4(sizes[1]))

    return _distance(*lax.cond(apart == exponent - own, lambda: near, far))


def _parts_in_units_of(a: FeatureGram, b: FeatureGram) -> tuple[Parts, Array]:
    """The parts of both kernels in units of the second one, divided by ``4^root``, and the root.

    Relative change and kernel distance need these; XLA computes them once for both. The root brings traces to about 1:
    those of many examples are large even if no entry is.
    """
    k, base, gap = _in_units_of(a, b)
    own_trace, trace = a.normalised()[0].trace(), base.trace()
    root = _log4(times_power_of_4(own_trace, jnp.where(_is_far(gap, trace.dtype), 0, gap)) + trace)
    return _parts_of_features(k, base, root), root  # type: ignore[arg-type]


@jax.custom_jvp
def _norm_of_change(a: FeatureGram, b: FeatureGram) -> Array:
    """``‖K − L‖`` in units of L."""
    parts, root = _parts_in_units_of(a, b)
    return times_power_of_4(jnp.sqrt(parts[0]), root)


@_norm_of_change.defjvp
def _norm_of_change_jvp(
    primals: tuple[FeatureGram, FeatureGram], tangents: tuple[FeatureGram, FeatureGram]
) -> tuple[Array, Array]:
    """``d‖Δ‖ = 2 (⟨Δ phi, dphi⟩ − ⟨Δ psi, dpsi⟩) / ‖Δ‖``."""

    def features(*grams: FeatureGram) -> list[Array]:
        return [gram.features for gram in _in_units_of(*grams)[:2]]  # type: ignore[attr-defined]

    (phi, psi), (d_phi, d_psi) = jax.jvp(features, primals, tangents)
    norm = _norm_of_change(*primals)

    def times(v: Array) -> Array:
        return product(phi, product(phi.T, v)) - product(psi, product(psi.T, v))

    change = 2 * (jnp.sum(times(phi) * d_phi) - jnp.sum(times(psi) * d_psi))
    # At norm 0, the minimum, the derivative does not exist and 0 is a subgradient.
    return norm, jnp.where(norm > 0, change / jnp.where(norm > 0, norm, 1), 0)
