"""How alike two kernels on the same examples are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from ._catalogue import INNER, ROTATION, SCALE, TRANSLATION, entry
from ._features import FeatureGram
from ._gram import Gram
from ._powers import power_of_2
from ._products import product, same_width
from ._to_grams import as_gram_pair, in_common_units, inner_products, one_program

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="CKA to init",
    formula="HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))",
    range="about [0, 1]; the debiased one can be slightly negative",
    cost=f"3 × {INNER}",
    tells="whether two layers place examples alike: 1 for the same geometry, about 0 for unrelated features",
    misleads="the biased one (`debiased=False`) tends to D / (D + N) for unrelated features: 0.8 with 200 features and "
    "50 examples. A few examples far from all others can make it high by themselves",
    invariant=(ROTATION, SCALE, TRANSLATION),
    relative_to_reference=True,
    tracked=True,
)
def cka(a: Gram | Array, b: Gram | Array, debiased: bool = True) -> Float[Array, ""]:
    """Centred kernel alignment of two kernels on the same N examples: 1 for equal geometry, about 0 for unrelated.

    ``CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))``. For centred kernels the biased HSIC is ``⟨K, L⟩``.
    The unbiased estimator of Song et al. is then ``⟨K, L⟩ − N/(N−2) diag K · diag L + tr K tr L / ((N−1)(N−2))``.
    The biased CKA tends to D/(D+N) for unrelated features of width D. The debiased one is therefore the default; it
    can be slightly negative.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        debiased: whether to use the unbiased HSIC, which needs N ≥ 4; the biased one needs N ≥ 2.

    Returns:
        A scalar; nan for a constant or zero kernel. The debiased CKA is nan for a multiple of the identity too.

    Raises:
        ValueError: different N, or N too small.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, eq. 3; Song et
    al., "Feature Selection via Dependence Maximization", JMLR 2012, eq. 5.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> phi = nngp.metrics.FeatureGram(jax.random.normal(jax.random.key(0), (50, 10)))
        >>> round(float(nngp.metrics.cka(phi, phi)), 3)
        1.0
    """
    return _cka(*as_gram_pair(a, b, at_least=4 if debiased else 2), debiased)


@partial(one_program, static_argnames="debiased")
def _cka(a: Gram, b: Gram, debiased: bool) -> Float[Array, ""]:
    a, b = a.normalised()[0], b.normalised()[0]
    inners, dots, (trace_a, trace_b) = inner_products(a.center(), b.center())
    traces = (trace_a, trace_a), (trace_a, trace_b), (trace_b, trace_b)
    hsics = [_hsic(a.n, *of) for of in zip(inners, dots, traces, strict=True)] if debiased else inners
    roots = []
    for inner, hsic in zip(inners[::2], hsics[::2], strict=True):
        # A kernel whose HSIC is zero leaves only rounding error here; its CKA is nan.
        noise = a.terms * jnp.finfo(hsic.dtype).eps * inner
        roots.append(jnp.sqrt(jnp.where(hsic > noise, hsic, jnp.nan)))
    return hsics[1] / (roots[0] * roots[1])


def _hsic(n: int, inner: Array, dot: Array, traces: tuple[Array, Array]) -> Float[Array, ""]:
    """Debiased HSIC from ``⟨K, L⟩`` of centred kernels, the inner product of their diagonals and their traces.

    A factor that cancels in the ratio of CKA is left out. Source: Song et al. 2012, eq. 5.
    """
    return inner + traces[0] / (n - 1) * (traces[1] / (n - 2)) - n / (n - 2) * dot


@entry(
    title="Kernel alignment",
    formula="⟨K, L⟩ / (‖K‖ ‖L‖), of centred kernels unless center=False",
    range="[0, 1]",
    cost=f"3 × {INNER}",
    tells="the cosine between two kernels; with centring it is biased CKA",
    misleads="as biased CKA; without centring, a mean that all features share brings any two kernels close to 1",
    invariant=(ROTATION, SCALE),
    relative_to_reference=True,
)
def alignment(a: Gram | Array, b: Gram | Array, center: bool = True) -> Float[Array, ""]:
    """Kernel alignment, the cosine between two kernels: ``⟨K, L⟩ / (‖K‖ ‖L‖)``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        center: centre both kernels first, which gives biased CKA.

    Returns:
        A scalar in [0, 1]; nan for a zero kernel, and with ``center=True`` for a constant one.

    Raises:
        ValueError: different N.

    Source: Cristianini et al., "On Kernel-Target Alignment", NeurIPS 2001, def. 1; centred: Cortes et al., "Algorithms
    for Learning Kernels Based on Centered Alignment", JMLR 2012, def. 4.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> round(float(nngp.metrics.alignment(jnp.eye(4), jnp.ones((4, 4)), center=False)), 3)
        0.5
    """
    if center:
        return cka(a, b, debiased=False)
    return _cosine(*as_gram_pair(a, b))


@one_program
def _cosine(a: Gram, b: Gram) -> Float[Array, ""]:
    a, b = a.normalised()[0], b.normalised()[0]
    sizes = a.frobenius() * b.frobenius()
    return a.inner(b) / jnp.where(sizes > 0, sizes, jnp.nan)


@entry(
    title="Bures distance",
    formula="min ‖phi_a − phi_b Q‖ over orthogonal Q",
    range="≥ 0, in units of features",
    cost="N D² + svd(D, D)",
    tells="how far features are apart once they are rotated onto each other; it obeys the triangle inequality",
    misleads="scale and mean count: divide by √tr K and centre to compare shape alone",
    relative_to_reference=True,
)
def bures_distance(a: Gram | Array, b: Gram | Array) -> Float[Array, ""]:
    """Bures distance of kernels, the Procrustes distance of features: ``min_Q ‖phi_a − phi_b Q‖`` over orthogonal Q.

    Its square equals ``tr K + tr L − 2 tr (K^½ L K^½)^½``. That formula loses all digits if the kernels are close; the
    minimum does not.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.

    Returns:
        A scalar ≥ 0, in the units of features.

    Raises:
        ValueError: different N.

    Source: Bhatia, Jain & Lim, "On the Bures–Wasserstein distance between positive definite matrices", Expo. Math.
    2019; as a metric on representations: Williams et al., NeurIPS 2021.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.bures_distance(4 * jnp.eye(4), jnp.eye(4)))
        2.0
    """
    return _bures_distance(*as_gram_pair(a, b, turned=True))


@one_program
def _bures_distance(a: Gram, b: Gram) -> Float[Array, ""]:
    a, b, exponent = in_common_units(a, b)
    phi_a, phi_b = same_width(_factor(a), _factor(b))
    u, _, vt = jnp.linalg.svd(product(phi_b.T, phi_a), full_matrices=False)
    # At the minimum the derivative with respect to Q is zero, so Q may be held constant in the gradient.
    square = jnp.sum((phi_a - product(phi_b, jax.lax.stop_gradient(product(u, vt)))) ** 2)
    distance = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    return distance * power_of_2(exponent, distance.dtype)


def _factor(a: Gram) -> Float[Array, "N R"]:
    """Features of a kernel, ``K = phi phiᵀ``, with at most N columns."""
    if isinstance(a, FeatureGram):
        return a.features if a.narrow else jnp.linalg.qr(a.features.T, mode="r").T
    values, vectors = a.top_eigh(a.n)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
