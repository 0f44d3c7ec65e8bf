"""How well kernel regression, and so a Gaussian process, fits targets with a kernel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from ._catalogue import CHOLESKY, ROTATION, SCALE, entry
from ._features import FeatureGram
from ._gram import Gram
from ._powers import exponent_of, largest, power_of_2, times_power_of_4
from ._products import add_to_diagonal, diagonal, of_columns, product
from ._streamed import StreamedGram
from ._streamed_targets import accuracy_of_stream, likelihood_of_stream
from ._targets import Classes, as_targets
from ._to_grams import as_gram, on_device, one_program

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="Kernel regression, accuracy",
    formula="accuracy of Y − (G Y)_i / G_ii with G = (K + s I)⁻¹",
    range="[0, 1]",
    cost=CHOLESKY,
    tells="how well kernel regression on this layer classifies the examples of the probe, each one left out in turn",
    misleads="it depends on the nugget s N / tr K and on the number of examples; the mean of features is not removed",
    invariant=(ROTATION, SCALE),
    needs_targets=True,
    needs_classes=True,
    tracked=True,
)
def regression_accuracy(a: Gram | Array, y: Any, nugget: float = 1e-3) -> Float[Array, ""]:
    """Accuracy of kernel ridge regression on one-hot labels, with each example left out in turn.

    The prediction for example i from all others has the closed form ``Y_i − (G Y)_i / G_ii``, with ``G = (K + s I)⁻¹``
    and ``s = nugget · tr K / N``.

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
    if isinstance(a, StreamedGram):
        return accuracy_of_stream(a, Classes.of(y, a.n).one_hot, float(_checked(nugget)))
    gram = as_gram(a)
    return _regression_accuracy(gram, on_device(Classes.of(y, gram.n).one_hot), _checked(nugget))


@one_program
def _regression_accuracy(gram: Gram, one_hot: Array, nugget: Array) -> Float[Array, ""]:
    from jax.scipy.linalg import solve_triangular

    root, ridge, narrow, _ = _cholesky(gram, nugget)
    one_hot = one_hot.astype(root.dtype)
    # G is halfᵀ half. For narrow features it is (I − halfᵀ half) / ridge.
    half = solve_triangular(root, jnp.eye(len(root), dtype=root.dtype), lower=True)
    if narrow is not None:
        half = narrow.times(half.T).T
    weights, own = product(half.T, product(half, one_hot)), jnp.sum(half**2, axis=0)
    if narrow is not None:
        weights, own = (one_hot - weights) / ridge, (1 - own) / ridge
    left_out = one_hot - weights / own[:, None]
    accuracy = jnp.mean(jnp.argmax(left_out, axis=1) == jnp.argmax(one_hot, axis=1), dtype=root.dtype)
    return jnp.where(jnp.isfinite(left_out).all(), accuracy, jnp.nan)


@entry(
    title="Log marginal likelihood",
    formula="−½ tr(Yᵀ G Y) − ½ C log det(K + s I) − ½ N C log 2π",
    range="nats, of all N C targets",
    cost=CHOLESKY,
    tells="how likely the targets are under a Gaussian process with this kernel",
    misleads="scale counts: a kernel that fits the targets but has another size scores badly",
    needs_targets=True,
    tracked=True,
)
def log_marginal_likelihood(a: Gram | Array, y: Any, nugget: float = 1e-3) -> Float[Array, ""]:
    """Log marginal likelihood of targets under a Gaussian process with this kernel, in nats.

    ``−½ tr(Yᵀ G Y) − ½ C log det(K + s I) − ½ N C log 2π`` with ``G = (K + s I)⁻¹`` and ``s = nugget · tr K / N``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: real targets ``(N,)`` or ``(N, C)`` with independent columns. Strings and whole numbers ``(N,)`` are labels
            and become one-hot; pass floats ``(N, 1)`` to regress on whole numbers.
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
    if isinstance(a, StreamedGram):
        return likelihood_of_stream(a, as_targets(y, a.n), float(_checked(nugget)))
    gram = as_gram(a)
    return _log_marginal_likelihood(gram, on_device(as_targets(y, gram.n)), _checked(nugget))


@one_program
def _log_marginal_likelihood(gram: Gram, targets: Array, nugget: Array) -> Float[Array, ""]:
    from jax.scipy.linalg import cho_solve, solve_triangular

    root, ridge, narrow, exponent = _cholesky(gram, nugget)
    targets, columns = targets.astype(root.dtype), targets.shape[1]
    size = exponent_of(largest(targets))
    targets = targets * power_of_2(-size, targets.dtype)
    logs = 2 * jnp.sum(jnp.log(diagonal(root)))
    if narrow is None:
        fit = jnp.sum(solve_triangular(root, targets, lower=True) ** 2)
    else:
        logs += (gram.n - len(root)) * jnp.log(ridge)
        weights = cho_solve((root, True), narrow.transposed_times(targets))
        fit = jnp.sum(targets * (targets - narrow.times(weights))) / ridge
    # The kernel was divided by 4^exponent, which adds to the logarithm of each of its N eigenvalues.
    logs += gram.n * math.log(4) * exponent.astype(root.dtype)
    fit = times_power_of_4(fit, size - exponent)
    return -0.5 * (fit + columns * logs + gram.n * columns * math.log(2 * math.pi))


def _checked(nugget: Any) -> Any:
    if not isinstance(nugget, jax.core.Tracer) and not nugget > 0:
        raise ValueError(f"nugget={nugget} must be positive; it is relative to tr K / N.")
    return on_device(nugget)


def _cholesky(gram: Gram, nugget: Array) -> tuple[Array, Array, FeatureGram | None, Array]:
    """The Cholesky factor of ``K / 4^e + s I``, the ridge s, None, and e.

    For narrow features phi it returns the factor of ``phiᵀ phi + s I``, s, their Gram and e instead. The inverse is
    then ``G = (I − phi (phiᵀ phi + s I)⁻¹ phiᵀ) / s``.
    """
    gram, exponent = gram.normalised()
    trace = gram.trace()
    ridge = nugget.astype(trace.dtype) * trace / gram.n
    narrow = gram if isinstance(gram, FeatureGram) and gram.narrow else None
    matrix = add_to_diagonal(gram.dense() if narrow is None else of_columns(narrow.parts), ridge)
    return jax.lax.linalg.cholesky(matrix, symmetrize_input=False), ridge, narrow, exponent
