"""The eigenvalues and eigenvectors of a kernel."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from ._catalogue import EIGENVALUES, ROTATION, SCALE, VECTORS, entry
from ._gram import Gram
from ._powers import times_power_of_4
from ._products import product
from ._streamed import StreamedGram
from ._to_grams import as_gram, as_gram_pair, one_program

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="Eigenvalues",
    formula="λ₁ ≥ λ₂ ≥ …",
    range="≥ 0",
    cost=EIGENVALUES,
    tells="everything that effective rank, stable rank and the other numbers of spread summarise",
    misleads="eigenvalues below N · 1e-7 · λ₁ are rounding error in float32; those from singular values are accurate "
    "down to 1e-14",
    needs_spectrum=True,
)
def spectrum(
    a: Gram | Array, k: int | None = None, *, vectors: bool = False
) -> Float[Array, " k"] | tuple[Float[Array, " k"], Float[Array, "N k"]]:
    """Eigenvalues λ of a kernel, largest first.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        k: how many; None for all that can differ from zero, which are N, or min(N, D) for features.
        vectors: whether to return the eigenvectors too, one in each column.

    Raises:
        ValueError: k is not between 1 and that number.

    Source: the eigenvalues of a kernel are the squares of the singular values of its features (Golub & Van Loan,
    "Matrix Computations", §8.6).

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> nngp.metrics.spectrum(jnp.diag(jnp.array([1.0, 3.0, 2.0])), 2).tolist()
        [3.0, 2.0]
    """
    gram = a if vectors and isinstance(a, StreamedGram) else as_gram(a, eigenvalues=True)
    rank = rank_bound(gram)
    if k is not None:
        _refuse_rank(k, rank)
    if isinstance(gram, StreamedGram):
        return gram.top_eigh(k or rank)
    return _top_eigh(gram, k or rank) if vectors else _eigenvalues(gram, k or rank)


@partial(one_program, static_argnames="k")
def _eigenvalues(a: Gram, k: int) -> Array:
    # In the units of all metrics, so that XLA computes eigenvalues once for all.
    unit, exponent = a.normalised()
    return times_power_of_4(unit.eigvalsh()[::-1][:k], exponent)


@partial(one_program, static_argnames="k")
def _top_eigh(a: Gram, k: int) -> tuple[Array, Array]:
    unit, exponent = a.normalised()
    values, vectors = unit.top_eigh(k)
    return times_power_of_4(values, exponent), vectors


def _refuse_rank(k: int, rank: int) -> None:
    if not 1 <= k <= rank:
        raise ValueError(f"k={k} must be between 1 and {rank}, the eigenvalues that can differ from zero.")


def rank_bound(a: Gram) -> int:
    """Number of eigenvalues that can differ from zero."""
    if isinstance(a, StreamedGram):
        return min(a.phi.shape)
    return jax.eval_shape(lambda a: a.eigvalsh(), a).shape[0]


def _exponent_of_the_tail(a: Gram) -> Array:
    """The exponent over ranks 11 to 50, or over the middle half of fewer ranks.

    The window avoids the leading eigenvalues, because the first is usually that of the mean.
    """
    a = as_gram(a, eigenvalues=True)
    rank = rank_bound(a)
    if rank < 2:
        return jnp.full_like(a.trace(), jnp.nan)
    if rank >= 50:
        return power_law_exponent(a, (11, 50))
    first = 1 + rank // 4
    return power_law_exponent(a, (first, max(1 + 3 * rank // 4, first + 1)))


@entry(
    title="Power-law exponent",
    formula="α of λ_i ∝ i^−α, by least squares of logarithms over a window of ranks",
    range="usually 0 to 3; nan if the window reaches rounding error",
    cost=EIGENVALUES,
    tells="how fast the tail falls: about 1 in sensory cortex, above 1 for smooth features",
    misleads="it is a fit: another window gives another number, and a spectrum that is no power law has no exponent",
    invariant=(ROTATION, SCALE),
    needs_spectrum=True,
    tracked=_exponent_of_the_tail,
)
def power_law_exponent(a: Gram | Array, window: tuple[int, int]) -> Float[Array, ""]:
    """Exponent α of ``λ_i ∝ i^−α``, fitted by least squares of ``log λ_i`` on ``log i`` over a window of ranks.

    Args:
        a: a Gram, or a kernel ``(N, N)``. The sources centre it first: ``a.center()``.
        window: first and last rank of the fit, counted from 1.

    Returns:
        A scalar; nan if an eigenvalue in the window is only rounding error.

    Raises:
        ValueError: a window of fewer than two ranks, or beyond the eigenvalues that can differ from zero.

    Source: Stringer et al., "High-dimensional geometry of population responses in visual cortex", Nature 2019; as a
    measure of representations: Agrawal et al., "α-ReQ", NeurIPS 2022.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel = jnp.diag(jnp.arange(1.0, 21.0) ** -1.5)
        >>> round(float(nngp.metrics.power_law_exponent(kernel, window=(3, 15))), 3)
        1.5
    """
    gram = as_gram(a, eigenvalues=True)
    first, last = window
    rank = rank_bound(gram)
    if not 1 <= first < last <= rank:
        raise ValueError(f"window={window!r} must be ranks (first, last) with 1 <= first < last <= {rank}.")
    return _exponent(gram, first, last)


@partial(one_program, static_argnames=("first", "last"))
def _exponent(a: Gram, first: int, last: int) -> Float[Array, ""]:
    unit, _ = a.normalised()
    eigenvalues = unit.eigvalsh()[::-1]
    noise = a.terms * jnp.finfo(eigenvalues.dtype).eps * eigenvalues[0]
    fitted = eigenvalues[first - 1 : last]
    y = jnp.log(jnp.where(fitted > noise, fitted, jnp.nan))
    x = jnp.log(jnp.arange(first, last + 1, dtype=y.dtype))
    x -= x.mean()
    return -jnp.sum(x * y) / jnp.sum(x**2)


@entry(
    title="Condition number",
    formula="λ₁ / λ_min",
    range="[1, ∞]",
    cost=VECTORS,
    tells="how ill-posed regression with this kernel is",
    misleads="the smallest eigenvalue dominates it: a duplicate example makes it infinite",
    invariant=(ROTATION, SCALE),
    needs_spectrum=True,
)
def condition_number(a: Gram | Array) -> Float[Array, ""]:
    """Condition number ``λ₁ / λ_min`` of the eigenvalues that can differ from zero; for features ``(σ₁ / σ_min)²``.

    Features keep twice as many digits as their kernel. In float32, condition numbers up to about 1e12 can be measured
    from features, and up to 1e6 from a dense kernel. Beyond that, the smallest eigenvalue is rounding error.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Returns:
        A scalar ≥ 1; infinity for a singular kernel, nan for a zero one.

    Source: Golub & Van Loan, "Matrix Computations", §2.6; of kernels of networks: Xiao et al., ICML 2020.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> round(float(nngp.metrics.condition_number(jnp.diag(jnp.array([4.0, 1.0])))), 3)
        4.0
    """
    return _condition_number(as_gram(a, eigenvalues=True))


@one_program
def _condition_number(a: Gram) -> Float[Array, ""]:
    unit, _ = a.normalised()
    values = unit.singular_values()
    singular = values[-1] <= 2 * jnp.finfo(values.dtype).eps * values[0]
    return jnp.where(singular & (values[0] > 0), jnp.inf, (values[0] / values[-1]) ** 2)


@entry(
    title="Overlap of leading eigenvectors",
    formula="‖U_aᵀ U_b‖² / k with the k leading eigenvectors as columns",
    range="[0, 1], about k / N for unrelated kernels",
    cost=VECTORS,
    tells="whether the leading directions are still the same ones",
    misleads="it jumps if eigenvalues k and k + 1 cross, though the kernel hardly changed",
    invariant=(ROTATION, SCALE),
    relative_to_reference=True,
)
def eigenvector_overlap(a: Gram | Array, b: Gram | Array, k: int) -> Float[Array, ""]:
    """Overlap of the leading eigenspaces: ``‖U_aᵀ U_b‖² / k``, the mean squared cosine of their principal angles.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        k: dimension of the eigenspaces.

    Returns:
        A scalar: 1 for the same eigenspace, about k/N for unrelated ones; nan if a kernel has rank below k.

    Raises:
        ValueError: different N, or k beyond the eigenvalues that can differ from zero.

    Source: Björck & Golub, "Numerical methods for computing angles between linear subspaces", Math. Comp. 1973.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> float(nngp.metrics.eigenvector_overlap(kernel, kernel @ kernel, k=2))
        1.0
    """
    a, b = as_gram_pair(a, b, turned=True)
    for gram in (a, b):
        _refuse_rank(k, rank_bound(gram))
    return _overlap(a, b, k)


@partial(one_program, static_argnames="k")
def _overlap(a: Gram, b: Gram, k: int) -> Float[Array, ""]:
    (values_a, u_a), (values_b, u_b) = (gram.normalised()[0].top_eigh(k) for gram in (a, b))
    overlap = jnp.sum(product(u_a.T, u_b) ** 2) / k
    for values in (values_a, values_b):
        # An eigenvalue that is only rounding error has arbitrary eigenvectors.
        overlap = jnp.where(values[-1] > a.n * jnp.finfo(values.dtype).eps * values[0], overlap, jnp.nan)
    return overlap
