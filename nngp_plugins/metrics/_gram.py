"""Gram objects: an ``(N, N)`` kernel as what can be asked of it, dense or by its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._require import require
from ._products import column_mean, diagonal, of_columns, product, row_squares, square_of_cross, square_of_gram

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package


@runtime_checkable
class Gram(Protocol):
    """The kernel of N examples: symmetric, positive semi-definite, ``(N, N)``; ``np.asarray`` gives its entries."""

    @property
    def n(self) -> int:
        """Number of examples N."""

    def dense(self) -> Array:
        """The kernel itself, ``(N, N)``."""

    def diagonal(self) -> Array:
        """``K[i, i]``, shape ``(N,)``."""

    def center(self) -> Gram:
        """``H K H`` with ``H = I - 11ᵀ/N``: the kernel of features with their mean over examples removed."""

    def eigvalsh(self) -> Array:
        """The ``min(N, D)`` eigenvalues that can differ from zero, ascending."""

    def singular_values(self) -> Array:
        """Singular values of the features, the square roots of the eigenvalues, largest first."""

    def matvec(self, v: Array) -> Array:
        """``K v`` for a vector ``(N,)`` or columns ``(N, C)``."""

    def top_eigh(self, k: int) -> tuple[Float[Array, " k"], Float[Array, "N k"]]:
        """The ``k`` largest eigenvalues, largest first, and their eigenvectors as columns."""

    def take(self, examples: Array) -> Gram:
        """The kernel of some examples, by their numbers."""

    def trace(self) -> Float[Array, ""]:
        """``tr K = Σ_i K_ii``."""
        return self.diagonal().sum()

    def inner(self, other: Gram) -> Float[Array, ""]:
        """Frobenius inner product ``⟨K, L⟩ = Σ_ij K_ij L_ij``."""
        return jnp.sum(self.dense() * other.dense())

    def frobenius(self) -> Float[Array, ""]:
        """Frobenius norm ``‖K‖ = sqrt⟨K, K⟩``."""
        return jnp.sqrt(self.inner(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.dense(), dtype)

    def as_scipy(self) -> Any:
        """The kernel as a ``scipy.sparse.linalg.LinearOperator``."""
        from scipy.sparse.linalg import LinearOperator  # here, for it takes long to import

        def times(v: Any) -> np.ndarray:
            return np.asarray(self.matvec(jnp.asarray(v, dtype)))

        dtype = self.diagonal().dtype
        return LinearOperator((self.n, self.n), matvec=times, rmatvec=times, matmat=times, rmatmat=times, dtype=dtype)

    def as_lineax(self) -> Any:
        """The kernel as a positive semi-definite ``lineax`` operator, for its solvers."""
        lx = require("lineax", extra="lineax")
        like = jax.ShapeDtypeStruct((self.n,), self.diagonal().dtype)
        return lx.FunctionLinearOperator(self.matvec, like, lx.positive_semidefinite_tag)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseGram(Gram):
    """A kernel by its entries.

    Attributes:
        matrix: the kernel K, ``(N, N)``.
        centered: ``H K H`` where it is known already, as from centred features, which loses no digits.
        eigenvalues: of K, ascending, where they are known already.
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
        # the kernel seen from the first example, which a constant kernel leaves at exactly zero
        seen = self.matrix - self.matrix[:1] - self.matrix[:, :1] + self.matrix[:1, :1]
        columns = seen - seen.mean(axis=0, keepdims=True)
        centered = columns - columns.mean(axis=1, keepdims=True)
        return DenseGram(centered, centered)

    def eigvalsh(self) -> Float[Array, " N"]:
        """The N eigenvalues, ascending."""
        return jnp.linalg.eigvalsh(self.matrix) if self.eigenvalues is None else self.eigenvalues

    def singular_values(self) -> Float[Array, " N"]:
        """Square roots of the eigenvalues that are more than rounding error, whose root would be large."""
        eigenvalues = self.eigvalsh()
        noise = self.n * jnp.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
        above = ~(eigenvalues <= noise)  # NaN included
        return jnp.where(above, jnp.sqrt(jnp.where(above, eigenvalues, 1)), 0)[::-1]

    def matvec(self, v: Array) -> Array:
        """``K v``."""
        return product(self.matrix, v)

    def top_eigh(self, k: int) -> tuple[Array, Array]:
        """The ``k`` largest eigenvalues and their eigenvectors."""
        values, vectors = jnp.linalg.eigh(self.matrix)
        return values[::-1][:k], vectors[:, ::-1][:, :k]

    def take(self, examples: Array) -> DenseGram:
        """The kernel of some examples."""
        return DenseGram(self.matrix[examples][:, examples])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeatureGram(Gram):
    """A kernel by its features, ``K = phi phiᵀ``; ``(N, N)`` is not formed where the features are narrower.

    Attributes:
        phi: features, ``(N, D)``.
        offset: ``(D,)``, to be subtracted from each row of ``phi``, as after :meth:`center`: large features are then
            never copied. None for none.
    """

    phi: Float[Array, "N D"]
    offset: Float[Array, " D"] | None = None

    @property
    def n(self) -> int:
        """Number of examples N."""
        return self.phi.shape[-2]

    @property
    def features(self) -> Float[Array, "N D"]:
        """The features, ``phi`` less the offset."""
        return self.phi if self.offset is None else self.phi - self.offset

    @property
    def narrow(self) -> bool:
        """Whether ``D < N``, so that ``(D, D)`` is the cheaper side."""
        return self.phi.shape[-1] < self.n

    def dense(self) -> Float[Array, "N N"]:
        """``phi phiᵀ``."""
        return product(self.features, self.features.T)

    def diagonal(self) -> Float[Array, " N"]:
        """``‖phi[i]‖²``."""
        return row_squares(self.phi, self.offset)

    def center(self) -> FeatureGram:
        """The kernel of ``phi`` less its mean over examples, where digits survive that ``H K H`` would lose."""
        mean = column_mean(self.phi, self.offset)
        return FeatureGram(self.phi, mean if self.offset is None else self.offset + mean)

    def eigvalsh(self) -> Array:
        """The ``min(N, D)`` eigenvalues that can differ from zero, ascending."""
        return jnp.linalg.eigvalsh(of_columns(self.phi, self.offset) if self.narrow else self.dense())

    def singular_values(self) -> Array:
        """The ``min(N, D)`` singular values of the features, largest first."""
        return jnp.linalg.svd(self.features, compute_uv=False)

    def inner(self, other: Gram) -> Float[Array, ""]:
        """``⟨K, L⟩``, for two sets of features as ``‖phi_aᵀ phi_b‖²`` where that is the cheaper side."""
        if isinstance(other, FeatureGram) and self.phi.shape[1] * other.phi.shape[1] < self.n**2:
            if other is self:
                return square_of_gram(self.phi, self.offset)
            return square_of_cross(self.phi, self.offset, other.phi, other.offset)
        return jnp.sum(self.dense() * other.dense())

    def matvec(self, v: Array) -> Array:
        """``phi (phiᵀ v)``."""
        return product(self.features, product(self.features.T, v))

    def top_eigh(self, k: int) -> tuple[Array, Array]:
        """The ``k`` largest eigenvalues and their eigenvectors, from the singular vectors of the features."""
        u, values, _ = jnp.linalg.svd(self.features, full_matrices=False)
        return values[:k] ** 2, u[:, :k]

    def take(self, examples: Array) -> FeatureGram:
        """The kernel of some examples."""
        return FeatureGram(self.phi[examples], self.offset)

    def by_entries(self) -> DenseGram:
        """The same kernel as a :class:`DenseGram` that has its centred form at hand."""
        centered, mean = self.center(), column_mean(self.phi, self.offset)
        matrix = centered.dense()
        # K from H K H costs N² instead of another N² D: phi = centred + 1 meanᵀ
        shift = product(centered.features, mean)
        return DenseGram(matrix + shift[:, None] + shift[None, :] + mean @ mean, matrix)


def rounding(a: Gram) -> Float[Array, ""]:
    """What rounding may leave of the trace of ``a.center()`` where all examples are the same."""
    eps = jnp.finfo(a.diagonal().dtype).eps
    entries = isinstance(a, DenseGram) and a.centered is None
    return a.trace() * (a.n * eps if entries else 4 * eps**2)


def as_gram(kernel: Gram | Array) -> Gram:
    """Wraps an ``(N, N)`` array; Grams pass through.

    Raises:
        ValueError: an array that is not square; features go to :class:`FeatureGram`.
    """
    if isinstance(kernel, Gram):
        return jax.tree.map(_replicated, kernel)
    matrix = _replicated(jnp.asarray(kernel))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"a kernel has shape (N, N), got {matrix.shape}; wrap features (N, D) as nngp.metrics.FeatureGram(phi), "
            "and make layers (N, N) with trace_axes=nngp.all_but_batch."
        )
    return DenseGram(matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32)))


def as_gram_pair(a: Gram | Array, b: Gram | Array, *, at_least: int = 1) -> tuple[Gram, Gram]:
    """Two Grams on the same examples.

    Raises:
        ValueError: they have different numbers of examples, or too few.
    """
    a, b = as_gram(a), as_gram(b)
    if a.n != b.n:
        raise ValueError(f"both kernels must be on the same examples, got N={a.n} and N={b.n}.")
    if a.n < at_least:
        raise ValueError(f"this metric needs N >= {at_least} examples, got N={a.n}.")
    return a, b


def features(y: Array) -> Float[Array, "N D"]:
    """Features ``phi`` of an output ``(N, ...)``: flattened and divided by ``sqrt(D)``, so that ``K = phi phiᵀ``.

    float16, bfloat16 and integer outputs become float32.

    Raises:
        TypeError: a complex output.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> nngp.metrics.features(jnp.ones((4, 8, 8, 3))).shape
        (4, 192)
    """
    if jnp.issubdtype(y.dtype, jnp.complexfloating):
        raise TypeError(f"metrics are defined for real features, got {y.dtype}; pass the real and imaginary parts.")
    flat = _replicated(y).reshape(y.shape[0], -1)
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    return flat / jnp.sqrt(jnp.asarray(flat.shape[1], flat.dtype))


def _replicated(y: Array) -> Array:
    """The same on every device of a mesh with explicit axes, which refuses much of the algebra on what is sharded."""
    mesh = jax.typeof(y).sharding.mesh
    explicit = AxisType.Explicit in mesh.axis_types
    return jax.sharding.reshard(y, NamedSharding(mesh, PartitionSpec())) if explicit else y
