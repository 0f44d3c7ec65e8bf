"""From the kernels that a user passes, or the output of a model, to a Gram."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._meshes import automatic, on_mesh
from .._typing import wide
from ._dense import DenseGram
from ._features import FeatureGram
from ._gram import Gram
from ._products import squares
from ._shared import by_some_features, rows_of
from ._streamed import StreamedGram, is_streamed, streamed_pair, summed_pair
from ._streamed_pair import on_few_examples
from ._summed import SummedGram, dots_of

if TYPE_CHECKING:
    from jaxtyping import Float


one_program = partial(jax.jit, inline=True)
"""Makes an eager call of a metric one dispatch, within which JAX's strict modes allow constants.

Inlined, the call shares work with the other metrics of a program."""


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
    flat = _automatic(y).reshape(y.shape[0], -1)
    flat = flat.astype(wide(flat.dtype))
    return flat / jnp.sqrt(jnp.asarray(flat.shape[1], flat.dtype))


def gram_of(y: Array) -> FeatureGram | DenseGram:
    """The Gram of one output ``(N, ...)`` in its cheaper form.

    Args:
        y: an output with N examples along axis 0; the kernel is averaged over all other axes.

    Returns:
        A :class:`FeatureGram` if the output has ``D < N`` features; no ``(N, N)`` matrix is ever formed for it.
        Otherwise a :class:`DenseGram` that holds its centred form too.

    Raises:
        TypeError: a complex output.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> type(nngp.metrics.gram_of(jnp.ones((8, 3)))).__name__, type(nngp.metrics.gram_of(jnp.ones((3, 8)))).__name__
        ('FeatureGram', 'DenseGram')
    """
    if math.prod(y.shape[1:]) < y.shape[0]:
        return FeatureGram(features(y))
    rows = rows_of(y)
    if rows is None or isinstance(y, jax.core.Tracer):
        return by_some_features(_by_entries, y, rows)
    y = _automatic(y)
    return _shared_by_entries(y, rows_of(y))


def _by_entries(y: Array) -> DenseGram:
    return FeatureGram(features(y)).by_entries()


@partial(jax.jit, static_argnums=1)
def _shared_by_entries(y: Array, rows: NamedSharding) -> DenseGram:
    return by_some_features(_by_entries, y, rows)


def with_derivative_of(smooth: Callable[..., Array]) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Gives a function the derivative of a simpler formula for the same number.

    QR has no derivative if a unit is dead, which makes a column of zeros.
    """

    def wrap(function: Callable[..., Array]) -> Callable[..., Array]:
        accurate = jax.custom_jvp(function)

        @accurate.defjvp
        def jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
            return accurate(*primals), jax.jvp(smooth, primals, tangents)[1]

        return accurate

    return wrap


def as_gram(kernel: Gram | Array, *, eigenvalues: bool = False) -> Gram:
    """Wraps an ``(N, N)`` array as a Gram, and returns a Gram as it is, or the sums of one that is read in blocks.

    Args:
        kernel: what the user passed.
        eigenvalues: whether the caller asks for eigenvalues, which are worked out once for all from sums.

    Raises:
        ValueError: the array is not square; features are passed as a :class:`FeatureGram`.
    """
    if isinstance(kernel, StreamedGram):
        return kernel.summed(eigenvalues=eigenvalues)
    if isinstance(kernel, Gram):
        gram: Gram = jax.tree.map(on_device, kernel)
        return gram
    matrix = on_device(kernel)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"a kernel has shape (N, N), got {matrix.shape}; wrap features (N, D) as nngp.metrics.FeatureGram(phi), "
            "and make layers (N, N) with trace_axes=nngp.all_but_batch."
        )
    return DenseGram(matrix.astype(wide(matrix.dtype)))


def as_gram_pair(a: Gram | Array, b: Gram | Array, *, at_least: int = 1, turned: bool = False) -> tuple[Gram, Gram]:
    """Two Grams on the same examples.

    Args:
        a: what the user passed.
        b: the same.
        at_least: the examples that the metric needs.
        turned: whether the metric stays the same if an orthogonal matrix turns the examples of both kernels. Features
            that are read block by block then become features of few examples, and sums otherwise.

    Raises:
        ValueError: they have different numbers of examples, or fewer than ``at_least``.
    """
    a, b = streamed_pair(a, b) if is_streamed(a, b) else (as_gram(a), as_gram(b))
    if a.n != b.n:
        raise ValueError(f"both kernels must be on the same examples, got N={a.n} and N={b.n}.")
    if a.n < at_least:
        raise ValueError(f"this metric needs N >= {at_least} examples, got N={a.n}.")
    if isinstance(a, StreamedGram) and isinstance(b, StreamedGram):
        return on_few_examples(a, b) if turned else summed_pair(a, b)
    return a, b


def in_common_units(a: Gram, b: Gram) -> tuple[Gram, Gram, Array]:
    """Both kernels divided by ``4^e``, so that the entries of the larger one are about 1, and e."""
    exponent = jnp.maximum(a.size_exponent(), b.size_exponent())
    return a.divided(exponent), b.divided(exponent), exponent


def inner_products(a: Gram, b: Gram) -> tuple[list[Array], list[Array], list[Array]]:
    """``⟨K, K⟩``, ``⟨K, L⟩`` and ``⟨L, L⟩`` of two kernels, the same of their diagonals, and both traces.

    Features are read once for all.
    """
    if isinstance(a, SummedGram) and isinstance(b, SummedGram):
        return [a.inner(a), a.inner(b), b.inner(b)], dots_of(a, b), [a.trace(), b.trace()]
    if isinstance(a, FeatureGram) and isinstance(b, FeatureGram) and a.narrow and b.narrow:
        inners, (k, l) = squares((a.parts, b.parts), ((0, 0), (0, 1), (1, 1)))  # noqa: E741
    else:
        inners, (k, l) = [a.inner(a), a.inner(b), b.inner(b)], (a.diagonal(), b.diagonal())  # noqa: E741
    return inners, [jnp.sum(k * k), jnp.sum(k * l), jnp.sum(l * l)], [k.sum(), l.sum()]


def rounding(a: Gram) -> Float[Array, ""]:
    """The largest trace that rounding can leave in ``a.center()`` when all examples are the same."""
    eps = jnp.finfo(a.trace().dtype).eps
    centered_by_entries = isinstance(a, DenseGram) and a.centered is None
    return a.trace() * (a.n * eps if centered_by_entries else 4 * eps**2)


def on_device(y: Any) -> Array:
    """An array, or a number, for a program of JAX; one that lies in host memory is sent explicitly.

    A copy that starts by itself is what JAX's guard against transfers refuses.
    """
    return _automatic(y if isinstance(y, Array) else jax.device_put(np.asarray(y)))


def _automatic(y: Array) -> Array:
    """The same array on a mesh without explicit axes; within a compiled function, a copy on every device.

    JAX refuses much of linear algebra on arrays that are sharded over explicit axes.
    """
    mesh = jax.typeof(y).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return y
    if isinstance(y, jax.core.Tracer):
        return jax.sharding.reshard(y, NamedSharding(mesh, PartitionSpec()))
    return on_mesh(y, automatic(y.sharding.mesh))  # type: ignore[attr-defined]
