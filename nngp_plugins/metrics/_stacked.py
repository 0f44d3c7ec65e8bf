"""From the outputs of all layers to their Grams, stacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, custom_jvp, lax
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding

from .._typing import wide
from ._dense import DenseGram
from ._powers import exponent_if_far, largest, power_of_2, times_power_of_4
from ._products import diagonal, product
from ._shared import by_some_features, rows_of
from ._to_grams import features


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
    products = [product_from_first(y) for y in layers.values()]
    return grams_of_products(Product(*(jnp.stack(parts) for parts in zip(*products, strict=True))))


class Product(NamedTuple):
    """The product of the features of a layer, measured from the first example.

    Attributes:
        matrix: the product, ``(N, N)``, divided by ``4^exponent``.
        exponent: a whole number; 0 unless the product would leave the range of its dtype.
    """

    matrix: Array
    exponent: Array


def product_from_first(y: Array, rows: NamedSharding | None = None) -> Product:
    """The product of the features of an output, measured from the first example, for :func:`grams_of_products`.

    The product for several outputs side by side is the mean of theirs, if they have the same size; see :class:`OfStep`.

    Args:
        y: the output, ``(N, ...)``.
        rows: how several devices share its examples, within a compiled function: then no device gets all features.
            None if they do not share them, or share them over explicit axes, which the type of ``y`` tells.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> nngp.metrics.product_from_first(jnp.ones((4, 8))).matrix.shape
        (4, 4)
    """
    if isinstance(y, jax.core.Tracer):
        return by_some_features(_product, y, rows or rows_of(y))
    return _product(y)


def _product(y: Array) -> Product:
    product: Product = lax.platform_dependent(y, cpu=_scaled_if_needed, default=_scaled)
    return product


def _scaled(y: Array) -> Product:
    exponent = exponent_if_far(largest(features(y)))
    # Features of a very small output are denormal numbers, which may become zero.
    y = y.astype(wide(y.dtype))
    return Product(_from_first(features(y * power_of_2(-exponent, y.dtype))), exponent)


@custom_jvp
def _scaled_if_needed(y: Array) -> Product:
    """The product, whose diagonal says whether it must be computed again. This reads features once less.

    On accelerators, the host would have to wait for the choice.
    """
    return _chosen(y)


@_scaled_if_needed.defjvp
def _derivative(primals: Any, tangents: Any) -> Any:
    return jax.jvp(_scaled, primals, tangents)


@custom_vmap
def _chosen(y: Array) -> Product:
    # The features leave the range of their dtype in steps that need no pass over them. A loop has one product to
    # compile, where the two sides of a choice have two; nearly always it runs once.
    y = y.astype(wide(y.dtype))
    step = jnp.finfo(y.dtype).maxexp // 2
    bound, end = 2.0**step, 2 * step - 8

    def again(state: tuple[Product, Array]) -> tuple[Product, Array]:
        exponent = state[1]
        matrix = _from_first(features(y * power_of_2(-exponent, y.dtype)))
        size = diagonal(matrix).max()
        off = jnp.where(size < 1 / bound, -step, jnp.where(size >= bound, step, 0))
        other = jnp.clip(exponent + off, -end, end)
        return Product(matrix, exponent), jnp.where(jnp.abs(other) > jnp.abs(exponent), other, exponent)

    start = Product(jnp.zeros((len(y), len(y)), y.dtype), jnp.ones((), jnp.int32)), jnp.zeros((), jnp.int32)
    matrix, exponent = lax.while_loop(lambda state: state[0].exponent != state[1], again, start)[0]
    size = diagonal(matrix).max()
    return Product(matrix, jnp.where((size > 0) & (size < jnp.inf), exponent, 0))


@_chosen.def_vmap
def _one_by_one(layers: int, is_stacked: Any, y: Array) -> tuple[Product, Any]:
    # Choices side by side compute both sides.
    return lax.map(_chosen, y), Product(True, True)  # type: ignore[arg-type]


def _from_first(phi: Array) -> Array:
    # The first row stays as it is: row and column 0 of the product hold what K needs besides differences.
    others = jnp.arange(len(phi))[:, None] > 0
    from_first = phi - jnp.where(others, phi[:1], 0)
    return product(from_first, from_first.T)


def grams_of_products(stacked: Product) -> DenseGram:
    """The Grams of layers as one :class:`DenseGram` with centred forms, from what :func:`product_from_first` makes.

    Products in NumPy give Grams in NumPy, so that a thread on the host does not start programs of JAX.

    Args:
        stacked: the products of all layers, ``(L, N, N)``, and their exponents, ``(L,)``.

    Example:
        >>> import jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> products = jax.jit(jax.vmap(nngp.metrics.product_from_first))(jnp.ones((3, 4, 8)))
        >>> jax.jit(nngp.metrics.grams_of_products)(products).matrix.shape
        (3, 4, 4)
    """
    products = stacked.matrix
    xp = np if isinstance(products, np.ndarray) else jnp
    others = (xp.arange(products.shape[1]) > 0)[None]
    differences = xp.where(others[:, :, None] & others[:, None], products, 0)
    shift = xp.where(others, products[:, 0], 0)
    columns = differences - differences.mean(axis=1, keepdims=True)
    centered = columns - columns.mean(axis=2, keepdims=True)
    matrix = differences + shift[:, :, None] + shift[:, None, :] + products[:, :1, :1]
    return DenseGram(matrix, centered, exponent=stacked.exponent)


class OfStep:
    """What to make of each step of a scan over time, so that the mean over the steps is the result.

    Args:
        make: makes a :class:`Product`, or a :class:`DenseGram` by its entries, of the output ``(N, ...)`` of a step.
    """

    def __init__(self, make: Callable[[Array], Product | DenseGram]):
        self._make = make

    def __call__(self, name: str, y: Array) -> Product | DenseGram:
        """What is made of a step."""
        return self._make(y)

    @staticmethod
    def add(mean: Any, step: Any, count: int) -> Any:
        """The mean of the steps so far, with another one of ``count``.

        Args:
            mean: the mean so far; zeros at the start.
            step: what was made of a step, whose exponent may differ.
            count: the number of steps.
        """
        is_empty = ~jnp.any(mean.matrix, axis=(-2, -1))
        exponent = jnp.where(is_empty, step.exponent, jnp.maximum(mean.exponent, step.exponent))

        before, now = ((part.exponent - exponent)[..., None, None] for part in (mean, step))

        def sum_of(a: Array, b: Array) -> Array:
            if a is mean.exponent:
                return exponent
            return times_power_of_4(a, before) + times_power_of_4(b, now) / count

        return jax.tree.map(sum_of, mean, step)


def undivided(matrix: np.ndarray, exponent: Any) -> np.ndarray:
    """The kernels of Grams in NumPy, ``matrix 4^exponent``; float64 if that leaves the range of ``matrix``.

    Args:
        matrix: one kernel ``(N, N)`` or several ``(L, N, N)``.
        exponent: that of each, a scalar or ``(L,)``.

    Example:
        >>> import numpy as np, nngp_plugins as nngp
        >>> nngp.metrics.undivided(np.eye(2, dtype=np.float32), -100)[0].tolist()
        [6.223015277861142e-61, 0.0]
    """
    if not np.any(exponent):
        return matrix
    return np.ldexp(matrix.astype(np.float64), 2 * np.asarray(exponent)[..., None, None])


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
        >>> import jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> grams = jax.jit(nngp.metrics.stacked_grams)({"output": 2 * jnp.eye(4)})
        >>> nngp.metrics.with_eigenvalues(grams).eigenvalues.tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    from scipy.linalg import eigvalsh

    matrices = np.asarray(grams.matrix)
    values = np.full(matrices.shape[:2], np.nan, matrices.dtype)
    for i, matrix in enumerate(matrices):
        if np.isfinite(matrix).all():
            values[i] = eigvalsh(matrix, check_finite=False, driver="evd")
    return replace(grams, eigenvalues=jnp.asarray(values))
