"""From the kernels that a user passes, or the output of a model, to a Gram."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._typing import wide
from ._dense import DenseGram
from ._features import FeatureGram
from ._gram import Gram

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
    flat = _replicated(y).reshape(y.shape[0], -1)
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
    by_features = FeatureGram(features(y))
    return by_features if by_features.narrow else by_features.by_entries()


def as_gram(kernel: Gram | Array) -> Gram:
    """Wraps an ``(N, N)`` array as a Gram, and returns a Gram as it is.

    Raises:
        ValueError: the array is not square; features are passed as a :class:`FeatureGram`.
    """
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


def as_gram_pair(a: Gram | Array, b: Gram | Array, *, at_least: int = 1) -> tuple[Gram, Gram]:
    """Two Grams on the same examples.

    Raises:
        ValueError: they have different numbers of examples, or fewer than ``at_least``.
    """
    a, b = as_gram(a), as_gram(b)
    if a.n != b.n:
        raise ValueError(f"both kernels must be on the same examples, got N={a.n} and N={b.n}.")
    if a.n < at_least:
        raise ValueError(f"this metric needs N >= {at_least} examples, got N={a.n}.")
    return a, b


def in_common_units(a: Gram, b: Gram) -> tuple[Gram, Gram, Array]:
    """Both kernels divided by ``4^e``, so that the entries of the larger one are about 1, and e."""
    exponent = jnp.maximum(a.size_exponent(), b.size_exponent())
    return a.divided(exponent), b.divided(exponent), exponent


def rounding(a: Gram) -> Float[Array, ""]:
    """The largest trace that rounding can leave in ``a.center()`` when all examples are the same."""
    eps = jnp.finfo(a.diagonal().dtype).eps
    centered_by_entries = isinstance(a, DenseGram) and a.centered is None
    return a.trace() * (a.n * eps if centered_by_entries else 4 * eps**2)


def on_device(y: Any) -> Array:
    """An array, or a number, for a program of JAX; one that lies in host memory is sent explicitly.

    A copy that starts by itself is what JAX's guard against transfers refuses.
    """
    return _replicated(y if isinstance(y, Array) else jax.device_put(np.asarray(y)))


def _replicated(y: Array) -> Array:
    """Copies an array to every device of its mesh if the mesh has explicit axes.

    JAX refuses much of linear algebra on arrays that are sharded over explicit axes.
    """
    mesh = jax.typeof(y).sharding.mesh
    explicit = AxisType.Explicit in mesh.axis_types
    return jax.sharding.reshard(y, NamedSharding(mesh, PartitionSpec())) if explicit else y
