"""A kernel stored by its entries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from .._typing import wide
from ._gram import ShownGram
from ._powers import exponent_of, power_of_2, times_power_of_4
from ._products import diagonal, product

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class DenseGram(ShownGram):
    """A kernel stored by its entries.

    Attributes:
        matrix: the kernel K, ``(N, N)``, divided by ``4^exponent``.
        centered: ``H K H``, divided by it too, if it is known already. One computed from centred features loses no
            digits.
        eigenvalues: the eigenvalues of ``matrix``, ascending, if they are known already.
        exponent: a whole number, for a kernel that leaves the range of its dtype; None means 0. Methods return what
            they say of K itself.
    """

    matrix: Float[Array, "N N"]
    centered: Float[Array, "N N"] | None = None
    eigenvalues: Float[Array, " N"] | None = None
    exponent: Int[Array, ""] | None = None

    @property
    def n(self) -> int:
        """Number of examples N."""
        return self.matrix.shape[-1]

    def dense(self) -> Float[Array, "N N"]:
        """The kernel itself."""
        return self._times(self.matrix)

    def diagonal(self) -> Float[Array, " N"]:
        """``K[i, i]``."""
        return self._times(diagonal(self.matrix))

    def center(self) -> DenseGram:
        """``H K H``, with the mean of rows and columns removed."""
        centered = self.centered
        if centered is None:
            # Taking the first example as the origin makes a constant kernel exactly zero, without rounding error.
            from_first = self.matrix - self.matrix[:1] - self.matrix[:, :1] + self.matrix[:1, :1]
            columns = from_first - from_first.mean(axis=0, keepdims=True)
            centered = columns - columns.mean(axis=1, keepdims=True)
        return DenseGram(centered, centered, exponent=self.exponent)

    def eigvalsh(self) -> Float[Array, " N"]:
        """The N eigenvalues, ascending."""
        return self._times(jnp.linalg.eigvalsh(self.matrix) if self.eigenvalues is None else self.eigenvalues)

    def singular_values(self) -> Float[Array, " N"]:
        """Square roots of the eigenvalues, largest first.

        An eigenvalue that is only rounding error counts as zero, because its square root would be large.
        """
        eigenvalues = replace(self, exponent=None).eigvalsh()
        noise = self.n * jnp.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
        above = ~(eigenvalues <= noise)  # Written this way, NaN counts as above the noise and stays NaN.
        values = jnp.where(above, jnp.sqrt(jnp.where(above, eigenvalues, 1)), 0)[::-1]
        return values if self.exponent is None else values * power_of_2(self.exponent, values.dtype)

    def matvec(self, v: Array) -> Array:
        """``K v``."""
        return self._times(product(self.matrix, v))

    def top_eigh(self, k: int) -> tuple[Array, Array]:
        """The ``k`` largest eigenvalues and their eigenvectors."""
        values, vectors = jnp.linalg.eigh(self.matrix)
        return self._times(values[::-1][:k]), vectors[:, ::-1][:, :k]

    def take(self, examples: Array) -> DenseGram:
        """The kernel of some of the examples."""
        return DenseGram(self.matrix[examples][:, examples], exponent=self.exponent)

    def size_exponent(self) -> Array:
        """Half of the exponent of the largest entry, which lies on the diagonal of a kernel."""
        size = jnp.abs(diagonal(self.matrix.astype(wide(self.matrix.dtype)))).max()
        exponent = exponent_of(size) >> 1  # A shift divides by two and rounds down.
        return exponent if self.exponent is None else exponent + self.exponent

    def divided(self, exponent: Array) -> DenseGram:
        """All entries divided by ``4^exponent``."""
        dtype = wide(self.matrix.dtype)
        by = -exponent if self.exponent is None else self.exponent - exponent
        gram = replace(self, exponent=None)
        divided: DenseGram = jax.tree.map(lambda array: times_power_of_4(array.astype(dtype), by), gram)
        return divided

    def _of_same_rank(self) -> Array:
        return self.matrix

    def _times(self, array: Array) -> Array:
        """An array that belongs to ``matrix``, as that of K."""
        return array if self.exponent is None else times_power_of_4(array, self.exponent)
