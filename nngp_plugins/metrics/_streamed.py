"""A kernel by features that are read block by block, from a memmap or from the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._require import require
from .._typing import as_jax_takes_it
from ._blocks import Blocks, FeatureBlocks
from ._features import FeatureGram
from ._gram import Gram
from ._summed import SummedGram, refuse_dense
from ._sums import KeptSums, Moments, Vector, exponent_of_size, moments

if TYPE_CHECKING:
    from jaxtyping import Float


R = TypeVar("R")


class StreamedGram(Gram):
    """A kernel ``K = phi phiᵀ`` by features that are read block by block, and never held together.

    One pass over the features makes the sums ``(D, D)`` that most metrics need; they are made once and kept. Products
    of a block are computed in float32, and are added up in float64 on the host; :func:`kernel_distance` and
    :func:`relative_change` multiply in float64, too.

    Args:
        phi: features, ``(N, D)``: anything with ``shape``, ``dtype`` and slicing, such as a memmap or what a
            :class:`FeatureStore` holds. If it has ``block_rows`` too, these many rows are read together, or a few
            times as many. A thread for each core works on a block of its own. They read NumPy arrays and stores at
            once, and other arrays in turn, unless these have ``by_threads`` and it is true.

    Attributes:
        phi: the features.
        centered: whether their mean is to be taken off.

    Example:
        >>> import numpy as np, nngp_plugins as nngp
        >>> phi = np.random.default_rng(0).standard_normal((1000, 4))
        >>> round(float(nngp.metrics.participation_ratio(nngp.metrics.StreamedGram(phi))), 1)
        4.0
    """

    phi: FeatureBlocks
    centered: bool

    def __init__(self, phi: FeatureBlocks, *, centered: bool = False, memory: KeptSums | None = None):
        if len(phi.shape) != 2 or not all(phi.shape):
            raise ValueError(f"features have shape (N, D), got {tuple(phi.shape)}.")
        self.phi, self.centered = phi, centered
        self._memory = memory or KeptSums()

    @property
    def n(self) -> int:
        """Number of examples N."""
        return int(self.phi.shape[0])

    @property
    def product_dtype(self) -> Any:
        """The dtype of the products of a block."""
        return np.float64 if np.dtype(self.phi.dtype) == np.float64 else np.float32

    @property
    def dtype(self) -> Any:
        """The dtype of what is made of the products."""
        return as_jax_takes_it(np.dtype(self.product_dtype))

    @property
    def moments(self) -> Moments:
        """The sums over all examples; they are made at the first use."""
        if self._memory.own is None:
            self._memory.own = moments([self.phi], [(0, 0)], self.product_dtype)[0, 0]
        return self._memory.own

    @property
    def mean(self) -> Vector:
        """The mean of the features; zeros if it is taken off."""
        mean = self.moments.means[0]
        return np.zeros_like(mean) if self.centered else mean

    def moments_with(self, other: StreamedGram) -> Moments:
        """The sums of both features over all examples, with those of each one, if they are missing, by one pass."""
        if other.phi is self.phi:
            return self.moments
        memory = self._memory
        if memory.both is None or not _is_same(memory.other, other.phi):
            missing = [(k, k) for k, gram in enumerate((self, other)) if gram._memory.own is None]
            dtype = max(self.product_dtype, other.product_dtype, key=lambda dtype: np.dtype(dtype).itemsize)
            found = moments([self.phi, other.phi], [(0, 1), *missing], dtype)
            memory.other, memory.both = other.phi, found[0, 1]
            for k, _ in missing:
                (self, other)[k]._memory.own = found[k, k]
        return memory.both

    def second_moments(self) -> Vector:
        """``phiᵀ phi``, in float64."""
        own = self.moments
        return own.covariance + own.n * np.outer(self.mean, self.mean)

    def summed(self, *, eigenvalues: bool = False, beside: StreamedGram | None = None) -> SummedGram:
        """The sums, as programs of JAX take them.

        Args:
            eigenvalues: whether to work the eigenvalues out, in float64.
            beside: the Gram that this one is compared with.
        """
        both = None if beside is None else self.moments_with(beside)
        own, exponent = self.moments, self._exponent()
        unit, dtype = 2.0**-exponent, self.dtype
        values = cross = cross_dot = None
        if eigenvalues:
            values = jnp.asarray(self._eigenvalues() * unit**2, dtype)
        if both is not None and beside is not None:
            other = 2.0 ** -beside._exponent()
            cross = jnp.asarray(both.covariance * unit * other, dtype)
            cross_dot = jnp.asarray(both.dot * (unit * other) ** 2, dtype)
        covariance, mean = jnp.asarray(own.covariance * unit**2, dtype), jnp.asarray(self.mean * unit, dtype)
        dot = jnp.asarray(own.dot * unit**4, dtype)
        return SummedGram(covariance, mean, dot, jnp.int32(exponent), self.n, values, cross, cross_dot)

    def _exponent(self) -> int:
        """A whole number e, for which ``tr K / N 4^e`` is about 1; 0 for a zero or an infinite kernel."""
        return exponent_of_size(float(np.trace(self.second_moments())) / self.n)

    def _eigenvalues(self) -> Vector:
        if self.centered not in self._memory.eigenvalues:
            matrix = self.second_moments()
            finite = np.isfinite(matrix).all()
            values = np.linalg.eigvalsh(matrix) if finite else np.full(len(matrix), np.nan)
            self._memory.eigenvalues[self.centered] = values.astype(np.float64)
        return self._memory.eigenvalues[self.centered]

    def dense(self) -> NoReturn:
        """Refuses to form ``(N, N)`` entries.

        Raises:
            ValueError: says how large they are, and what to do.
        """
        refuse_dense(self.n)

    def diagonal(self) -> Float[Array, " N"]:
        """``‖phi[i]‖²``."""
        squares = self.each(lambda _, rows: np.einsum("ij,ij->i", rows, rows))
        return jnp.asarray(np.concatenate(list(squares)), self.dtype)

    def trace(self) -> Float[Array, ""]:
        """``‖phi‖²``."""
        return self.summed().trace()

    def center(self) -> StreamedGram:
        """The kernel of ``phi`` minus its mean over examples; it shares the sums."""
        return StreamedGram(self.phi, centered=True, memory=self._memory)

    def eigvalsh(self) -> Array:
        """The ``min(N, D)`` eigenvalues that can differ from zero, ascending."""
        return self.summed(eigenvalues=True).eigvalsh()

    def singular_values(self) -> Array:
        """Square roots of the eigenvalues, largest first; an eigenvalue that is only rounding error counts as zero."""
        return self.summed(eigenvalues=True).singular_values()

    def inner(self, other: Gram) -> Float[Array, ""]:
        """``⟨K, L⟩ = ‖phiᵀ psi‖²``."""
        a, b = summed_pair(self, other)
        return a.inner(b)

    def frobenius(self) -> Float[Array, ""]:
        """``‖K‖ = ‖phiᵀ phi‖``."""
        return self.summed().frobenius()

    def matvec(self, v: Array) -> Array:
        """``phi (phiᵀ v)``, from two passes."""
        return jnp.asarray(self._times_columns(v))

    def _times_columns(self, v: Any) -> np.ndarray:
        columns = np.asarray(v)
        weights = np.zeros((self.phi.shape[1], *columns.shape[1:]))
        for part in self.each(lambda start, rows: rows.T @ columns[start : start + len(rows)]):
            weights += part
        return self.times(weights).astype(self.dtype, copy=False)

    def times(self, weights: np.ndarray) -> np.ndarray:
        """``phi w`` for columns ``(D, C)`` or a vector ``(D,)``, from one pass."""
        weights = weights.astype(self.product_dtype)
        return np.concatenate(list(self.each(lambda _, rows: rows @ weights)))

    def top_eigh(self, k: int) -> tuple[Array, Array]:
        """The ``k`` largest eigenvalues, and their eigenvectors ``(N, k)``, from another pass."""
        values, vectors = np.linalg.eigh(self.second_moments())
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
        roots = np.sqrt(np.where(values > 0, values, np.inf))
        return jnp.asarray(values, self.dtype), jnp.asarray(self.times(vectors / roots), self.dtype)

    def take(self, examples: Array) -> FeatureGram:
        """The kernel of some of the examples, whose features are held."""
        offset = jnp.asarray(self.moments.means[0], self.dtype) if self.centered else None
        return FeatureGram(jnp.asarray(self.phi[np.asarray(examples)], self.dtype), offset)  # type: ignore[index]

    def size_exponent(self) -> Array:
        """Half of the exponent of the mean of the diagonal."""
        return jnp.int32(self._exponent())

    def divided(self, exponent: Array) -> SummedGram:
        """The sums in other units."""
        return self.summed().divided(exponent)

    def each(self, work: Callable[[int, np.ndarray], R]) -> Iterator[R]:
        """What the work gives for each block of features and the number of its first example, in order.

        Several threads work at once. The features are in the dtype of the products, without their mean if it is to be
        taken off.
        """
        offset = self.moments.means[0].astype(self.product_dtype) if self.centered else None

        def run(start: int, block: list[np.ndarray]) -> R:
            rows = block[0].astype(self.product_dtype, copy=False)
            return work(start, rows if offset is None else rows - offset)

        return Blocks([self.phi]).each(run)

    def as_lineax(self) -> Any:
        """The kernel as an operator of lineax. The program that solves with it calls back to read the features."""
        lx = require("lineax", extra="lineax")
        like = jax.ShapeDtypeStruct((self.n,), self.dtype)

        def times(v: Array) -> Array:
            return jax.pure_callback(self._times_columns, like, v, vmap_method="sequential")

        return lx.FunctionLinearOperator(times, like, lx.positive_semidefinite_tag)

    def _entry_dtype(self) -> Any:
        return self.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        refuse_dense(self.n)

    def __repr__(self) -> str:
        centered = ", centered=True" if self.centered else ""
        return f"StreamedGram({self.phi!r}{centered})"


def _is_same(a: Any, b: Any) -> bool:
    """Whether two arrays are one, or hold the same numbers in memory, such as targets that are made for each metric."""
    return a is b or (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b))


def is_streamed(*grams: Any) -> bool:
    """Whether one of these is read block by block."""
    return any(isinstance(gram, StreamedGram) for gram in grams)


def as_streamed(gram: Any) -> StreamedGram:
    """A Gram by features as one that is read block by block.

    Raises:
        ValueError: it is held by its entries.
    """
    if isinstance(gram, StreamedGram):
        return gram
    if isinstance(gram, FeatureGram):
        return StreamedGram(np.asarray(gram.features))
    raise ValueError(
        "features that are read block by block are compared with other features only; pass a StreamedGram or a "
        "FeatureGram in place of the kernel (N, N)."
    )


def streamed_pair(a: Any, b: Any) -> tuple[StreamedGram, StreamedGram]:
    """Two Grams by features, read block by block.

    Raises:
        ValueError: different N, or a kernel that is held by its entries.
    """
    a, b = as_streamed(a), as_streamed(b)
    if a.n != b.n:
        raise ValueError(f"both kernels must be on the same examples, got N={a.n} and N={b.n}.")
    return a, b


def summed_pair(a: Any, b: Any) -> tuple[SummedGram, SummedGram]:
    """The sums of two Grams by features on the same examples, with those of their products."""
    a, b = streamed_pair(a, b)
    return a.summed(beside=b), b.summed()
