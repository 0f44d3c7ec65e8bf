"""Posteriors of a Gaussian process: predictions with error bars. All in float64 NumPy, see ``_sides.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from ..metrics import FeatureGram, Gram
from ._entries import Entries
from ._factor import Cholesky, Spectral
from ._iterative import Iterative
from ._sides import DenseSide, FeatureSide, LeftOut
from ._targets import Targets

if TYPE_CHECKING:
    from jaxtyping import Float

Factor = Cholesky | Spectral | Iterative


@dataclass(frozen=True)
class _Posterior:
    """What both forms of a posterior share.

    Attributes:
        nugget: variance of the noise, relative to ``scale · tr K / N``.
        scale: what the kernel is multiplied with; 1 unless ``select=`` chose it.
        noise: variance of the noise.
        classes: the labels, in the order of the columns of ``mean``; None for regression.
    """

    side: FeatureSide | DenseSide | Entries
    factor: Factor
    targets: Targets
    nugget: float
    scale: float

    @property
    def noise(self) -> float:
        """Variance of the noise."""
        return self.scale * self.factor.ridge

    @property
    def classes(self) -> np.ndarray | None:
        """The labels, in the order of the columns of ``mean``; None for regression."""
        return self.targets.classes

    def log_marginal_likelihood(self) -> float:
        """How likely the targets are, in nats, summed over the columns of ``y``.

        ``−½ tr(Yᵀ G Y) / a − ½ C log det(a (K + s I)) − ½ N C log 2π`` with ``G = (K + s I)⁻¹`` and the scale ``a``.

        Raises:
            ValueError: ``nugget=0``, and the kernel is singular: the targets have no density. The kernel was solved by
                conjugate gradients.

        Source: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, eq. 2.30.
        """
        side, factor = self._factored("log_marginal_likelihood")
        by_few_features = isinstance(side, FeatureSide) and not factor.ridge
        if by_few_features or not factor.full:
            raise ValueError(
                f"log_marginal_likelihood is not defined for nugget={self.nugget}, because the kernel is singular; "
                "pass a larger nugget."
            )
        fit, log_det = side.fit_and_log_det(factor)
        n, columns = side.n, side.y.shape[1]
        log_det += n * np.log(self.scale)
        return float(-0.5 * (fit / self.scale + columns * log_det + n * columns * np.log(2 * np.pi)))

    def leave_one_out(self) -> LeftOut:
        """The predictions for each example from all others, in closed form.

        Raises:
            ValueError: ``nugget=0``, and the other examples say nothing of one. The kernel was solved by conjugate
                gradients.

        Source: Rasmussen & Williams, 2006, eq. 5.12.
        """
        side, factor = self._factored("leave_one_out")
        if isinstance(side, DenseSide) and not factor.full:
            raise ValueError(
                f"leave_one_out has no answer for nugget={self.nugget}, because the kernel is singular; pass a larger "
                "nugget."
            )
        mean, variance = side.leave_one_out(factor)
        return LeftOut(self._shaped(mean), self.scale * variance)

    def _factored(self, method: str) -> tuple[FeatureSide | DenseSide, Cholesky | Spectral]:
        if isinstance(self.side, Entries) or isinstance(self.factor, Iterative):
            raise ValueError(
                f"{method} needs a factor of the kernel, but this one of N={self.side.n} examples was solved by "
                "conjugate gradients, which only multiply with it; pass features with D < N, fewer examples, or a "
                "larger memory_budget to gp.fit. matfree estimates log det by stochastic Lanczos quadrature."
            )
        return self.side, self.factor

    def _shaped(self, mean: np.ndarray) -> np.ndarray:
        return mean[..., 0] if self.targets.flat else mean

    def _labels(self, mean: np.ndarray) -> np.ndarray:
        if self.classes is None:
            raise ValueError("y held numbers, not labels, so there are no classes to predict; use mean.")
        return self.classes[np.argmax(mean, axis=1)]

    def _chances(self, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        self._labels(mean)
        return chances(mean, variance + self.noise)


@dataclass(frozen=True)
class FeaturePosterior(_Posterior):
    """A posterior over functions of features; :func:`fit` and :func:`from_model` return it.

    Every method takes ``test``: features ``(M, D)`` or, from :func:`from_model`, inputs of the model. All results are
    float64 NumPy arrays, in which the M test examples come first. Inside ``jit``, ``phi @ posterior.weights`` is the
    mean.

    Attributes:
        nugget: variance of the noise, relative to ``scale · tr K / N``.
        scale: what the kernel is multiplied with; 1 unless ``select=`` chose it.
        noise: variance of the noise.
        classes: the labels, in the order of the columns of ``mean``; None for regression.
        weights: the mean of the weights of the features, ``(D, C)``.
    """

    weights: Float[np.ndarray, "D C"]
    root: np.ndarray
    features_of: Callable[[Any], Any] | None = None

    def mean(self, test: Any) -> np.ndarray:
        """The posterior mean, ``(M, C)``, or ``(M,)`` for targets ``(N,)``."""
        return self._shaped(self._features(test) @ self.weights)

    def variance(self, test: Any) -> Float[np.ndarray, " M"]:
        """The posterior variance without noise, the same for all columns."""
        return self._variance(self._features(test))

    def covariance(self, test: Any) -> Float[np.ndarray, "M M"]:
        """The posterior covariance of the test examples without noise."""
        return self._covariance(self._features(test))

    def predict(self, test: Any) -> np.ndarray:
        """The most likely labels, ``(M,)``."""
        return self._labels(self._features(test) @ self.weights)

    def probabilities(self, test: Any) -> Float[np.ndarray, "M C"]:
        """How likely the column of each class is the largest, with noise."""
        phi = self._features(test)
        return self._chances(phi @ self.weights, self._variance(phi))

    def sample(self, key: Array, test: Any, n: int = 1) -> np.ndarray:
        """Draws of the function at the test examples, without noise, ``(n, M, C)``, or ``(n, M)``."""
        phi = self._features(test)
        root = np.sqrt(self.scale) * (phi @ self.root) if self._narrow else root_of(self._covariance(phi))
        return self._shaped(draws(key, n, phi @ self.weights, root))

    @property
    def _narrow(self) -> bool:
        return isinstance(self.side, FeatureSide)

    def _variance(self, phi: np.ndarray) -> np.ndarray:
        turned = np.sum((phi @ self.root) ** 2, axis=1)
        return self.scale * (turned if self._narrow else np.maximum(np.sum(phi**2, axis=1) - turned, 0))

    def _covariance(self, phi: np.ndarray) -> np.ndarray:
        turned = phi @ self.root
        return self.scale * (turned @ turned.T if self._narrow else phi @ phi.T - turned @ turned.T)

    def _features(self, test: Any) -> np.ndarray:
        phi = test if self.features_of is None else self.features_of(test)
        if isinstance(phi, FeatureGram):
            phi = phi.features
        elif isinstance(phi, Gram):
            raise TypeError(f"test is a {type(phi).__name__}; pass features (M, D), such as nngp.metrics.features(y).")
        return rows_of("test", phi, len(self.weights), "features (M, D)")


@dataclass(frozen=True)
class DensePosterior(_Posterior):
    """A posterior by the entries of a kernel; :func:`fit` returns it for a kernel ``(N, N)``.

    Every method takes ``k``: the kernel of test and training examples ``(M, N)``, such as
    ``kernel_fn(x_test, x_train, params)``. All results are float64 NumPy arrays.

    Attributes:
        nugget: variance of the noise, relative to ``scale · tr K / N``.
        scale: what the kernel is multiplied with; 1 unless ``select=`` chose it.
        noise: variance of the noise.
        classes: the labels, in the order of the columns of ``mean``; None for regression.
        weights: the weights of the training examples, ``(N, C)``: ``k @ posterior.weights`` is the mean.
        residual: the largest ``‖y − (K + s I) w‖ / ‖y‖`` of a column, if conjugate gradients solved for the weights;
            None for a factor.
    """

    weights: Float[np.ndarray, "N C"]
    residual: float | None = None

    def mean(self, k: Any) -> np.ndarray:
        """The posterior mean, ``(M, C)``, or ``(M,)`` for targets ``(N,)``."""
        return self._shaped(self._rows(k) @ self.weights)

    def variance(self, k: Any, diagonal: Any) -> Float[np.ndarray, " M"]:
        """The posterior variance without noise; ``diagonal`` is that of the kernel of the test examples, ``(M,)``."""
        k = self._rows(k)
        diagonal = np.asarray(diagonal, np.float64)
        if diagonal.shape != (len(k),):
            raise ValueError(f"diagonal has shape {diagonal.shape}; pass K[i, i] of the M={len(k)} test examples.")
        left, right = self.factor.halves(k.T)
        return self.scale * np.maximum(diagonal - np.einsum("nm,nm->m", left, right), 0)

    def covariance(self, k: Any, k_test: Any) -> Float[np.ndarray, "M M"]:
        """The posterior covariance without noise; ``k_test`` is the kernel of the test examples, ``(M, M)``."""
        k = self._rows(k)
        k_test = rows_of("k_test", k_test, len(k), "the kernel of the test examples (M, M)")
        left, right = self.factor.halves(k.T)
        return self.scale * (k_test - left.T @ right)

    def predict(self, k: Any) -> np.ndarray:
        """The most likely labels, ``(M,)``."""
        return self._labels(self._rows(k) @ self.weights)

    def probabilities(self, k: Any, diagonal: Any) -> Float[np.ndarray, "M C"]:
        """How likely the column of each class is the largest, with noise."""
        return self._chances(self._rows(k) @ self.weights, self.variance(k, diagonal))

    def sample(self, key: Array, k: Any, k_test: Any, n: int = 1) -> np.ndarray:
        """Draws of the function at the test examples, without noise, ``(n, M, C)``, or ``(n, M)``."""
        return self._shaped(draws(key, n, self._rows(k) @ self.weights, root_of(self.covariance(k, k_test))))

    def _rows(self, k: Any) -> np.ndarray:
        return rows_of("k", k, self.side.n, "the kernel of test and training examples (M, N)")


def rows_of(name: str, rows: Any, width: int, what: str) -> np.ndarray:
    """An array ``(M, width)`` in float64.

    Raises:
        ValueError: it has another shape.
    """
    if np.ndim(rows) != 2 or np.shape(rows)[1] != width:
        raise ValueError(f"{name} has shape {np.shape(rows)}; pass {what} with {width} columns, as fit was given.")
    return np.asarray(rows, np.float64)


def root_of(covariance: np.ndarray) -> np.ndarray:
    """``R`` with ``R Rᵀ`` the covariance, whose small eigenvalues rounding may have made negative."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def draws(key: Array, n: int, mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    """``(n, M, C)`` draws with a covariance ``root rootᵀ`` for each column."""
    normal = np.asarray(jax.random.normal(key, (n, root.shape[1], mean.shape[1])), np.float64)
    return mean + root @ normal


def chances(mean: np.ndarray, variance: np.ndarray, nodes: int = 32) -> np.ndarray:
    """How likely each of independent normal columns is the largest, ``(M, C)``, by Gauss–Hermite quadrature.

    ``P(c) = E_z Π_{k≠c} Φ(z + (m_c − m_k) / σ)`` with a standard normal z.
    """
    from scipy.special import ndtr

    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    # Without any variance, the largest mean is certain.
    sigma = np.sqrt(np.maximum(variance, np.finfo(float).tiny))[:, None]
    result = np.empty_like(mean)
    for c in range(mean.shape[1]):
        ahead = (mean[:, c : c + 1] - np.delete(mean, c, axis=1)) / sigma
        result[:, c] = sum(w * np.prod(ndtr(node + ahead), axis=1) for node, w in zip(z, weights, strict=True))
    return result / result.sum(axis=1, keepdims=True)
