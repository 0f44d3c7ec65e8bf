"""A kernel stored by its features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from .._typing import wide
from ._dense import DenseGram
from ._gram import Gram, ShownGram
from ._powers import exponent_if_far, exponent_of, largest, power_of_2
from ._products import Features, column_mean, of_columns, product, row_squares, squares

if TYPE_CHECKING:
    from jaxtyping import Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class FeatureGram(ShownGram):
    """A kernel stored by its features, ``K = phi phiᵀ``. If ``D < N``, the ``(N, N)`` matrix is avoided.

    Attributes:
        phi: features, ``(N, D)``.
        offset: ``(D,)``, subtracted from each row of ``phi`` where it is used. :meth:`center` sets the offset instead
            of copying large features. None means no offset.
        power: a scalar, by which ``phi`` is multiplied before that, where it is used. :meth:`divided` sets it. None
            means 1.
    """

    phi: Float[Array, "N D"]
    offset: Float[Array, " D"] | None = None
    power: Float[Array, ""] | None = None

    @property
    def n(self) -> int:
        """Number of examples N."""
        return self.phi.shape[-2]

    @property
    def parts(self) -> Features:
        """What the features are put together from."""
        return Features(self.phi, self.offset, self.power)

    @property
    def features(self) -> Float[Array, "N D"]:
        """The features: ``phi · power`` minus the offset."""
        return self.parts.all()

    @property
    def narrow(self) -> bool:
        """Whether ``D < N``, so that ``(D, D)`` is the cheaper side."""
        return self.phi.shape[-1] < self.n

    def dense(self) -> Float[Array, "N N"]:
        """``phi phiᵀ``."""
        moved = self.features
        return product(moved, moved.T)

    def diagonal(self) -> Float[Array, " N"]:
        """``‖phi[i]‖²``."""
        return row_squares(self.parts)

    def trace(self) -> Float[Array, ""]:
        """``‖phi‖²``."""
        if self.offset is not None or self.power is None:
            return self.diagonal().sum()
        # The squares of centred features and of their mean: XLA would copy all features that are scaled for a sum.
        mean = column_mean(self.parts)
        return replace(self, offset=mean).trace() + self.n * jnp.sum(mean**2)

    def center(self) -> FeatureGram:
        """The kernel of ``phi`` minus its mean over examples, which keeps digits that ``H K H`` would lose."""
        mean = column_mean(self.parts)
        return replace(self, offset=mean if self.offset is None else self.offset + mean)

    def eigvalsh(self) -> Array:
        """The ``min(N, D)`` eigenvalues that can differ from zero, ascending."""
        return jnp.linalg.eigvalsh(of_columns(self.parts) if self.narrow else self.dense())

    def singular_values(self) -> Array:
        """The ``min(N, D)`` singular values of the features, largest first."""
        return jnp.linalg.svd(self.features, compute_uv=False)

    def inner(self, other: Gram) -> Float[Array, ""]:
        """``⟨K, L⟩``; for two sets of features it is computed as ``‖phi_aᵀ phi_b‖²`` if that is cheaper."""
        if isinstance(other, FeatureGram) and self.phi.shape[1] * other.phi.shape[1] < self.n**2:
            both = (self, other) if other is not self else (self,)
            return squares(tuple(gram.parts for gram in both), ((0, len(both) - 1),))[0][0]
        return jnp.sum(self.dense() * other.dense())

    def matvec(self, v: Array) -> Array:
        """``phi (phiᵀ v)``."""
        return self.times(self.transposed_times(v))

    def times(self, weights: Array) -> Array:
        """``phi w`` for columns ``(D, C)`` or a vector ``(D,)``."""
        # Without an offset, the few columns are scaled in place of a copy of all features.
        if self.offset is None and self.power is not None:
            return product(self.phi, weights * self.power)
        return product(self.features, weights)

    def transposed_times(self, v: Array) -> Array:
        """``phiᵀ v`` for columns ``(N, C)`` or a vector ``(N,)``."""
        if self.offset is None and self.power is not None:
            return product(self.phi.T, v * self.power)
        return product(self.features.T, v)

    def top_eigh(self, k: int) -> tuple[Array, Array]:
        """The ``k`` largest eigenvalues and their eigenvectors, from the singular vectors of the features."""
        u, values, _ = jnp.linalg.svd(self.features, full_matrices=False)
        return values[:k] ** 2, u[:, :k]

    def take(self, examples: Array) -> FeatureGram:
        """The kernel of some of the examples."""
        return replace(self, phi=self.phi[examples])

    def size_exponent(self) -> Array:
        """The exponent of the largest feature."""
        return exponent_of(self._largest())

    def divided(self, exponent: Array) -> FeatureGram:
        """The kernel of the features divided by ``2^exponent``, where they are used."""
        phi = self.phi.astype(wide(self.phi.dtype))
        power = power_of_2(-exponent, phi.dtype)
        offset = None if self.offset is None else self.offset.astype(phi.dtype) * power
        return FeatureGram(phi, offset, power if self.power is None else power * self.power)

    def by_entries(self) -> DenseGram:
        """The same kernel as a :class:`DenseGram` that holds its centred form too."""
        exponent = exponent_if_far(self._largest())
        near = self.divided(exponent)
        centered, mean = near.center(), column_mean(near.parts)
        matrix = centered.dense()
        # Since phi = centred + 1 meanᵀ, K follows from H K H at a cost of N² instead of another N² D.
        shift = product(centered.features, mean)
        entries = matrix + shift[:, None] + shift[None, :] + product(mean, mean)
        return DenseGram(entries, matrix, exponent=exponent)

    def _of_same_rank(self) -> Array:
        return self.features

    def _largest(self) -> Array:
        size = largest(self.phi.astype(wide(self.phi.dtype)))
        return size if self.power is None else size * self.power
