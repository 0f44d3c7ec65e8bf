"""How features that are read block by block arrange classes and fit targets."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._products import COLUMNS, product
from ._streamed import StreamedGram
from ._sums import Vector


def of_targets(gram: StreamedGram, targets: np.ndarray) -> StreamedGram:
    """The kernel of targets, in the dtype of the features."""
    return StreamedGram(np.asarray(targets, gram.product_dtype))


def class_means(gram: StreamedGram, one_hot: np.ndarray, *, centered: bool) -> tuple[Vector, Vector]:
    """The mean of the features of each class ``(C, D)``, and the examples of each class."""
    both, counts = gram.moments_with(of_targets(gram, one_hot)), one_hot.sum(axis=0)
    means = both.covariance.T / np.maximum(counts, 1)[:, None]
    return means if centered else means + gram.mean, counts


def block_means_of_stream(gram: StreamedGram, one_hot: np.ndarray) -> Array:
    """:func:`class_block_means`: inner products of class means."""
    means, counts = class_means(gram, one_hot, centered=False)
    has_examples = counts > 0
    return _result(gram, np.where(has_examples[:, None] & has_examples[None], means @ means.T, np.nan))


def separation_of_stream(gram: StreamedGram, one_hot: np.ndarray) -> Array:
    """:func:`class_separation`; if classes have nearly collapsed, another pass sums the deviations from their means.

    Otherwise the covariance within classes is that of all examples minus that of the means.
    """
    means, counts = class_means(gram, one_hot, centered=True)
    products, eps = means @ means.T, np.finfo(gram.product_dtype).eps
    apart = np.trace(products) / len(counts) > 16 * eps**2 * float(gram.trace()) / gram.n
    if len(counts) < 2 or not apart:
        return _result(gram, np.nan)
    inverse = np.linalg.pinv(products, rcond=10 * len(counts) * eps, hermitian=True)
    covariance, solved = gram.moments.covariance, inverse @ means
    within_classes = covariance - means.T @ (counts[:, None] * means)
    total = float(np.sum((solved @ within_classes) * solved))
    # Entries of the covariance are exact to the rounding of its largest ones.
    if total > 1e4 * eps * np.linalg.norm(covariance) * np.sum(solved**2):
        return _result(gram, total / gram.n)
    total, start, centered = 0.0, 0, gram.center()
    for rows in centered.rows():
        within = rows @ means.T.astype(rows.dtype) - one_hot[start : start + len(rows)] @ products
        total += float(np.sum((within @ inverse) ** 2))
        start += len(rows)
    return _result(gram, total / gram.n)


def accuracy_of_stream(gram: StreamedGram, one_hot: np.ndarray, nugget: float) -> Array:
    """:func:`regression_accuracy`, with ``G = (I − phi A⁻¹ phiᵀ) / s`` and ``A = phiᵀ phi + s I``, from two passes."""
    from scipy.linalg import solve_triangular

    found = _cholesky(gram, nugget)
    if found is None:
        return _result(gram, np.nan)
    root, _ = found
    inverse = solve_triangular(root, np.eye(len(root)), lower=True)
    weights = inverse.T @ (inverse @ _times_targets(gram, one_hot))
    on_host = jax.default_backend() == "cpu"
    given: Any = np.asarray(inverse, gram.dtype, order="F"), np.asarray(weights, gram.dtype)
    given = given if on_host else jax.device_put(given)
    right, start = 0, 0
    for rows in gram.rows():
        block = np.asarray(rows, gram.dtype)
        leverage, fitted = (_on_host if on_host else _on_device)(block, *given)
        targets = one_hot[start : start + len(rows)]
        with np.errstate(all="ignore"):
            left_out = targets - (targets - fitted) / (1 - leverage)[:, None]
        if not np.isfinite(left_out).all():
            return _result(gram, np.nan)
        right += int(np.sum(np.argmax(left_out, axis=1) == np.argmax(targets, axis=1)))
        start += len(rows)
    return _result(gram, right / gram.n)


def _on_device(rows: np.ndarray, factor: Array, weights: Array) -> tuple[np.ndarray, np.ndarray]:
    leverage, fitted = jax.device_get(_by_xla(jax.device_put(rows), factor, weights))
    return leverage, fitted


@jax.jit
def _by_xla(rows: Array, factor: Array, weights: Array) -> tuple[Array, Array]:
    """``‖L⁻¹ phi[i]‖²`` and ``phi w``. The factor has zeros above its diagonal, which are not multiplied."""
    ends = [(k, min(k + COLUMNS, len(factor))) for k in range(0, len(factor), COLUMNS)]
    parts = (product(rows[:, :end], factor[k:end, :end].T) for k, end in ends)
    leverage = sum((jnp.sum(part**2, axis=1) for part in parts), jnp.zeros(len(rows), rows.dtype))
    return leverage, product(rows, weights)


@np.errstate(all="ignore")
def _on_host(rows: np.ndarray, factor: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by BLAS, which multiplies by a triangle in half of the time."""
    from scipy.linalg.blas import get_blas_funcs

    times = get_blas_funcs("trmm", (factor, rows))
    solved = times(1.0, factor, rows.T, lower=True).T
    return np.einsum("ij,ij->i", solved, solved), rows @ weights


def likelihood_of_stream(gram: StreamedGram, targets: np.ndarray, nugget: float) -> Array:
    """:func:`log_marginal_likelihood`, with ``G = (I − phi A⁻¹ phiᵀ) / s`` and ``A = phiᵀ phi + s I``."""
    from scipy.linalg import solve_triangular

    found = _cholesky(gram, nugget)
    if found is None:
        return _result(gram, np.nan)
    (root, ridge), (n, columns) = found, targets.shape
    fitted = np.sum(solve_triangular(root, _times_targets(gram, targets), lower=True) ** 2)
    fit = (np.sum(targets.astype(float) ** 2) - fitted) / ridge
    logs = 2 * np.sum(np.log(np.diagonal(root))) + (n - len(root)) * math.log(ridge)
    return _result(gram, -0.5 * (fit + columns * logs + n * columns * math.log(2 * math.pi)))


def _times_targets(gram: StreamedGram, targets: np.ndarray) -> Vector:
    """``phiᵀ Y``."""
    both = gram.moments_with(of_targets(gram, targets))
    return both.covariance + gram.n * np.outer(gram.mean, both.means[1])


def _cholesky(gram: StreamedGram, nugget: float) -> tuple[Vector, float] | None:
    """The Cholesky factor of ``phiᵀ phi + s I``, and ``s = nugget · tr K / N``; None for a kernel that has none."""
    matrix = gram.second_moments()
    ridge = float(nugget) * float(np.trace(matrix)) / gram.n
    if not 0 < ridge < np.inf:
        return None
    root = np.linalg.cholesky(matrix + ridge * np.eye(len(matrix)))
    return root.astype(np.float64), ridge


def _result(gram: StreamedGram, value: Any) -> Array:
    return jnp.asarray(value, gram.dtype)
