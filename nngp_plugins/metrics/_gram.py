"""The Gram protocol: what can be asked of the ``(N, N)`` kernel of N examples, whatever form it is stored in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._pictures import cosines, picture
from .._require import require
from .._show import facts_html
from .._trees import has_numbers

if TYPE_CHECKING:
    from jaxtyping import Float


@runtime_checkable
class Gram(Protocol):
    """The kernel of N examples: symmetric, positive semi-definite, ``(N, N)``; ``np.asarray`` gives its entries."""

    @property
    def n(self) -> int:
        """Number of examples N."""

    @property
    def terms(self) -> int:
        """How many rounding errors may add up in a sum."""
        return self.n

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
        """The kernel of some of the examples, chosen by index."""

    def size_exponent(self) -> Array:
        """A whole number e, as int32, for which the entries of ``K / 4^e`` are about 1; the least one for K = 0."""

    def divided(self, exponent: Array) -> Gram:
        """``K / 4^exponent``, without rounding."""

    def normalised(self) -> tuple[Gram, Array]:
        """``K / 4^e`` and ``e``, of :meth:`size_exponent`: squares of its entries stay in the range of the dtype."""
        exponent = self.size_exponent()
        return self.divided(exponent), exponent

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
        from scipy.sparse.linalg import LinearOperator

        def times(v: Any) -> np.ndarray:
            return np.asarray(self.matvec(jnp.asarray(v, dtype)))

        dtype = self._entry_dtype()
        return LinearOperator((self.n, self.n), matvec=times, rmatvec=times, matmat=times, rmatmat=times, dtype=dtype)

    def as_lineax(self) -> Any:
        """The kernel as a positive semi-definite ``lineax`` operator, for the solvers of lineax."""
        lx = require("lineax", extra="lineax")
        like = jax.ShapeDtypeStruct((self.n,), self._entry_dtype())
        return lx.FunctionLinearOperator(self.matvec, like, lx.positive_semidefinite_tag)

    def _entry_dtype(self) -> Any:
        return self.diagonal().dtype


_PIXELS, _DRAWN = 64, 4096
"""A picture of more examples would take gigabytes for a moment."""
_RANKED = 256
"""Singular values of no more than these take a few milliseconds; beyond, the rank is said as a bound."""


class ShownGram(Gram):
    """A Gram that says its shape, its trace and its rank, and that notebooks show as a picture."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value}".replace("=≤ ", "≤") for name, value in self._facts().items())
        return f"{type(self).__name__}({shown})"

    def _repr_html_(self) -> str:
        shown = None
        if _is_known(self) and self.n <= _DRAWN:
            with _whatever_jax_forbids():
                shown = picture(cosines(np.asarray(self.center().dense(), np.float64)), _PIXELS)
        return facts_html(type(self).__name__, self._facts(), shown)

    def _facts(self) -> dict[str, str]:
        """Its shape and, if its numbers are known, its trace and its rank."""
        leaves = jax.tree.leaves(self)
        facts = {"shape": str(tuple(getattr(leaves[0], "shape", ())))} if leaves else {}
        facts |= {"dtype": str(getattr(leaves[0], "dtype", "?"))} if leaves else {}
        if not _is_known(self):
            return facts
        with _whatever_jax_forbids():
            return facts | {"trace": f"{float(self.trace()):.4g}", "rank": self._rank(*leaves[0].shape)}

    def _rank(self, rows: int, columns: int) -> str:
        """The number of directions above rounding error, or the most that the shape allows."""
        most = min(rows, columns)
        if most > _RANKED or rows > _DRAWN or columns > _DRAWN:
            return f"≤ {most}"
        like = self._of_same_rank()
        # NumPy has no program to compile.
        array = np.asarray(like, np.float64)
        if not np.isfinite(array).all():
            return "nan"
        eps = float(jnp.finfo(like.dtype).eps) if jnp.issubdtype(like.dtype, jnp.inexact) else 0.0
        return str(np.linalg.matrix_rank(array, rtol=max(rows, columns) * eps))

    def _of_same_rank(self) -> Array:
        """The features, or the entries."""
        raise NotImplementedError


@contextmanager
def _whatever_jax_forbids() -> Iterator[None]:
    """Lets an object show itself where the user forbids transfers, or stops at the first nan."""
    with jax.transfer_guard("allow"), jax.debug_nans(False), jax.debug_infs(False):
        yield


def _is_known(gram: Gram) -> bool:
    """Whether it is one real kernel with numbers: not traced, not a stack of them, and not deleted by a donation."""
    leaves = jax.tree.leaves(gram)
    is_known = bool(leaves) and all(map(has_numbers, leaves)) and leaves[0].ndim == 2
    return is_known and not jnp.issubdtype(leaves[0].dtype, jnp.complexfloating)
