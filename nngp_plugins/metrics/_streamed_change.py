"""How far a kernel has moved, from features that are read block by block."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ._blocks import FeatureBlocks, by_threads
from ._streamed import streamed_pair
from ._sums import Moments, Vector, moments


def change_of_streams(a: Any, b: Any, center: bool = False) -> tuple[Array, Array, Array, Array]:
    """For kernels ``K = L + Δ``: ``‖Δ‖²``, ``‖Δ⊥‖²`` with ``Δ⊥`` orthogonal to L, ``⟨K, L⟩`` and ``‖L‖²``.

    All are divided by ``‖L‖²``. They are made of products of ``delta = phi − psi`` and ``psi`` in float64, so that
    small changes keep their digits.

    Raises:
        ValueError: different N, or a kernel that is held by its entries.
    """
    a, b = streamed_pair(a, b)
    psi = _Padded(b.phi, max(a.phi.shape[1], b.phi.shape[1]))
    delta = _Change(_Padded(a.phi, psi.shape[1]), psi)
    sums = moments([psi, delta], [(0, 0), (0, 1), (1, 1)], np.float64)
    pp, pd, dd = (_second(moment, (a.centered or center, b.centered or center)) for moment in sums.values())
    # With total = 2 psi + delta, these are deltaᵀ total and totalᵀ total.
    delta_sum, sum_sum = 2 * pd.T + dd, 4 * pp + 2 * (pd + pd.T) + dd
    change = (np.sum(dd * sum_sum) + np.sum(delta_sum * delta_sum.T)) / 2
    along, size = 2 * np.sum(pd * pp) + np.sum(pd**2), np.sum(pp**2)
    if not size > 0:
        return (jnp.full((), jnp.nan, a.dtype),) * 4
    aside = max(change - along**2 / size, 0.0)
    dtype = jnp.promote_types(a.dtype, b.dtype)
    parts = [jnp.asarray(float(part / size), dtype) for part in (change, aside, size + along, size)]
    return parts[0], parts[1], parts[2], parts[3]


def _second(sums: Moments, centered: tuple[bool, bool]) -> Vector:
    """``Σ u vᵀ``, or of what is left of u and v without their means."""
    if centered[0] != centered[1]:
        raise ValueError("one kernel is centred and the other is not; centre both, or none.")
    return sums.covariance if centered[0] else sums.covariance + sums.n * np.outer(*sums.means)


class _Padded:
    """Features with columns of zeros beside them, which do not change the kernel."""

    dtype = np.dtype(np.float64)

    def __init__(self, phi: FeatureBlocks, width: int):
        self._phi, self.block_rows, self.shape = phi, getattr(phi, "block_rows", 1), (phi.shape[0], width)
        self.by_threads = by_threads(phi)

    def __getitem__(self, rows: slice) -> np.ndarray:
        features = np.asarray(self._phi[rows]).astype(np.float64)
        return np.pad(features, ((0, 0), (0, self.shape[1] - features.shape[1])))


class _Change:
    """``phi − psi``."""

    dtype = np.dtype(np.float64)

    def __init__(self, phi: _Padded, psi: _Padded):
        self._phi, self._psi, self.shape = phi, psi, psi.shape
        self.by_threads = phi.by_threads and psi.by_threads

    def __getitem__(self, rows: slice) -> np.ndarray:
        change: np.ndarray = self._phi[rows] - self._psi[rows]
        return change
