"""A kernel stored by its entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from ._gram import Gram
from ._products import diagonal, product

if TYPE_CHECKING:
    from jaxtyping import Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseGram(Gram):
    """A kernel stored by its entries.

    Attributes:
        matrix: the kernel K, ``(N, N)``.
        centered: ``H K H``, if it is known already. One computed from centred features loses no digits.
        eigenvalues: the eigenvalues of K, ascending, if they are known already.
    """

    matrix: Float[Array, "N N"]
    centered: Float[Array, "N N"] | None = None
    eigenvalues: Float[Array, " N"] | None = None

    @property
    def n(self) -> int:
        """Number of examples N."""
        return self.matrix.shape[-1]

    def dense(self) -> Float[Array, "N N"]:
        """The kernel itself."""
        return self.matrix

    def diagonal(self) -> Float[Array, " N"]:
        """``K[i, i]``."""
        return diagonal(self.matrix)

    def center(self) -> DenseGram:
        """``H K H``, with the mean of rows and columns removed."""
        if self.centered is not None:
            return DenseGram(self.centered, self.centered)
        # Taking the first example as the origin makes a constant kernel exactly zero, without rounding error.
        from_first = self.matrix - self.matrix[:1] - self.matrix[:, :1] + self.matrix[:1, :1]
        columns = from_first - from_first.mean(axis=0, keepdims=True)
        centered = columns - columns.mean(axis=1, keepdims=True)
        return DenseGram(centered, centered)

    def eigvalsh(self) -> Float[Array, " N"]:
        """The N eigenvalues, ascending."""
        return jnp.linalg.eigvalsh(self.matrix) if self.eigenvalues is None else self.eigenvalues

    def singular_values(self) -> Float[Array, " N"]:
        """Square roots of the eigenvalues, largest first.

        An eigenvalue that is only rounding error counts as zero, because its square root would be large.
        """
        eigenvalues = self.eigvalsh()
        noise = self.n * jnp.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
        above = ~(eigenvalues <= noise)  # Written this way, NaN counts as above the noise and stays NaN.
        return jnp.where(above, jnp.sqrt(jnp.where(above, eigenvalues, 1)), 0)[::-1]

    def matvec(self, v: Array) -> Array:
        """``K v``."""
        return product(self.matrix, v)

    def top_eigh(self, k: int) -> tuple[Array, Array]:
        """The ``k`` largest eigenvalues and their eigenvectors."""
        values, vectors = jnp.linalg.eigh(self.matrix)
        return values[::-1][:k], vectors[:, ::-1][:, :k]

    def take(self, examples: Array) -> DenseGram:
        """The kernel of some of the examples."""
        return DenseGram(self.matrix[examples][:, examples])
