"""How alike two kernels on the same examples are, by the distances of their examples and by who is near whom."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from ._catalogue import ROTATION, SCALE, TRANSLATION, entry
from ._dense import DenseGram
from ._gram import Gram
from ._products import diagonal
from ._similarity import cka
from ._to_grams import as_gram_pair, one_program, rounding

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="RSA to init",
    formula="correlation of ‖phi_i − phi_j‖ with ‖psi_i − psi_j‖ over all i < j",
    range="[-1, 1]",
    cost="N² D + N² log N",
    tells="whether the pairs of examples that are far apart in one layer are far apart in the other",
    misleads="a pair of clusters makes most of the correlation. The pairs share examples, so that they are not "
    "independent draws: take p-values from `permutation_test`, not from tables",
    invariant=(ROTATION, SCALE, TRANSLATION),
    relative_to_reference=True,
)
def rsa(a: Gram | Array, b: Gram | Array, ranks: bool = True) -> Float[Array, ""]:
    """Representational similarity analysis: the correlation of the distances within two sets of features.

    ``d(K)_ij = √(K_ii + K_jj − 2 K_ij) = ‖phi_i − phi_j‖``, over the pairs ``i < j``. In float32, distances below a
    thousandth of the largest one are rounding error.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples; at least 3.
        ranks: Spearman's correlation, of the ranks of the distances; otherwise Pearson's. Ranks have no gradient.

    Returns:
        A scalar in [-1, 1]; nan for a constant or zero kernel, and if all examples are equally far apart.

    Raises:
        ValueError: different N, or N < 3.

    Source: Kriegeskorte, Mur & Bandettini, "Representational similarity analysis", Front. Syst. Neurosci. 2008.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> phi = nngp.metrics.FeatureGram(jax.random.normal(jax.random.key(0), (50, 10)))
        >>> round(float(nngp.metrics.rsa(phi, phi)), 3)
        1.0
    """
    return _rsa(*as_gram_pair(a, b, at_least=3), ranks)


@partial(one_program, static_argnames="ranks")
def _rsa(a: Gram, b: Gram, ranks: bool) -> Float[Array, ""]:
    return jnp.sum(pairs(a, ranks) * pairs(b, ranks))


@entry(
    title="Distance correlation to init",
    formula="√(HSIC(−D, −E) / √(HSIC(D, D) HSIC(E, E))), of the distances D and E",
    range="about [0, 1]; the debiased one can be negative",
    cost="N² D",
    tells="whether one set of features depends on the other in any way, not only linearly: 0 for independent ones",
    misleads="the biased one (`debiased=False`) tends to 1 for unrelated features of many more dimensions than "
    "examples. As a root, small values look large: 0.3 is a CKA of distances of 0.09",
    invariant=(ROTATION, SCALE, TRANSLATION),
    relative_to_reference=True,
)
def distance_correlation(a: Gram | Array, b: Gram | Array, debiased: bool = True) -> Float[Array, ""]:
    """Distance correlation: 0 only for independent features, as N grows.

    It is the root of the CKA of the kernels ``−‖phi_i − phi_j‖``, whose biased HSIC is the distance covariance.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        debiased: whether to use the bias-corrected estimate of its square, which needs N ≥ 4. Where that is negative,
            the root has its sign.

    Returns:
        A scalar; nan for a constant or zero kernel.

    Raises:
        ValueError: different N, or N too small.

    Source: Székely, Rizzo & Bakirov, "Measuring and testing dependence by correlation of distances", Ann. Stat. 2007,
    def. 4; debiased: Székely & Rizzo, "The distance correlation t-test of independence in high dimension", 2013;
    as an HSIC: Sejdinovic et al., "Equivalence of distance-based and RKHS-based statistics", Ann. Stat. 2013.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> x = jax.random.normal(jax.random.key(0), (300, 1))
        >>> a, b = nngp.metrics.FeatureGram(x), nngp.metrics.FeatureGram(x**2)
        >>> round(float(nngp.metrics.distance_correlation(a, b)), 1), abs(float(nngp.metrics.cka(a, b))) < 0.1
        (0.5, True)
    """
    return _distance_correlation(*as_gram_pair(a, b, at_least=4 if debiased else 2), debiased)


@partial(one_program, static_argnames="debiased")
def _distance_correlation(a: Gram, b: Gram, debiased: bool) -> Float[Array, ""]:
    square = cka(of_distances(a), of_distances(b), debiased)
    return jnp.sign(square) * _root(jnp.abs(square))


@entry(
    title="Mutual neighbours with init",
    formula="mean_i |S_k(phi, i) ∩ S_k(psi, i)| / k, with the k nearest others S_k(phi, i)",
    range="[0, 1]",
    cost="N² D + N² k",
    tells="the share of the nearest neighbours of an example that both layers agree on, whatever lies farther away",
    misleads="unrelated features have k / (N − 1). Examples that are equally near count in the order of the data",
    invariant=(ROTATION, SCALE),
    relative_to_reference=True,
)
def mutual_knn(a: Gram | Array, b: Gram | Array, k: int = 10) -> Float[Array, ""]:
    """Mutual nearest neighbours: the mean share of the k nearest neighbours that two layers have in common.

    Near is what has a large cosine ``K_ij / √(K_ii K_jj)``, as in the published code.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        k: how many neighbours; fewer than N. The metric has no gradient.

    Returns:
        A scalar in [0, 1]; nan for a constant or zero kernel, and if all cosines are equal.

    Raises:
        ValueError: different N, k < 1, or N ≤ k.

    Source: Huh et al., "The Platonic Representation Hypothesis", ICML 2024, section 2.1 and appendix A.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> a, b = jax.random.normal(jax.random.key(0), (2, 200, 30))
        >>> a, near = (nngp.metrics.FeatureGram(phi) for phi in (a, a + 0.3 * b))
        >>> round(float(nngp.metrics.mutual_knn(a, near)), 1)
        0.7
    """
    if k < 1:
        raise ValueError(f"k={k} must be 1 or more neighbours.")
    return _mutual_knn(*as_gram_pair(a, b, at_least=k + 1), k)


@partial(one_program, static_argnames="k")
def _mutual_knn(a: Gram, b: Gram, k: int) -> Float[Array, ""]:
    return jnp.sum(neighbours(a, k) * neighbours(b, k)) / (a.n * k)


def distances(gram: Gram) -> Float[Array, "N N"]:
    """``‖phi_i − phi_j‖`` up to a factor; nan for a constant kernel, which leaves only rounding error."""
    near = gram.normalised()[0]
    centered = near.center()
    kernel = centered.dense()
    own = diagonal(kernel)
    squares = own[:, None] + own[None] - 2 * kernel
    squares = jnp.where(jnp.eye(gram.n, dtype=bool), 0, jnp.maximum(squares, 0))
    return jnp.where(own.sum() > rounding(near), _root(squares), jnp.nan)


def of_distances(gram: Gram) -> DenseGram:
    """The centred kernel of ``−‖phi_i − phi_j‖``."""
    return DenseGram(-distances(gram)).center()


def pairs(gram: Gram, ranks: bool = True) -> Float[Array, " pairs"]:
    """The distances of all pairs ``i < j``, or their ranks, less their mean, with a norm of 1."""
    values = distances(gram)[jnp.triu_indices(gram.n, 1)]
    if ranks:
        # Equal distances share the mean of their ranks.
        values = jnp.where(jnp.isfinite(values), jax.scipy.stats.rankdata(values).astype(values.dtype), jnp.nan)
        values = values / len(values)
    apart = values - values.mean()
    size, noise = jnp.linalg.norm(apart), 4 * jnp.finfo(values.dtype).eps * jnp.linalg.norm(values)
    return apart / jnp.where(size > noise, size, jnp.nan)


def of_pairs(gram: Gram, ranks: bool = True) -> DenseGram:
    """The same as a matrix that is zero on its diagonal."""
    above = jnp.triu_indices(gram.n, 1)
    values = pairs(gram, ranks)
    matrix = jnp.zeros((gram.n, gram.n), values.dtype).at[above].set(values)
    return DenseGram(matrix + matrix.T)


def neighbours(gram: Gram, k: int = 10) -> Float[Array, "N N"]:
    """1 where j is one of the k nearest others of i; nan if no example is nearer than another."""
    kernel = gram.normalised()[0].dense()
    sizes = _root(diagonal(kernel))
    inverse = jnp.where(sizes > 0, 1 / jnp.where(sizes > 0, sizes, 1), 0)
    cosines = jnp.where(jnp.isfinite(sizes), kernel * inverse[:, None] * inverse[None], jnp.nan)
    others = jnp.where(jnp.eye(gram.n, dtype=bool), -jnp.inf, cosines)
    _, nearest = jax.lax.top_k(others, k)
    chosen = jnp.zeros_like(kernel).at[jnp.arange(gram.n)[:, None], nearest].set(1)
    differ = others.max() - cosines.min() > 16 * jnp.finfo(kernel.dtype).eps
    return jnp.where(differ, chosen, jnp.nan)


def _root(values: Array) -> Array:
    """The square root, whose derivative at zero counts as zero."""
    return jnp.where(values == 0, 0, jnp.sqrt(jnp.where(values == 0, 1, values)))
