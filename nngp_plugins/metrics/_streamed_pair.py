"""Two kernels on few examples in place of two by features that are read block by block."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ._features import FeatureGram
from ._streamed import StreamedGram
from ._sums import Vector, moments


def on_few_examples(a: StreamedGram, b: StreamedGram) -> tuple[FeatureGram, FeatureGram]:
    """Features on D + E + 1 examples with the same products ``phiᵀ phi``, ``phiᵀ psi`` and ``psiᵀ psi``, also centred.

    An orthogonal matrix that turns the examples and keeps the vector of ones makes these of the features. Whatever does
    not change with it, such as eigenvalues and the angles between eigenvectors, is the same. One pass makes the
    products, in float64, because the roots of eigenvalues have half of the digits.
    """
    found = moments([a.phi, b.phi], [(0, 0), (0, 1), (1, 1)], np.float64)
    own, both, other = (found[pair].covariance for pair in ((0, 0), (0, 1), (1, 1)))
    means = [
        np.zeros_like(mean) if gram.centered else mean for gram, mean in zip((a, b), found[0, 1].means, strict=True)
    ]
    root = _root(np.block([[own, both], [both.T, other]]))
    rows = np.concatenate([np.sqrt(a.n) * np.concatenate(means)[None], root])
    # The reflection that takes the first axis to the vector of ones, divided by its length.
    mirror = np.full(len(rows), len(rows) ** -0.5)
    mirror[0] -= 1
    rows -= np.outer(2 * mirror / (mirror @ mirror), mirror @ rows)
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return tuple(FeatureGram(jnp.asarray(part, dtype)) for part in np.split(rows, [len(own)], axis=1))  # type: ignore[return-value]


def _root(matrix: Vector) -> Vector:
    """``R`` with ``Rᵀ R`` equal to a positive semi-definite matrix."""
    if not np.isfinite(matrix).all():
        return np.full_like(matrix, np.nan)
    values, vectors = np.linalg.eigh(matrix)
    root: Vector = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return root
