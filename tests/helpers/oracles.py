"""Metrics as their formulas in float64 NumPy, with nothing of the library."""

import numpy as np

from helpers.arrays import gram


def u_centred(kernel):
    """Székely & Rizzo 2014: the debiased HSIC is an inner product of matrices centred like this."""
    n = len(kernel)
    centred = kernel - kernel.sum(0) / (n - 2) - kernel.sum(1)[:, None] / (n - 2) + kernel.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return centred


def numbers(y, y0):
    """Metrics of one layer from its outputs, and those of its reference."""
    k, k0 = gram(y), gram(y0)
    off, off0 = (u_centred(kernel - np.diag(np.diag(kernel))) for kernel in (k, k0))
    eigenvalues = np.linalg.eigvalsh(k)
    p = eigenvalues[eigenvalues > 1e-12 * eigenvalues[-1]] / np.trace(k)
    return {
        "cka": np.sum(off * off0) / np.sqrt(np.sum(off**2) * np.sum(off0**2)),
        "relative_change": np.linalg.norm(k - k0) / np.linalg.norm(k0),
        "kernel_distance": 1 - np.sum(k * k0) / (np.linalg.norm(k) * np.linalg.norm(k0)),
        "effective_rank": np.exp(-np.sum(p * np.log(p))),
        "scale": np.trace(k) / len(k),
    }
