"""The two sides that a regression can be solved on: D × D by features, N × N by the kernel. All in float64 NumPy.

The ridge is a share of ``tr K / N``, while the largest eigenvalue may be near ``tr K``: for many examples their ratio
is below what float32 resolves, so both sides are computed in float64 whatever the dtype of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ._factor import Cholesky, Spectral, rounding

ROWS = 4096
"""Examples per block, at least; no array of all examples is ever made by the side of features."""

Factor = Cholesky | Spectral


class LeftOut(NamedTuple):
    """Predictions for each example from all others.

    Attributes:
        mean: as ``Posterior.mean``, ``(N,)`` or ``(N, C)``.
        variance: of what is observed, with its noise, ``(N,)``.
    """

    mean: np.ndarray
    variance: np.ndarray


class Evidence(NamedTuple):
    """What the likelihood of each ridge depends on.

    Attributes:
        values: eigenvalues.
        energies: ``‖uᵀ Y‖²`` of their eigenvectors.
        rest: ``‖Y‖²`` outside of them, where the eigenvalue is zero.
    """

    values: np.ndarray
    energies: np.ndarray
    rest: float


class FeatureSide:
    """The side ``A = phiᵀ phi``, ``(D, D)``: sums over blocks of examples, in one pass to fit and one to score.

    Attributes:
        phi: features ``(N, D)``: anything with a shape and slices of rows.
        y: targets ``(N, C)``, in the same form.
        matrix: A.
        noise: the rounding error of its eigenvalues.
    """

    phi: Any
    y: Any
    n: int
    matrix: np.ndarray
    trace: float
    noise: float

    def __init__(self, phi: Any, y: Any):
        self.phi, self.y = phi, y
        self.n, width = phi.shape
        self.matrix, self._cross = np.zeros((width, width)), np.zeros((width, y.shape[1]))
        for block, targets in self._blocks():
            self.matrix += block.T @ block
            self._cross += block.T @ targets
        self.trace = float(np.trace(self.matrix))
        self.noise = rounding(np.diag(self.matrix), np.finfo(float).eps)

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        stored = getattr(self.phi, "block_rows", 1)
        # A stored block is read once, as a whole.
        size = -(-ROWS // stored) * stored
        for start in range(0, self.n, size):
            rows = slice(start, start + size)
            yield np.asarray(self.phi[rows], np.float64), np.asarray(self.y[rows], np.float64)

    def weights(self, factor: Factor) -> np.ndarray:
        """The weights of the features, ``(D, C)``."""
        return factor.solve(self._cross)

    def fit_and_log_det(self, factor: Factor) -> tuple[float, float]:
        """``tr(Yᵀ G Y)`` and ``log det(K + s I)``."""
        weights = self.weights(factor)
        errors = sum(float(np.sum((y - phi @ weights) ** 2)) for phi, y in self._blocks())
        # As the minimum of ‖Y − phi w‖² / s + ‖w‖², the fit does not suffer from errors of w.
        fit = errors / factor.ridge + float(np.sum(weights**2))
        return fit, factor.log_det() + (self.n - len(weights)) * float(np.log(factor.ridge))

    def leave_one_out(self, factor: Factor) -> LeftOut:
        """``y − (y − phi w) / (1 − h)`` with the leverage h, and its variance ``s / (1 − h)``."""
        weights, means, shares = self.weights(factor), [], []
        for phi, y in self._blocks():
            share = 1 - np.sum(factor.half(phi.T) ** 2, axis=0)
            means.append(y - (y - phi @ weights) / np.maximum(share, 1e-300)[:, None])
            shares.append(share)
        share = np.concatenate(shares)
        refuse_alone(share < 1e-10)
        return LeftOut(np.concatenate(means), factor.ridge / share)

    def evidence(self, spectral: Spectral) -> Evidence:
        """What the likelihood depends on, from a second pass."""
        kept = spectral.values > spectral.noise
        along = spectral.vectors[:, kept].T @ self._cross / np.sqrt(spectral.values[kept])[:, None]
        weights = self.weights(spectral.with_ridge(0.0))
        rest = sum(float(np.sum((y - phi @ weights) ** 2)) for phi, y in self._blocks())
        return Evidence(spectral.values[kept], np.sum(along**2, axis=1), rest)

    def left_out_errors(self, spectral: Spectral, ridges: np.ndarray) -> np.ndarray:
        """The sum of the squared errors of the left-out examples for each ridge."""
        inverses = 1 / (spectral.values[:, None] + ridges)
        along, errors = spectral.vectors.T @ self._cross, np.zeros(len(ridges))
        for phi, y in self._blocks():
            turned = phi @ spectral.vectors
            shares = 1 - turned**2 @ inverses
            for i, inverse in enumerate(inverses.T):
                residual = y - turned @ (inverse[:, None] * along)
                errors[i] += np.sum((residual / shares[:, i : i + 1]) ** 2)
        return errors


class DenseSide:
    """The side K, ``(N, N)``.

    Attributes:
        matrix: K.
        y: targets ``(N, C)``.
        noise: the rounding error of the eigenvalues.
    """

    matrix: np.ndarray
    y: np.ndarray
    n: int
    trace: float
    noise: float

    def __init__(self, matrix: np.ndarray, y: Any, noise: float):
        self.matrix, self.y = matrix, np.asarray(y, np.float64)
        self.n = len(matrix)
        self.trace = float(np.trace(matrix))
        self.noise = noise

    def weights(self, factor: Factor) -> np.ndarray:
        """The weights of the examples, ``(N, C)``."""
        return factor.solve(self.y)

    def fit_and_log_det(self, factor: Factor) -> tuple[float, float]:
        """``tr(Yᵀ G Y)`` and ``log det(K + s I)``."""
        return float(np.sum(self.y * self.weights(factor))), factor.log_det()

    def leave_one_out(self, factor: Factor) -> LeftOut:
        """``y − (G y) / G_ii``, and its variance ``1 / G_ii``."""
        own = np.empty(self.n)
        for start in range(0, self.n, ROWS):
            rows = slice(start, start + ROWS)
            own[rows] = np.sum(factor.half(np.eye(self.n, len(own[rows]), -start)) ** 2, axis=0)
        return LeftOut(self.y - self.weights(factor) / own[:, None], 1 / own)

    def evidence(self, spectral: Spectral) -> Evidence:
        """What the likelihood depends on."""
        return Evidence(spectral.values, np.sum((spectral.vectors.T @ self.y) ** 2, axis=1), 0.0)

    def left_out_errors(self, spectral: Spectral, ridges: np.ndarray) -> np.ndarray:
        """The sum of the squared errors of the left-out examples for each ridge."""
        along, squares = spectral.vectors.T @ self.y, spectral.vectors**2
        inverses = (1 / (spectral.values + ridge) for ridge in ridges)
        return np.array(
            [np.sum((spectral.vectors @ (i[:, None] * along) / (squares @ i)[:, None]) ** 2) for i in inverses]
        )


Side = FeatureSide | DenseSide


def refuse_alone(alone: np.ndarray) -> None:
    """Refuses to leave out an example without which a direction of the features was never observed.

    Raises:
        ValueError: there are such examples.
    """
    if alone.any():
        raise ValueError(
            f"leave_one_out has no answer for example {int(np.flatnonzero(alone)[0])}: with nugget=0, the others say "
            "nothing of it; pass a nugget > 0."
        )
