"""What kernel regression, that is a Gaussian process, makes of a kernel on the probe itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._gram import FeatureGram, Gram, as_gram
from ._products import product
from ._targets import Classes, as_targets

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package


def regression_accuracy(a: Gram | Array, y: Any, nugget: float = 1e-3) -> Float[Array, ""]:
    """Accuracy of kernel ridge regression on one-hot labels, each example left out in turn.

    In closed form: with ``G = (K + s I)⁻¹`` and ``s = nugget · tr K / N``, the prediction for example i from all
    others is ``Y_i − (G Y)_i / G_ii``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)`` or one-hot ``(N, C)``.
        nugget: the ridge, relative to the mean of the kernel's diagonal.

    Returns:
        A scalar in [0, 1]; nan for a zero kernel.

    Raises:
        ValueError: different N, rows that are not one-hot, or a nugget that is not positive.

    Source: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, eq. 5.12; of networks: Lee et al.,
    "Finite Versus Infinite Neural Networks", NeurIPS 2020.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> y = jnp.array([0, 0, 1, 1])
        >>> float(nngp.metrics.regression_accuracy(jnp.float32(y[:, None] == y), y))
        1.0
    """
    gram = as_gram(a)
    one_hot = jnp.asarray(Classes.of(y, gram.n).one_hot)
    solved = _solve(gram, one_hot, nugget)
    left_out = one_hot - solved.weights / solved.diagonal[:, None]
    right = jnp.mean(jnp.argmax(left_out, axis=1) == jnp.argmax(one_hot, axis=1))
    return jnp.where(jnp.isfinite(left_out).all(), right, jnp.nan)


def log_marginal_likelihood(a: Gram | Array, y: Any, nugget: float = 1e-3) -> Float[Array, ""]:
    """Log marginal likelihood of targets under a Gaussian process with this kernel, in nats.

    ``−½ tr(Yᵀ G Y) − ½ C log det(K + s I) − ½ N C log 2π`` with ``G = (K + s I)⁻¹`` and ``s = nugget · tr K / N``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: real targets ``(N,)`` or ``(N, C)``, independent columns; strings and whole numbers ``(N,)`` are
            labels and made one-hot; pass ``(N, 1)`` to regress on whole numbers.
        nugget: variance of the noise, relative to the mean of the kernel's diagonal.

    Returns:
        A scalar; nan for a zero kernel.

    Raises:
        ValueError: different N, or a nugget that is not positive.

    Source: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, eq. 2.30.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> round(float(nngp.metrics.log_marginal_likelihood(jnp.eye(2), jnp.array([0.5, -0.5]), nugget=1.0)), 3)
        -2.656
    """
    gram = as_gram(a)
    targets = jnp.asarray(as_targets(y, gram.n))
    solved = _solve(gram, targets, nugget)
    columns = targets.shape[1]
    return -0.5 * (
        jnp.sum(targets * solved.weights)
        + columns * solved.log_determinant
        + gram.n * columns * jnp.log(2 * jnp.pi).astype(targets.dtype)
    )


class _Solved(NamedTuple):
    """``G Y``, the diagonal of ``G`` and ``log det(K + s I)``, where ``G = (K + s I)⁻¹``."""

    weights: Float[Array, "N C"]
    diagonal: Float[Array, " N"]
    log_determinant: Float[Array, ""]


def _solve(gram: Gram, targets: Array, nugget: float) -> _Solved:
    """By Cholesky on the cheaper side: of narrow features ``G = (I − phi (phiᵀ phi + s I)⁻¹ phiᵀ) / s``."""
    from jax.scipy.linalg import cho_solve, solve_triangular  # here, for it takes long to import

    if not isinstance(nugget, jax.core.Tracer) and not nugget > 0:
        raise ValueError(f"nugget={nugget} must be positive; it is relative to tr K / N.")
    ridge = nugget * gram.trace() / gram.n
    narrow = isinstance(gram, FeatureGram) and gram.narrow
    side = product(gram.features.T, gram.features) if narrow else gram.dense()  # type: ignore[attr-defined]
    root = jnp.linalg.cholesky(side + ridge * jnp.eye(len(side), dtype=side.dtype))
    logs = 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    # the right sides by themselves: the diagonal, which costs most, is not computed where it is not used
    right = product(gram.features.T, targets) if narrow else targets.astype(side.dtype)  # type: ignore[attr-defined]
    weights = cho_solve((root, True), right)
    half = solve_triangular(root, gram.features.T if narrow else jnp.eye(gram.n, dtype=side.dtype), lower=True)  # type: ignore[attr-defined]
    squares = jnp.sum(half**2, axis=0)
    if not narrow:
        return _Solved(weights, squares, logs)
    weights = (targets - product(gram.features, weights)) / ridge  # type: ignore[attr-defined]
    return _Solved(weights, (1 - squares) / ridge, logs + (gram.n - len(side)) * jnp.log(ridge))
