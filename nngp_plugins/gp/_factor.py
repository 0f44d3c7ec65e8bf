"""Solving with ``S + s I`` for a positive semi-definite S: by Cholesky, or by eigenvectors where S may be singular."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Cholesky:
    """``S + s I = root rootᵀ``."""

    root: np.ndarray
    ridge: float
    full = True

    def solve(self, b: np.ndarray) -> np.ndarray:
        """``(S + s I)⁻¹ b``."""
        from scipy.linalg import cho_solve

        return cho_solve((self.root, True), b)

    def half(self, b: np.ndarray) -> np.ndarray:
        """``H`` with ``Hᵀ H = bᵀ (S + s I)⁻¹ b``."""
        from scipy.linalg import solve_triangular

        return solve_triangular(self.root, b, lower=True)

    def halves(self, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``L`` and ``R`` with ``Lᵀ R = bᵀ (S + s I)⁻¹ b``."""
        half = self.half(b)
        return half, half

    def free(self) -> np.ndarray:
        """``R`` with ``R Rᵀ = s (S + s I)⁻¹``, the share of the prior's variance that the data leave."""
        return np.sqrt(self.ridge) * self.half(np.eye(len(self.root))).T

    def log_det(self) -> float:
        """``log det(S + s I)``."""
        return float(2 * np.sum(np.log(np.diag(self.root))))


@dataclass(frozen=True)
class Spectral:
    """``S = vectors diag(values) vectorsᵀ``; directions whose eigenvalue is rounding error count as never observed.

    Attributes:
        values: eigenvalues, at least zero.
        vectors: eigenvectors, as columns.
        noise: the rounding error of the eigenvalues.
        ridge: s.
    """

    values: np.ndarray
    vectors: np.ndarray
    noise: float
    ridge: float = 0.0

    @property
    def kept(self) -> np.ndarray:
        """Which directions count: all, if s is above the rounding error."""
        return (self.values > self.noise) | (self.ridge > self.noise)

    @property
    def full(self) -> bool:
        """Whether all directions count."""
        return bool(self.kept.all())

    @property
    def inverse(self) -> np.ndarray:
        """The eigenvalues of the (pseudo-)inverse."""
        return np.where(self.kept, 1 / np.where(self.kept, self.values + self.ridge, 1), 0)

    def solve(self, b: np.ndarray) -> np.ndarray:
        """``(S + s I)⁺ b``."""
        return self.vectors @ (self.inverse[:, None] * (self.vectors.T @ b))

    def half(self, b: np.ndarray) -> np.ndarray:
        """``H`` with ``Hᵀ H = bᵀ (S + s I)⁺ b``."""
        return np.sqrt(self.inverse)[:, None] * (self.vectors.T @ b)

    def halves(self, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As of :class:`Cholesky`."""
        half = self.half(b)
        return half, half

    def free(self) -> np.ndarray:
        """As of :class:`Cholesky`; a direction that was never observed keeps all of its variance."""
        return self.vectors * np.sqrt(np.where(self.kept, self.ridge * self.inverse, 1))

    def log_det(self) -> float:
        """``log det(S + s I)``, if all directions count."""
        return float(np.sum(np.log(self.values + self.ridge)))

    def with_ridge(self, ridge: float) -> Spectral:
        """The same S with another s."""
        return replace(self, ridge=ridge)


def rounding(diagonal: np.ndarray, eps: float) -> float:
    """What rounding does to the eigenvalues of a matrix whose entries were computed with a relative error of ``eps``.

    A matrix of independent errors of size e has a norm of ``2 e √N``; the other factor of 2 is a margin.
    """
    return float(4 * eps * np.sqrt(len(diagonal)) * np.max(diagonal, initial=0))


def spectral(matrix: np.ndarray, noise: float) -> Spectral:
    """The eigenvectors of a matrix.

    Raises:
        ValueError: an eigenvalue is negative by more than rounding.
    """
    from scipy.linalg import eigh

    values, vectors = eigh(matrix, check_finite=False)
    if values[0] < -100 * noise:
        raise ValueError(
            f"the kernel has the eigenvalue {values[0]:.3g} beside its largest, {values[-1]:.3g}; a kernel of a "
            "Gaussian process is positive semi-definite."
        )
    return Spectral(np.maximum(values, 0), vectors, noise)


def factor(matrix: np.ndarray, ridge: float, noise: float) -> Cholesky | Spectral:
    """The cheaper factor: Cholesky where s is above the rounding error, and so all eigenvalues of the sum positive."""
    from scipy.linalg import cholesky

    if ridge > noise:
        ridged = matrix.copy()
        ridged.flat[:: len(matrix) + 1] += ridge
        try:
            return Cholesky(cholesky(ridged, lower=True, overwrite_a=True, check_finite=False), ridge)
        except np.linalg.LinAlgError:
            pass  # The kernel has negative eigenvalues; what these are, the next lines find out.
    return spectral(matrix, noise).with_ridge(ridge)
