"""Solving with ``K + s I`` where no factor of it fits into memory: conjugate gradients, which only multiply."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._threads import one_blas_thread
from ._entries import Entries
from ._factor import factor, rounding, spectral

RANKS = 512, 2048
"""Of the preconditioner, at least and at most: an eighth of N, which costs as much as some tens of steps."""
TOLERANCE = 1e-8
"""Of the residual, relative to the targets. The predictions at training examples are off by no more."""
STEPS = 1000
VECTOR_BYTES = 2**28
"""Of all columns that are solved for at once; six vectors are held."""


@dataclass(frozen=True)
class Iterative:
    """``K + s I``, which is multiplied with, and a preconditioner ``R Rᵀ + s I`` with ``R`` ``(N, rank)``.

    Attributes:
        entries: K.
        ridge: s.
        half: ``H`` with ``Hᵀ H = R (Rᵀ R + s I)⁻¹ Rᵀ``, which the formula of Woodbury takes.
    """

    entries: Entries
    ridge: float
    half: np.ndarray
    full = True

    @classmethod
    def of(cls, entries: Entries, ridge: float, budget: int) -> Iterative:
        """The preconditioner is Nyström's, of random directions, from one pass over the kernel.

        Raises:
            ValueError: the kernel is not positive semi-definite.

        Source: Frangella, Tropp & Udell, "Randomized Nyström Preconditioning", SIAM J. Matrix Anal. Appl. 2023.
        """
        n, itemsize = entries.n, entries.kernel.dtype.itemsize
        # Four arrays of this size are held at first, and one afterwards.
        rank = max(1, min(int(np.clip(n // 8, *RANKS)), n // 4, budget // (4 * 8 * n)))
        entries.keep(budget - 4 * 8 * n * rank)
        # A preconditioner needs no more digits than the kernel has. These directions are orthonormal, nearly.
        dtype = np.float64 if itemsize > 4 else np.float32
        directions = np.random.default_rng(0).standard_normal((n, rank), dtype) / dtype(np.sqrt(n))
        with one_blas_thread():
            image = entries.times(directions)
        small = (directions.T @ image).astype(np.float64)
        noise = rounding(np.diag(small), max(float(np.finfo(kind).eps) for kind in (dtype, entries.kernel.dtype)))
        root = spectral((small + small.T) / 2, noise).half(image.T).T
        return cls(entries, ridge, factor(root.T @ root, ridge, 0.0).half(root.T))

    def solve(self, b: np.ndarray) -> np.ndarray:
        """``(K + s I)⁻¹ b``."""
        return self.solved(b)[0]

    def solved(self, b: np.ndarray) -> tuple[np.ndarray, float]:
        """``x = (K + s I)⁻¹ b``, and the largest ``‖b − (K + s I) x‖ / ‖b‖`` of its columns.

        Warns:
            RuntimeWarning: this residual is not as small as it should be.

        Raises:
            ValueError: the kernel is not positive semi-definite.
        """
        at_once = max(1, VECTOR_BYTES // (8 * len(b)))
        with one_blas_thread():
            parts = [self._columns(b[:, start : start + at_once]) for start in range(0, b.shape[1], at_once)]
        residual = max(residual for _, residual in parts)
        # Rounding may leave a residual that is a little larger than that of the last step.
        if not residual <= 10 * TOLERANCE:
            nugget = self.ridge * self.entries.n / self.entries.trace
            warnings.warn(
                f"conjugate gradients left a relative residual of {residual:.1g} with nugget={nugget:.1g}, so that "
                "predictions may be off by this share of the targets; pass a larger nugget.",
                RuntimeWarning,
                stacklevel=4,
            )
        return np.concatenate([x for x, _ in parts], axis=1), residual

    def halves(self, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As of :class:`Cholesky`."""
        return b, self.solve(b)

    def _columns(self, b: np.ndarray) -> tuple[np.ndarray, float]:
        from scipy.sparse.linalg import LinearOperator, cg

        sizes = np.linalg.norm(b, axis=0)
        unit = b / np.where(sizes > 0, sizes, 1)

        def operator(times: Callable[[np.ndarray], np.ndarray]) -> Any:
            # The columns are one long vector, so that a step for all of them reads the kernel once.
            square = (unit.size, unit.size)
            return LinearOperator(square, lambda v: times(v.reshape(unit.shape)).ravel(), dtype=unit.dtype)

        preconditioner = operator(self._preconditioned)
        x, _ = cg(operator(self._times), unit.ravel(), rtol=0, atol=TOLERANCE, maxiter=STEPS, M=preconditioner)
        x = x.reshape(unit.shape)
        # The residual that the steps count with drifts from the real one, which takes another pass.
        residual = np.linalg.norm(unit - self._times(x), axis=0)
        return x * sizes, float(np.max(residual))

    def _times(self, v: np.ndarray) -> np.ndarray:
        image, squares = self.entries.times(v), np.sum(v * v, axis=0)
        energies = np.sum(v * image, axis=0)
        if (negative := energies < -100 * self.entries.noise * squares).any():
            least = np.min(energies[negative] / squares[negative])
            raise ValueError(
                f"the kernel has an eigenvalue of at most {least:.3g}; a kernel of a Gaussian process is positive "
                "semi-definite."
            )
        return image + self.ridge * v

    def _preconditioned(self, v: np.ndarray) -> np.ndarray:
        """``s (R Rᵀ + s I)⁻¹ v``."""
        return v - self.half.T @ (self.half @ v)
