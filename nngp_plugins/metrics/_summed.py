"""A kernel known by sums over the features of its examples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

import jax
import jax.numpy as jnp
from jax import Array

from .._tables import human
from ._gram import Gram
from ._powers import power_of_2, times_power_of_4
from ._products import diagonal

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SummedGram(Gram):
    """A kernel ``K = phi phiᵀ`` of which only sums over examples are held, ``(D, D)``.

    Attributes:
        covariance: ``Σ (phi_i − mean)(phi_i − mean)ᵀ``, divided by ``4^exponent``.
        mean: the mean of the features, divided by ``2^exponent``.
        dot: ``⟨k, k⟩`` of the diagonal of the centred kernel, divided by ``16^exponent``.
        exponent: a whole number, for which the entries of the kernel are about 1.
        examples: the number of examples N.
        eigenvalues: those of the kernel, ascending, divided by ``4^exponent``, if they are known already.
        cross: ``Σ (phi_i − mean)(psi_i − mean)ᵀ`` with the features of the kernel that this one is compared with, in
            the units of both.
        cross_dot: ``⟨k, l⟩`` of the diagonals of both centred kernels, in the units of both.
    """

    covariance: Float[Array, "D D"]
    mean: Float[Array, " D"]
    dot: Float[Array, ""]
    exponent: Int[Array, ""]
    examples: int = field(metadata={"static": True})
    eigenvalues: Float[Array, " D"] | None = None
    cross: Float[Array, "D E"] | None = None
    cross_dot: Float[Array, ""] | None = None

    @property
    def n(self) -> int:
        """Number of examples N."""
        return self.examples

    @property
    def terms(self) -> int:
        """How many rounding errors add up in an entry: those of one block, whose sums are exact."""
        return self.mean.shape[0]

    def dense(self) -> NoReturn:
        """Refuses to form ``(N, N)`` entries.

        Raises:
            ValueError: says how large they are, and what to do.
        """
        refuse_dense(self.n, self.mean.dtype.itemsize)

    def diagonal(self) -> NoReturn:
        """Refuses, as :meth:`dense`: a metric that asks for the diagonal asks for other entries, too."""
        refuse_dense(self.n, self.mean.dtype.itemsize)

    def matvec(self, v: Array) -> NoReturn:
        """Refuses, as :meth:`dense`, because the features are not held."""
        refuse_dense(self.n, self.mean.dtype.itemsize)

    def top_eigh(self, k: int) -> NoReturn:
        """Refuses, as :meth:`dense`."""
        refuse_dense(self.n, self.mean.dtype.itemsize)

    def take(self, examples: Array) -> NoReturn:
        """Refuses, as :meth:`dense`."""
        refuse_dense(self.n, self.mean.dtype.itemsize)

    def trace(self) -> Float[Array, ""]:
        """``tr K``."""
        return times_power_of_4(diagonal(self.covariance).sum() + self.n * jnp.sum(self.mean**2), self.exponent)

    def center(self) -> SummedGram:
        """The kernel of centred features."""
        return replace(self, mean=jnp.zeros_like(self.mean), eigenvalues=None)

    def eigvalsh(self) -> Array:
        """The ``min(N, D)`` eigenvalues that can differ from zero, ascending."""
        values = jnp.linalg.eigvalsh(self._moments()) if self.eigenvalues is None else self.eigenvalues
        return times_power_of_4(values[-min(self.n, len(values)) :], self.exponent)

    def singular_values(self) -> Array:
        """Square roots of the eigenvalues, largest first; an eigenvalue that is only rounding error counts as zero."""
        values = replace(self, exponent=jnp.zeros_like(self.exponent)).eigvalsh()
        above = ~(values <= len(self.mean) * jnp.finfo(values.dtype).eps * values[-1])
        roots = jnp.where(above, jnp.sqrt(jnp.where(above, values, 1)), 0)[::-1]
        return roots * power_of_2(self.exponent, roots.dtype)

    def inner(self, other: Gram) -> Float[Array, ""]:
        """``⟨K, L⟩ = ‖phiᵀ psi‖²``."""
        if other is self:
            product = self._moments()
        elif isinstance(other, SummedGram) and self.cross is not None:
            product = self.cross + self.n * jnp.outer(self.mean, other.mean)
        else:
            refuse_dense(self.n, self.mean.dtype.itemsize)
        square = times_power_of_4(jnp.sum(product**2), self.exponent)
        return times_power_of_4(square, other.exponent)

    def size_exponent(self) -> Array:
        """The exponent."""
        return self.exponent

    def divided(self, exponent: Array) -> SummedGram:
        """The same sums in other units."""
        return replace(self, exponent=self.exponent - exponent)

    def _moments(self) -> Array:
        """``phiᵀ phi`` in the units of the sums."""
        return self.covariance + self.n * jnp.outer(self.mean, self.mean)


def refuse_dense(n: int, itemsize: int = 4) -> NoReturn:
    """Refuses a kernel that is not to be formed.

    Raises:
        ValueError: says how large it is, and what to do.
    """
    raise ValueError(
        f"this needs the kernel of all N={n:,} examples, {human(n * n * itemsize, 'B')}, which features that are read "
        "block by block are there to avoid; take some of the examples: FeatureGram(jnp.asarray(features[:10_000]))."
    )


def dots_of(a: SummedGram, b: SummedGram) -> list[Array]:
    """``⟨k, k⟩``, ``⟨k, l⟩`` and ``⟨l, l⟩`` of the diagonals of two centred kernels."""
    if a.cross_dot is None:
        refuse_dense(a.n, a.mean.dtype.itemsize)
    dots = ((a.dot, a, a), (a.cross_dot, a, b), (b.dot, b, b))
    return [times_power_of_4(times_power_of_4(dot, one.exponent), other.exponent) for dot, one, other in dots]
