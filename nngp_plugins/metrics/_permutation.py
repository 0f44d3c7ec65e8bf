"""Whether two kernels are more alike than chance would make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from ._dense import DenseGram
from ._distances import distance_correlation, mutual_knn, neighbours, of_distances, of_pairs, rsa
from ._features import FeatureGram
from ._gram import Gram
from ._gulp import gulp, predictions
from ._products import product
from ._similarity import cka
from ._to_grams import as_gram, one_program

if TYPE_CHECKING:
    from jaxtyping import Float

# To move an entry of a kernel takes as long as this many products of features.
PRODUCTS = 128
Layers = Mapping[str, Gram | Array] | Sequence[Gram | Array]
Options = tuple[tuple[str, Any], ...]

COMPARED: dict[Callable[..., Array], Callable[..., Any]] = {
    cka: lambda gram, debiased=True: gram.normalised()[0].center(),
    distance_correlation: lambda gram, debiased=True: of_distances(gram),
    rsa: of_pairs,
    mutual_knn: lambda gram, **k: DenseGram(neighbours(gram, **k)),
    gulp: predictions,
}
"""What a metric compares by an inner product, which alone changes if examples are permuted."""


def permutation_test(
    layers_a: Layers, layers_b: Layers | None, n: int, key: Array, metric: Callable[..., Array] = cka
) -> Float[Array, "A B"]:
    """The p-value of a metric for each pair of layers, under the hypothesis that the layers are independent.

    The examples of the second model are permuted n times. The p-value is ``(1 + #{permuted layers that are at least as
    alike}) / (1 + n)``. If the examples are independent draws and the layers independent of each other, the chance of a
    p-value of at most α is at most α, whatever the distribution of the features. CKA and HSIC give the same p-value,
    because a permutation does not change what CKA divides by. That of :func:`rsa` is the Mantel test.

    Args:
        layers_a: Grams or kernels ``(N, N)`` by layer, as a dict or a sequence.
        layers_b: the same, on the same examples; None for ``layers_a``.
        n: number of permutations. The smallest p-value is ``1 / (1 + n)``.
        key: a key of ``jax.random``. All pairs of layers see the same permutations.
        metric: :func:`cka`, :func:`distance_correlation`, :func:`rsa`, :func:`mutual_knn` or :func:`gulp`, or
            ``functools.partial`` of one, such as ``partial(rsa, ranks=False)``.

    Returns:
        ``(A, B)``, rows and columns in the order of the layers; nan where the metric is nan.

    Raises:
        ValueError: no layer, different N, N too small, n < 1, or another metric.

    Source: Gretton et al., "A Kernel Statistical Test of Independence", NeurIPS 2007, section 3; the 1 in the p-value:
    Phipson & Smyth, "Permutation P-values Should Never Be Zero", 2010, eq. 2.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> a, b = jax.random.normal(jax.random.key(0), (2, 50, 10))
        >>> layers = [nngp.metrics.FeatureGram(phi) for phi in (a, a + b, b)]
        >>> print(nngp.metrics.permutation_test(layers[:1], layers, 99, jax.random.key(1)))
        [[0.01 0.01 0.56]]
    """
    function, options, least = _options(metric)
    a, b = (
        [as_gram(gram) for gram in (layers.values() if isinstance(layers, Mapping) else layers)]
        for layers in (layers_a, layers_a if layers_b is None else layers_b)
    )
    sizes = {gram.n for gram in (*a, *b)}
    if not a or not b or len(sizes) > 1 or min(sizes) < least or n < 1:
        raise ValueError(
            f"permutation_test takes layers on the same N >= {least} examples and n >= 1, got {len(a)} and {len(b)} "
            f"layers, N={sorted(sizes)} and n={n}."
        )
    widths = [[g.phi.shape[1] if isinstance(g, FeatureGram) else g.n for g in grams] for grams in (a, b)]
    by_features = function in (cka, gulp) and all(isinstance(g, FeatureGram) and g.narrow for g in (*a, *b))
    by_features &= sum(widths[0]) * sum(widths[1]) <= PRODUCTS * a[0].n * len(b)
    return (_by_features if by_features else _by_entries)(a, b, jax.random.split(key, n), function, options)


def _options(metric: Callable[..., Array]) -> tuple[Callable[..., Array], Options, int]:
    """The function of a metric, its options, and the least number of examples."""
    function, options = metric, {}
    if isinstance(metric, partial):
        function, options = metric.func, metric.keywords
    if function not in COMPARED or (isinstance(metric, partial) and metric.args):
        names = ", ".join(known.__name__ for known in COMPARED)
        raise ValueError(f"metric={metric!r} must be one of {names}, or functools.partial of one with its options.")
    least = {rsa: 3, mutual_knn: options.get("k", 10) + 1}.get(function, 4 if _debiased(function, options) else 2)
    return function, tuple(sorted(options.items())), least


def _debiased(function: Callable[..., Array], options: Any) -> bool:
    return function in (cka, distance_correlation) and dict(options).get("debiased", True)


@partial(one_program, static_argnames=("function", "options"))
def _by_entries(
    a: Sequence[Gram], b: Sequence[Gram], keys: Array, function: Callable[..., Array], options: Options
) -> Float[Array, "A B"]:
    """Of kernels ``(N, N)``: one product of all pairs for each permutation."""
    k, l = (jnp.stack([COMPARED[function](gram, **dict(options)).dense() for gram in grams]) for grams in (a, b))  # noqa: E741
    sizes = [jnp.linalg.norm(kernels, axis=(1, 2)) for kernels in (k, l)]
    count = k.shape[1]
    # The debiased HSIC is ⟨K, L⟩ with a smaller diagonal of K, up to terms that no permutation changes.
    smaller = k - count / (count - 2) * k * jnp.eye(count, dtype=k.dtype) if _debiased(function, options) else k
    flat = smaller.reshape(len(k), -1)
    # A permutation moves the entries of all kernels together.
    entries = l.reshape(len(l), -1).T

    def inner(order: Array) -> Array:
        return product(flat, entries[(order[:, None] * count + order[None]).ravel()])

    return _p_values(inner, keys, count, *sizes)


@partial(one_program, static_argnames=("function", "options"))
def _by_features(
    a: Sequence[FeatureGram], b: Sequence[FeatureGram], keys: Array, function: Callable[..., Array], options: Options
) -> Float[Array, "A B"]:
    """Of features ``(N, D)``: one product of all pairs for each permutation, and no ``(N, N)`` matrix."""
    a, b = ([COMPARED[function](gram, **dict(options)) for gram in grams] for grams in (a, b))
    sizes = [jnp.stack([gram.frobenius() for gram in grams]) for grams in (a, b)]
    phi, psi = (jnp.concatenate([gram.features for gram in grams], axis=1) for grams in (a, b))
    k, l = (jnp.stack([gram.diagonal() for gram in grams]) for grams in (a, b))  # noqa: E741
    # Which columns belong to which layer, (D, A) and (D, B).
    of_a, of_b = (jax.scipy.linalg.block_diag(*(jnp.ones((g.phi.shape[1], 1), phi.dtype) for g in x)) for x in (a, b))
    count = len(phi)

    def statistic(order: Array) -> Array:
        inner = product(product(of_a.T, product(phi.T, psi[order]) ** 2), of_b)
        return inner - count / (count - 2) * product(k, l[:, order].T) if _debiased(function, options) else inner

    return _p_values(statistic, keys, count, *sizes)


def _p_values(
    statistic: Callable[[Array], Array], keys: Array, count: int, size_a: Array, size_b: Array
) -> Float[Array, "A B"]:
    """The p-values of a statistic ``(A, B)`` of the order of the examples."""
    observed, size = statistic(jnp.arange(count)), size_a[:, None] * size_b[None]
    # Permutations that only swap equal examples give the same value up to rounding, and count as at least as large.
    least = observed - count * jnp.finfo(observed.dtype).eps * size
    larger = jax.lax.map(lambda key: statistic(jax.random.permutation(key, count)) >= least, keys)
    return jnp.where(size > 0, (1 + larger.sum(axis=0)) / (1 + len(keys)), jnp.nan)
