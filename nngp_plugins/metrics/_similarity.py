"""How alike two kernels on the same examples are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from ._gram import FeatureGram, Gram, as_gram_pair, product

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package


def cka(a: Gram | Array, b: Gram | Array, debiased: bool = True) -> Float[Array, ""]:
    """Centred kernel alignment of two kernels on the same N examples: 1 for equal geometry, about 0 for unrelated.

    ``CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))``. For centred kernels the HSIC is ``⟨K, L⟩``
    when biased, and the unbiased estimator of Song et al. reduces to
    ``⟨K, L⟩ − N/(N−2) diag K · diag L + tr K tr L / ((N−1)(N−2))``. The biased one tends to D/(D+N) for
    unrelated features of width D, so the debiased one is the default; it can be slightly negative.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        debiased: use the unbiased HSIC, which needs N ≥ 4; the biased one needs N ≥ 2.

    Returns:
        A scalar; nan when a kernel is constant or zero, and, if debiased, a multiple of the identity.

    Raises:
        ValueError: different or too small N.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, eq. 3; Song et
    al., "Feature Selection via Dependence Maximization", JMLR 2012, eq. 5.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> phi = nngp.metrics.FeatureGram(jax.random.normal(jax.random.key(0), (50, 10)))
        >>> round(float(nngp.metrics.cka(phi, phi)), 3)
        1.0
    """
    a, b = as_gram_pair(a, b, at_least=4 if debiased else 2)
    a, b = a.center(), b.center()
    hsic = _debiased_hsic if debiased else _biased_hsic
    return hsic(a, b) / (_root(hsic(a, a), a) * _root(hsic(b, b), b))


def _root(hsic: Array, a: Gram) -> Float[Array, ""]:
    """``sqrt(HSIC(K, K))``; nan where the HSIC is the rounding error of a kernel that has none."""
    noise = a.n * jnp.finfo(hsic.dtype).eps * a.inner(a)
    return jnp.sqrt(jnp.where(hsic > noise, hsic, jnp.nan))


def _biased_hsic(a: Gram, b: Gram) -> Float[Array, ""]:
    return a.inner(b)


def _debiased_hsic(a: Gram, b: Gram) -> Float[Array, ""]:
    """Song et al. 2012, eq. 5, for centred kernels, times the factor N(N−3) that the ratio cancels."""
    n = a.n
    diagonals = a.diagonal() @ b.diagonal()
    return a.inner(b) - n / (n - 2) * diagonals + a.trace() * b.trace() / ((n - 1) * (n - 2))


def relative_change(a: Gram | Array, a0: Gram | Array) -> Float[Array, ""]:
    """How far a kernel has moved from a reference: ``‖K − K0‖ / ‖K0‖`` in the Frobenius norm.

    For features, ``K − K0 = ½ (δ σᵀ + σ δᵀ)`` with ``δ = phi − phi0`` and ``σ = phi + phi0``, whose norm comes from
    the small triangular factor of ``[δ, σ] = Q R``: no difference of squares, and no N×N matrix.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        a0: the reference, on the same examples.

    Returns:
        A scalar ≥ 0; nan when the reference is zero.

    Raises:
        ValueError: different N.

    Source: Fort et al., "Deep learning versus kernel learning", NeurIPS 2020, §3 (kernel distance over training).

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.relative_change(3 * jnp.eye(4), jnp.eye(4)))
        2.0
    """
    a, a0 = as_gram_pair(a, a0)
    if isinstance(a, FeatureGram) and isinstance(a0, FeatureGram) and a.phi.shape == a0.phi.shape:
        change = _norm_of_symmetrised(a.phi - a0.phi, a.phi + a0.phi)
    else:
        change = jnp.linalg.norm(a.dense() - a0.dense())
    size = a0.frobenius()
    return change / jnp.where(size > 0, size, jnp.nan)


@jax.custom_jvp
def _norm_of_symmetrised(delta: Array, sigma: Array) -> Float[Array, ""]:
    """``‖½ (δ σᵀ + σ δᵀ)‖`` of two ``(N, D)`` arrays, by the narrower side."""
    n, d = delta.shape
    if 2 * d < n:
        r = jnp.linalg.qr(jnp.concatenate([delta, sigma], axis=1), mode="r")
        delta, sigma = r[:, :d], r[:, d:]
    half = product(delta, sigma.T) / 2
    return jnp.linalg.norm(half + half.T)


@_norm_of_symmetrised.defjvp
def _norm_of_symmetrised_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """``d‖M‖ = ⟨M σ, dδ⟩ / ‖M‖ + ⟨M δ, dσ⟩ / ‖M‖``: QR has no derivative where a feature is zero, as of a dead unit."""
    (delta, sigma), (d_delta, d_sigma) = primals, tangents
    norm = _norm_of_symmetrised(delta, sigma)

    def times(v: Array) -> Array:
        return (product(delta, product(sigma.T, v)) + product(sigma, product(delta.T, v))) / 2

    change = jnp.sum(times(sigma) * d_delta) + jnp.sum(times(delta) * d_sigma)
    return norm, jnp.where(norm > 0, change / jnp.where(norm > 0, norm, 1), 0)  # at its minimum, the subgradient 0
