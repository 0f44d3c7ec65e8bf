"""How large a kernel is, over how many directions it spreads, and which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from jax import Array

from ._gram import Gram, as_gram, as_gram_pair
from ._products import product

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package


def scale(a: Gram | Array) -> Float[Array, ""]:
    """Mean squared size of a feature vector, ``tr K / N``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Source: Schoenholz et al., "Deep Information Propagation", ICLR 2017 (the length of a signal, q).

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.scale(2 * jnp.eye(4)))
        2.0
    """
    return as_gram(a).diagonal().mean()


def spectrum(
    a: Gram | Array, k: int | None = None, *, vectors: bool = False
) -> Float[Array, " k"] | tuple[Float[Array, " k"], Float[Array, "N k"]]:
    """Eigenvalues λ of a kernel, largest first.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        k: how many; None for all that can differ from zero: N, of features at most D.
        vectors: return eigenvectors too, one in each column.

    Raises:
        ValueError: k is not between 1 and that number.

    Source: the eigenvalues of features are the squares of their singular values (Golub & Van Loan, "Matrix
    Computations", §8.6).

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> nngp.metrics.spectrum(jnp.diag(jnp.array([1.0, 3.0, 2.0])), 2).tolist()
        [3.0, 2.0]
    """
    gram = as_gram(a)
    rank = rank_bound(gram)
    if k is not None and not 1 <= k <= rank:
        raise ValueError(f"k={k} must be between 1 and {rank}, the eigenvalues that can differ from zero.")
    return gram.top_eigh(k or rank) if vectors else gram.eigvalsh()[::-1][: k or rank]


def rank_bound(a: Gram) -> int:
    """How many eigenvalues can differ from zero."""
    return jax.eval_shape(lambda a: a.eigvalsh(), a).shape[0]


def von_neumann_entropy(a: Gram | Array) -> Float[Array, ""]:
    """Entropy of a kernel's spectrum, in nats: ``−Σ p log p`` with ``p = λ / Σ λ``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Returns:
        A scalar in [0, log min(N, D)]; nan for a zero kernel.

    Source: Bach, "Information Theory with Kernel Methods", IEEE Trans. Inf. Theory 2022.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> round(float(nngp.metrics.von_neumann_entropy(jnp.eye(4))), 3)  # log 4
        1.386
    """
    return _entropy(jnp.maximum(as_gram(a).eigvalsh(), 0))


def _entropy(values: Array) -> Array:
    from jax.scipy.special import entr  # here, for it takes long to import

    return jnp.sum(entr(values / values.sum()))


def effective_rank(a: Gram | Array, of: Literal["eigenvalues", "singular_values"] = "eigenvalues") -> Float[Array, ""]:
    """Number of directions that a kernel spreads over: ``exp(−Σ p log p)`` with ``p = λ / Σ λ``.

    It is 1 for a kernel of rank one and N for a multiple of the identity.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        of: ``"eigenvalues"`` λ of the kernel, or ``"singular_values"`` ``sqrt(λ)`` of the features, which gives
            RankMe.

    Returns:
        A scalar in [1, min(N, D)]; nan for a zero kernel.

    Raises:
        ValueError: an unknown ``of``.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007, eq. 4; Garrido et al., "RankMe", ICML 2023, eq. 1.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> round(float(nngp.metrics.effective_rank(jnp.eye(4))), 3)
        4.0
    """
    if of not in ("eigenvalues", "singular_values"):
        raise ValueError(f"of={of!r} must be 'eigenvalues' (of the kernel) or 'singular_values' (of the features).")
    gram = as_gram(a)
    return jnp.exp(_entropy(jnp.maximum(gram.eigvalsh(), 0) if of == "eigenvalues" else gram.singular_values()))


def participation_ratio(a: Gram | Array) -> Float[Array, ""]:
    """Number of directions that carry the size of a kernel: ``(tr K)² / ‖K‖² = (Σ λ)² / Σ λ²``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Returns:
        A scalar in [1, min(N, D)]; nan for a zero kernel.

    Source: Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.participation_ratio(jnp.eye(4)))
        4.0
    """
    gram = as_gram(a)
    size = gram.frobenius()
    return (gram.trace() / jnp.where((size > 0) & (size < jnp.inf), size, jnp.nan)) ** 2


def stable_rank(a: Gram | Array) -> Float[Array, ""]:
    """How often the largest eigenvalue goes into the trace: ``tr K / λ₁``, of features ``‖phi‖²_F / ‖phi‖₂²``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Returns:
        A scalar in [1, min(N, D)]; nan for a zero kernel.

    Source: Rudelson & Vershynin, "Sampling from large matrices", J. ACM 2007.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0]))))
        2.0
    """
    gram = as_gram(a)
    largest = gram.eigvalsh()[-1]
    return gram.trace() / jnp.where(largest == 0, jnp.nan, largest)


def power_law_exponent(a: Gram | Array, window: tuple[int, int]) -> Float[Array, ""]:
    """Exponent α of ``λ_i ∝ i^−α``, by least squares of ``log λ_i`` on ``log i`` over a window of ranks.

    Args:
        a: a Gram, or a kernel ``(N, N)``; neural data are centred first: ``phi.center()``.
        window: first and last rank of the fit, from 1.

    Returns:
        A scalar; nan where an eigenvalue in the window is no more than rounding error.

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
    gram = as_gram(a)
    first, last = window
    rank = rank_bound(gram)
    if not 1 <= first < last <= rank:
        raise ValueError(f"window={window!r} must be ranks (first, last) with 1 <= first < last <= {rank}.")
    eigenvalues = gram.eigvalsh()[::-1]
    noise = gram.n * jnp.finfo(eigenvalues.dtype).eps * eigenvalues[0]
    fitted = eigenvalues[first - 1 : last]
    y = jnp.log(jnp.where(fitted > noise, fitted, jnp.nan))
    x = jnp.log(jnp.arange(first, last + 1, dtype=y.dtype))
    x -= x.mean()
    return -jnp.sum(x * y) / jnp.sum(x**2)


def condition_number(a: Gram | Array) -> Float[Array, ""]:
    """Condition number ``λ₁ / λ_min`` over the eigenvalues that can differ from zero, as ``(σ₁ / σ_min)²`` of features.

    Features keep twice the digits of their kernel: in float32 up to about 1e12 can be told, of a dense kernel 1e6;
    beyond, the smallest eigenvalue is rounding error.

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
    values = as_gram(a).singular_values()
    singular = values[-1] <= 2 * jnp.finfo(values.dtype).eps * values[0]
    return jnp.where(singular & (values[0] > 0), jnp.inf, (values[0] / values[-1]) ** 2)


def eigenvector_overlap(a: Gram | Array, b: Gram | Array, k: int) -> Float[Array, ""]:
    """Overlap of the leading eigenspaces: ``‖U_aᵀ U_b‖² / k``, the mean squared cosine of their principal angles.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        k: dimensions of the eigenspaces.

    Returns:
        A scalar: 1 for the same eigenspace, about k/N for unrelated ones; nan where a kernel has fewer dimensions.

    Raises:
        ValueError: different N, or k beyond the eigenvalues that can differ from zero.

    Source: Björck & Golub, "Numerical methods for computing angles between linear subspaces", Math. Comp. 1973.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> float(nngp.metrics.eigenvector_overlap(kernel, kernel @ kernel, k=2))
        1.0
    """
    a, b = as_gram_pair(a, b)
    (values_a, u_a), (values_b, u_b) = spectrum(a, k, vectors=True), spectrum(b, k, vectors=True)
    overlap = jnp.sum(product(u_a.T, u_b) ** 2) / k
    for values in (values_a, values_b):  # those of rounding error have any eigenvectors
        overlap = jnp.where(values[-1] > a.n * jnp.finfo(values.dtype).eps * values[0], overlap, jnp.nan)
    return overlap
