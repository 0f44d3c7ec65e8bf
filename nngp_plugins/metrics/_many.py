"""Metrics over many layers, many batches, many resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._gram import Gram, as_gram
from ._products import product

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package

DENSE = 1024  # examples up to which kernels are formed where many are compared
Layers = Mapping[str, Gram | Array] | Sequence[Gram | Array]


def cka_matrix(layers_a: Layers, layers_b: Layers | None = None, debiased: bool = True) -> Float[Array, "A B"]:
    """CKA of every layer of one model with every layer of another, or of the same one at another step.

    Args:
        layers_a: Grams or kernels ``(N, N)`` by layer, as a dict or a sequence.
        layers_b: the same, on the same examples; None for ``layers_a``.
        debiased: as in :func:`cka`.

    Returns:
        ``(A, B)``, rows and columns in the order of the layers.

    Raises:
        ValueError: no layer, or different or too small N.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> x = jnp.arange(12.0).reshape(6, 2) ** 2
        >>> layers = {"a": x @ x.T, "b": jnp.diag(jnp.arange(6.0))}
        >>> nngp.metrics.cka_matrix(layers, debiased=False).shape
        (2, 2)
    """
    return minibatch_cka_matrix([(layers_a, layers_b)], debiased)


def minibatch_cka_matrix(batches: Iterable[tuple[Layers, Layers | None]], debiased: bool = True) -> Float[Array, "A B"]:
    """:func:`cka_matrix` of data that does not fit: HSIC is averaged over batches, then the ratio is taken.

    Debiased, the average is that of the whole in expectation, whatever the size of the batches.

    Args:
        batches: for each batch of examples its ``(layers_a, layers_b)``, as for :func:`cka_matrix`.
        debiased: as in :func:`cka`; the biased one depends on the batch size.

    Returns:
        ``(A, B)``.

    Raises:
        ValueError: no batch or no layer, different or too small N.

    Source: Nguyen, Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, eq. 2.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> phi = jax.random.normal(jax.random.key(0), (40, 5))
        >>> batches = (({"a": nngp.metrics.FeatureGram(phi[i : i + 10])}, None) for i in range(0, 40, 10))
        >>> nngp.metrics.minibatch_cka_matrix(batches).round(3).tolist()
        [[1.0]]
    """
    sums: Any = None
    for layers_a, layers_b in batches:
        a = _grams(layers_a)
        b = a if layers_b is None else _grams(layers_b)
        sizes = {gram.n for gram in (*a, *b)}
        least = 4 if debiased else 2
        if len(sizes) > 1 or min(sizes) < least:
            raise ValueError(
                f"all layers of a batch must be on the same N >= {least} examples, got N={sorted(sizes)}; drop a "
                "smaller last batch."
            )
        new = _hsics(a, b, debiased)
        if sums is not None and sums[0].shape != new[0].shape:
            raise ValueError(f"a batch holds {new[0].shape} layers, and one before it {sums[0].shape}.")
        sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
    if sums is None:
        raise ValueError("minibatch_cka_matrix got no batch.")
    cross, own_a, own_b, noise_a, noise_b = sums
    roots = (jnp.sqrt(jnp.where(own > noise, own, jnp.nan)) for own, noise in ((own_a, noise_a), (own_b, noise_b)))
    return cross / (next(roots)[:, None] * next(roots))


def _grams(layers: Layers) -> list[Gram]:
    grams = [as_gram(gram) for gram in (layers.values() if isinstance(layers, Mapping) else layers)]
    if not grams:
        raise ValueError("got no layer; pass Grams or kernels (N, N) by layer.")
    return [gram.center() for gram in grams]


def _hsics(a: Sequence[Gram], b: Sequence[Gram], debiased: bool) -> tuple[Array, ...]:
    """HSIC of every pair of centred Grams, of each with itself, and how much of the latter is rounding error.

    All by the factor that makes it the average over pairs of examples, times the number of examples, so that a batch
    weighs as much as it holds.
    """
    n = a[0].n
    if n <= DENSE:  # one product for all pairs, and one program for all widths
        flat_a, flat_b = (jnp.stack([gram.dense().ravel() for gram in grams]) for grams in (a, b))
        cross, own_a, own_b = product(flat_a, flat_b.T), jnp.sum(flat_a**2, axis=1), jnp.sum(flat_b**2, axis=1)
    else:
        cross = jnp.array([[gram.inner(other) for other in b] for gram in a])
        own_a, own_b = (jnp.array([gram.inner(gram) for gram in grams]) for grams in (a, b))
    noise = n * jnp.finfo(cross.dtype).eps
    noise_a, noise_b = noise * own_a, noise * own_b
    if debiased:
        (diagonal_a, diagonal_b) = (jnp.stack([gram.diagonal() for gram in grams]) for grams in (a, b))

        def rest(diagonals: Array, traces: Array) -> Array:
            return traces / (n - 1) / (n - 2) - n / (n - 2) * diagonals

        trace_a, trace_b = diagonal_a.sum(axis=1), diagonal_b.sum(axis=1)
        cross += rest(product(diagonal_a, diagonal_b.T), trace_a[:, None] * trace_b)
        own_a += rest(jnp.sum(diagonal_a**2, axis=1), trace_a**2)
        own_b += rest(jnp.sum(diagonal_b**2, axis=1), trace_b**2)
    factor = n / (n * (n - 3)) if debiased else n / (n - 1) ** 2
    return tuple(factor * part for part in (cross, own_a, own_b, noise_a, noise_b))


class Estimate(NamedTuple):
    """A metric with its uncertainty over examples.

    Attributes:
        value: on all examples.
        standard_error: standard deviation over resamples.
    """

    value: Array
    standard_error: Array


def bootstrap(metric: Callable[..., Array], grams: Any, n: int, key: Array) -> Estimate:
    """A metric with its standard error over the choice of examples: N of them are drawn with replacement, n times.

    An example drawn twice is its own neighbour, which biases the resamples of debiased estimators; the value is
    therefore that on all examples, and only the spread comes from the resamples. It is nan where a resample has no
    value, as when it lacks a rare class.

    Args:
        metric: takes what ``grams`` holds, and returns a scalar or an array.
        grams: its arguments, a tuple of Grams, kernels ``(N, N)`` as :class:`DenseGram`, and arrays with a row for each
            example, such as one-hot targets; or a single Gram.
        n: number of resamples; 200 give the standard error to 5 %.
        key: for ``jax.random``.

    Raises:
        ValueError: n < 2, different N, or a kernel that is no Gram.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, alg. 6.1.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> gram = nngp.metrics.FeatureGram(jax.random.normal(jax.random.key(0), (50, 3)))
        >>> value, error = nngp.metrics.bootstrap(nngp.metrics.scale, gram, 100, jax.random.key(1))
        >>> bool(0 < error < value)
        True
    """
    arguments = tuple(grams) if isinstance(grams, tuple | list) else (grams,)
    for shape in (argument.shape for argument in arguments if not isinstance(argument, Gram)):
        if len(shape) == 2 and shape[0] == shape[1]:
            raise ValueError(
                f"bootstrap got an array {shape}; wrap a kernel as DenseGram(K), to draw rows and columns."
            )
    sizes = {argument.n if isinstance(argument, Gram) else argument.shape[0] for argument in arguments}
    if len(sizes) != 1 or n < 2:
        raise ValueError(f"bootstrap takes arguments on the same examples and n >= 2, got N={sorted(sizes)} and n={n}.")
    (size,) = sizes

    def resampled(key: Array) -> Array:
        drawn = jax.random.randint(key, (size,), 0, size)
        return metric(*(g.take(drawn) if isinstance(g, Gram) else jnp.asarray(g)[drawn] for g in arguments))

    values = jax.lax.map(resampled, jax.random.split(key, n))
    return Estimate(metric(*arguments), jnp.std(values, axis=0, ddof=1))
