"""The nugget and the scale that the data ask for."""

from __future__ import annotations

import numpy as np

from ._factor import Spectral
from ._sides import Evidence, LeftOut, Side

NUGGETS = np.logspace(-9, 2, 45)
"""The nuggets that are tried, four a decade."""


def by_likelihood(side: Side, spectral: Spectral) -> tuple[float, float]:
    """The ridge and the scale that maximise the log marginal likelihood.

    For each ridge the best scale is ``tr(Yᵀ G Y) / N C``, as the likelihood is that of a normal distribution.
    """
    from scipy.optimize import minimize_scalar

    evidence, columns = side.evidence(spectral), side.y.shape[1]

    def loss(log_ridge: float) -> float:
        fit, log_det = fit_and_log_det(evidence, side.n, float(np.exp(log_ridge)))
        return 0.5 * columns * (side.n * np.log(fit / (side.n * columns)) + log_det)

    logs = np.log(ridges_of(side))
    best = int(np.argmin([loss(log) for log in logs]))
    between = logs[max(best - 1, 0)], logs[min(best + 1, len(logs) - 1)]
    ridge = float(np.exp(minimize_scalar(loss, bounds=between, method="bounded", options={"xatol": 1e-6}).x))
    return ridge, fit_and_log_det(evidence, side.n, ridge)[0] / (side.n * columns)


def fit_and_log_det(evidence: Evidence, n: int, ridge: float) -> tuple[float, float]:
    """``tr(Yᵀ G Y)`` and ``log det(K + s I)`` of a ridge."""
    sums = evidence.values + ridge
    fit = float(np.sum(evidence.energies / sums)) + evidence.rest / ridge
    return fit, float(np.sum(np.log(sums)) + (n - len(sums)) * np.log(ridge))


def by_left_out(side: Side, spectral: Spectral) -> tuple[float, float]:
    """The ridge with the least squared error of the left-out examples, and the scale that these errors have."""
    ridges = ridges_of(side)
    ridge = float(ridges[np.argmin(side.left_out_errors(spectral, ridges))])
    left_out: LeftOut = side.leave_one_out(spectral.with_ridge(ridge))
    return ridge, float(np.mean((side.y - left_out.mean) ** 2 / left_out.variance[:, None]))


def ridges_of(side: Side) -> np.ndarray:
    """The ridges that are tried: those that the rounding error of the eigenvalues does not hide."""
    ridges = NUGGETS * side.trace / side.n
    return ridges[ridges > side.noise]
