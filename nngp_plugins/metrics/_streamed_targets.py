"""How features that are read block by block arrange classes and fit targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._products import COLUMNS, product
from ._streamed import StreamedGram
from ._sums import Vector

# Random combinations that bound a leverage, and how often one of the bounds may fail.
_COMBINATIONS, _FAILS = 64, 1e-12


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

    def spread(start: int, rows: np.ndarray) -> float:
        within = rows @ means.T.astype(rows.dtype) - one_hot[start : start + len(rows)] @ products
        return float(np.sum((within @ inverse) ** 2))

    return _result(gram, sum(gram.center().each(spread)) / gram.n)


def collapse_of_stream(
    gram: StreamedGram, one_hot: np.ndarray, columns: Sequence[int], classifier: Any = None, logits: Any = None
) -> dict[str, Array]:
    """:func:`neural_collapse` of class means; the classes that the network prefers are compared in another pass."""
    means, _ = class_means(gram, one_hot, centered=True)
    products, count = means @ means.T, len(columns)
    norms = np.sqrt(np.diagonal(products))
    with np.errstate(all="ignore"):
        cosines = products / norms / norms[:, None]
        found = {
            "nc2_norms": norms.std() / norms.mean(),
            "nc2_angles": np.mean(np.abs(cosines + 1 / (count - 1))[~np.eye(count, dtype=bool)]),
        }
        if classifier is not None:
            weights, own = np.asarray(classifier, float)[:, columns], means.T
            found["nc3"] = np.sum((weights / np.linalg.norm(weights) - own / np.linalg.norm(own)) ** 2)
    if logits is not None:
        found["nc4"] = _disagreement(gram, means, columns, np.asarray(logits))
    return {"nc1": separation_of_stream(gram, one_hot)} | {name: _result(gram, one) for name, one in found.items()}


def _disagreement(gram: StreamedGram, means: Vector, columns: Sequence[int], logits: np.ndarray) -> float:
    """How often the network and the nearest class mean disagree; nan if a logit or a mean is not finite."""
    weights, sizes = means.T.astype(gram.product_dtype), np.sum(means**2, axis=1)
    if not (sizes.any() and np.isfinite(sizes).all() and np.isfinite(logits).all()):
        return np.nan

    def differ(start: int, rows: np.ndarray) -> int:
        # This is ‖phi − m‖² − ‖phi‖². The second term is the same for all classes and does not change the nearest one.
        nearest = np.argmin(sizes - 2 * (rows @ weights), axis=1)
        return int(np.sum(np.asarray(columns)[nearest] != np.argmax(logits[start : start + len(rows)], axis=1)))

    return sum(gram.center().each(differ)) / gram.n


def accuracy_of_stream(gram: StreamedGram, one_hot: np.ndarray, nugget: float) -> Array:
    """:func:`regression_accuracy`, with ``G = (I − phi A⁻¹ phiᵀ) / s`` and ``A = phiᵀ phi + s I``, from two passes.

    With the predictions ``f`` of all examples and the leverage ``h = phi[i] A⁻¹ phi[i]``, an example is right without
    itself if ``f`` of its class is larger by more than ``h`` than that of any other class.
    """
    from scipy.linalg import solve_triangular

    found = _cholesky(gram, nugget)
    if found is None:
        return _result(gram, np.nan)
    root, _ = found
    inverse = solve_triangular(root, np.eye(len(root)), lower=True)
    weights = inverse.T @ (inverse @ _times_targets(gram, one_hot))
    classes, right = one_hot.argmax(axis=1), 0
    if jax.default_backend() == "cpu":
        by_blas = _RightByBlas(inverse, weights, gram.dtype)
        counts = gram.each(lambda start, rows: by_blas(rows, classes[start : start + len(rows)]))
    else:
        # Threads read alone: the settings of JAX that the caller made for its thread are not theirs.
        by_xla = _RightByXla(inverse, weights, gram.dtype)
        blocks = gram.each(lambda start, rows: (rows, classes[start : start + len(rows)]))
        counts = (by_xla(*block) for block in blocks)
    for of_block in counts:
        if of_block is None:
            return _result(gram, np.nan)
        right += of_block
    return _result(gram, right / gram.n)


def _lead(fitted: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much the prediction for the class of each example exceeds any other, and whether it wins if they tie.

    The first one of equal predictions wins.
    """
    own, others = np.take_along_axis(fitted, classes[:, None], axis=1)[:, 0], fitted.copy()
    np.put_along_axis(others, classes[:, None], -np.inf, axis=1)
    return own - others.max(axis=1), classes <= others.argmax(axis=1)


def _is_right(lead: np.ndarray, wins_ties: np.ndarray, leverage: np.ndarray) -> np.ndarray:
    return (lead > leverage) | ((lead == leverage) & wins_ties)


class _RightByXla:
    """How many examples of a block are right without themselves; None if a number is not finite."""

    def __init__(self, inverse: Vector, weights: Vector, dtype: Any):
        self._given = jax.device_put((inverse.astype(dtype), weights.astype(dtype)))

    def __call__(self, rows: np.ndarray, classes: np.ndarray) -> int | None:
        leverage, fitted = jax.device_get(_by_xla(jax.device_put(rows), *self._given))
        if not np.isfinite(fitted).all() or not np.isfinite(leverage).all():
            return None
        return int(_is_right(*_lead(fitted, classes), leverage).sum())


@jax.jit
def _by_xla(rows: Array, factor: Array, weights: Array) -> tuple[Array, Array]:
    """``‖L⁻¹ phi[i]‖²`` and ``phi w``. The factor has zeros above its diagonal, which are not multiplied."""
    ends = [(k, min(k + COLUMNS, len(factor))) for k in range(0, len(factor), COLUMNS)]
    parts = (product(rows[:, :end], factor[k:end, :end].T) for k, end in ends)
    leverage = sum((jnp.sum(part**2, axis=1) for part in parts), jnp.zeros(len(rows), rows.dtype))
    return leverage, product(rows, weights)


class _RightByBlas:
    """The same on a CPU, where a leverage is computed only where it decides.

    A leverage ``‖L⁻¹ phi‖²`` takes D² operations. The same of ``k`` random combinations of the columns of ``L⁻¹ phi``
    takes k D, and over its expectation, the leverage, it has the distribution χ²(k) / k, whatever the features are. So
    it bounds the leverage, and the bounds fail for one example in 10¹² each. The lead of most examples is outside.

    Source: Drineas et al., "Fast approximation of matrix coherence and statistical leverage", JMLR 2012.
    """

    def __init__(self, inverse: Vector, weights: Vector, dtype: Any):
        from scipy.linalg.blas import get_blas_funcs
        from scipy.stats import chi2

        dice = np.random.default_rng(0).standard_normal((_COMBINATIONS, len(inverse)))
        # One product makes both the random combinations and the predictions.
        self._columns = np.concatenate([inverse.T @ dice.T, weights], axis=1).astype(dtype)
        self._lowest, self._highest = 1 / chi2.isf(_FAILS, _COMBINATIONS), 1 / chi2.ppf(_FAILS, _COMBINATIONS)
        self._inverse = np.asarray(inverse, dtype, order="F")
        self._times = get_blas_funcs("trmm", (self._inverse,))

    @np.errstate(all="ignore")
    def __call__(self, rows: np.ndarray, classes: np.ndarray) -> int | None:
        made = rows @ self._columns
        if not np.isfinite(made).all():
            return None
        bound = np.sum(made[:, :_COMBINATIONS] ** 2, axis=1)
        lead, wins_ties = _lead(made[:, _COMBINATIONS:], classes)
        is_right = lead > self._highest * bound
        (open_ones,) = np.nonzero(~is_right & (lead >= self._lowest * bound))
        # BLAS multiplies by a triangle in half of the time.
        solved = self._times(1.0, self._inverse, rows[open_ones].T, lower=True)
        leverage = np.einsum("ij,ij->j", solved, solved)
        return int(is_right.sum() + _is_right(lead[open_ones], wins_ties[open_ones], leverage).sum())


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
