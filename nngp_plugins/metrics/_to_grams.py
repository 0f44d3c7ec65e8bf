"""From the kernels that a user passes, or the outputs of a model, to Grams: one at a time, or all layers stacked."""

from __future__ import annotations

from collections.abc import Mapping
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
from ._products import product

if TYPE_CHECKING:
    from jaxtyping import Float


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


def stacked_grams(layers: Mapping[Any, Array]) -> DenseGram:
    """The Grams of all layers as one :class:`DenseGram` of shape ``(L, N, N)``, with centred forms.

    Each layer takes one matrix product, of features that are measured from the first example. Both K and H K H follow
    from it for all layers at once. A large offset that all examples share costs no digits, and XLA has little to
    compile.

    Args:
        layers: outputs ``(N, ...)`` by layer, all of the same N examples.

    Returns:
        ``matrix`` and ``centered`` of shape ``(L, N, N)``, in the order of the layers.

    Raises:
        TypeError: a complex output.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> layers = {"hidden": jnp.ones((4, 8)), "output": jnp.eye(4)}
        >>> nngp.metrics.stacked_grams(layers).matrix.shape
        (2, 4, 4)
    """
    return grams_of_products(jnp.stack([product_from_first(y) for y in layers.values()]))


def product_from_first(y: Array) -> Float[Array, "N N"]:
    """The product of the features of an output, measured from the first example, for :func:`grams_of_products`.

    The product for several outputs side by side is the mean of theirs, if they have the same size.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> nngp.metrics.product_from_first(jnp.ones((4, 8))).shape
        (4, 4)
    """
    phi = features(y)
    # The first row stays as it is: row and column 0 of the product hold what K needs besides differences.
    others = jnp.arange(len(phi))[:, None] > 0
    from_first = phi - jnp.where(others, phi[0], 0)
    return product(from_first, from_first.T)


def grams_of_products(stacked: Float[Array, "L N N"] | np.ndarray) -> DenseGram:
    """The Grams of layers as one :class:`DenseGram` with centred forms, from what :func:`product_from_first` makes.

    Products in NumPy give Grams in NumPy, so that a thread on the host does not start programs of JAX.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> products = nngp.metrics.product_from_first(jnp.ones((4, 8)))[None]
        >>> nngp.metrics.grams_of_products(products).matrix.shape
        (1, 4, 4)
    """
    xp = np if isinstance(stacked, np.ndarray) else jnp
    others = xp.arange(stacked.shape[1]) > 0
    differences = xp.where(others[:, None] & others, stacked, 0)
    shift = xp.where(others, stacked[:, 0], 0)
    columns = differences - differences.mean(axis=1, keepdims=True)
    centered = columns - columns.mean(axis=2, keepdims=True)
    matrix = differences + shift[:, :, None] + shift[:, None, :] + stacked[:, :1, :1]
    return DenseGram(matrix, centered)


def eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """The eigenvalues of one kernel, ascending, computed by NumPy on the host; nan for one with NaN or infinity.

    Several threads may do this side by side, because NumPy lets go of Python's lock. SciPy, which
    :func:`with_eigenvalues` uses, takes two thirds of the time in a single thread, but holds the lock.

    Args:
        matrix: the kernel, ``(N, N)``.

    Example:
        >>> import numpy as np, nngp_plugins as nngp
        >>> nngp.metrics.eigenvalues(2 * np.eye(3)).tolist()
        [2.0, 2.0, 2.0]
    """
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan, matrix.dtype)
    values: np.ndarray = np.linalg.eigvalsh(matrix)
    return values


def with_eigenvalues(grams: DenseGram) -> DenseGram:
    """The same stacked Grams with their eigenvalues, computed by SciPy on the host.

    JAX (0.10) computes eigenvectors along with eigenvalues, which takes three times as long.

    Args:
        grams: Grams ``(L, N, N)``, as :func:`stacked_grams` makes them.

    Returns:
        The Grams with ``eigenvalues`` of shape ``(L, N)``, ascending; nan for a layer with NaN or infinity.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> grams = nngp.metrics.stacked_grams({"output": 2 * jnp.eye(4)})
        >>> nngp.metrics.with_eigenvalues(grams).eigenvalues.tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    from scipy.linalg import eigvalsh

    matrices = np.asarray(grams.matrix)
    values = np.full(matrices.shape[:2], np.nan, matrices.dtype)
    for i, matrix in enumerate(matrices):
        if np.isfinite(matrix).all():
            values[i] = eigvalsh(matrix, check_finite=False, driver="evd")
    return DenseGram(grams.matrix, grams.centered, jnp.asarray(values))


def as_gram(kernel: Gram | Array) -> Gram:
    """Wraps an ``(N, N)`` array as a Gram, and returns a Gram as it is.

    Raises:
        ValueError: the array is not square; features are passed as a :class:`FeatureGram`.
    """
    if isinstance(kernel, Gram):
        gram: Gram = jax.tree.map(_replicated, kernel)
        return gram
    matrix = _replicated(jnp.asarray(kernel))
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


def rounding(a: Gram) -> Float[Array, ""]:
    """The largest trace that rounding can leave in ``a.center()`` when all examples are the same."""
    eps = jnp.finfo(a.diagonal().dtype).eps
    centered_by_entries = isinstance(a, DenseGram) and a.centered is None
    return a.trace() * (a.n * eps if centered_by_entries else 4 * eps**2)


def _replicated(y: Array) -> Array:
    """Copies an array to every device of its mesh if the mesh has explicit axes.

    JAX refuses much of linear algebra on arrays that are sharded over explicit axes.
    """
    mesh = jax.typeof(y).sharding.mesh
    explicit = AxisType.Explicit in mesh.axis_types
    return jax.sharding.reshard(y, NamedSharding(mesh, PartitionSpec())) if explicit else y
