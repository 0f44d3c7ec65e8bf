"""Metrics over many layers, many batches and many resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._catalogue import INNER, ROTATION, SCALE, TRANSLATION, entry
from ._gram import Gram
from ._products import product
from ._to_grams import as_gram

if TYPE_CHECKING:
    from jaxtyping import Float

# If many Grams are compared, the (N, N) kernels are formed for up to this many examples.
DENSE = 1024
Layers = Mapping[str, Gram | Array] | Sequence[Gram | Array]


@entry(
    title="CKA of layers",
    formula="cka of layer i of one model and layer j of another",
    range="as cka",
    cost=f"layers² × {INNER}, or N² for each pair up to N = 1024",
    tells="which layers of two models, or of two steps, correspond",
    misleads="as cka; blocks on the diagonal are often one direction that many layers share",
    invariant=(ROTATION, SCALE, TRANSLATION),
)
def cka_matrix(layers_a: Layers, layers_b: Layers | None = None, debiased: bool = True) -> Float[Array, "A B"]:
    """CKA of every layer of one model with every layer of another, or of the same model at another step.

    Args:
        layers_a: Grams or kernels ``(N, N)`` by layer, as a dict or a sequence.
        layers_b: the same, on the same examples; None for ``layers_a``.
        debiased: as in :func:`cka`.

    Returns:
        ``(A, B)``, rows and columns in the order of the layers.

    Raises:
        ValueError: no layer, different N, or N too small.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> x = jnp.arange(12.0).reshape(6, 2) ** 2
        >>> layers = {"a": x @ x.T, "b": jnp.diag(jnp.arange(6.0))}
        >>> nngp.metrics.cka_matrix(layers, debiased=False).shape
        (2, 2)
    """
    return minibatch_cka_matrix([(layers_a, layers_b)], debiased)


@entry(
    title="CKA of layers, by batches",
    formula="Σ HSIC(K, L) / √(Σ HSIC(K, K) Σ HSIC(L, L)) over batches",
    range="as cka",
    cost="as cka_matrix, a batch at a time",
    tells="what cka_matrix tells, for data that does not fit into memory",
    misleads="the biased one depends on the size of the batches",
    invariant=(ROTATION, SCALE, TRANSLATION),
)
def minibatch_cka_matrix(batches: Iterable[tuple[Layers, Layers | None]], debiased: bool = True) -> Float[Array, "A B"]:
    """:func:`cka_matrix` for data that does not fit into memory: it averages HSIC over batches, then takes the ratio.

    The expectation of the debiased average is the HSIC of all data, whatever the size of the batches.

    Args:
        batches: ``(layers_a, layers_b)`` for each batch of examples, as for :func:`cka_matrix`.
        debiased: as in :func:`cka`; the biased one depends on the batch size.

    Returns:
        ``(A, B)``.

    Raises:
        ValueError: no batch, no layer, different N, or N too small.

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
    root_a = jnp.sqrt(jnp.where(own_a > noise_a, own_a, jnp.nan))
    root_b = jnp.sqrt(jnp.where(own_b > noise_b, own_b, jnp.nan))
    return cross / (root_a[:, None] * root_b)


def _grams(layers: Layers) -> list[Gram]:
    """The centred Grams of all layers."""
    grams = [as_gram(gram) for gram in (layers.values() if isinstance(layers, Mapping) else layers)]
    if not grams:
        raise ValueError("got no layer; pass Grams or kernels (N, N) by layer.")
    return [gram.center() for gram in grams]


def _hsics(a: Sequence[Gram], b: Sequence[Gram], debiased: bool) -> tuple[Array, ...]:
    """HSIC of every pair of centred Grams, HSIC of each Gram with itself, and the rounding error of the latter.

    Each HSIC is multiplied by the number of examples, so that a batch counts in proportion to its size.
    """
    n = a[0].n
    if n <= DENSE:
        # Flattened kernels need one product for all pairs, and one compiled program for layers of all widths.
        flat_a, flat_b = (jnp.stack([gram.dense().ravel() for gram in grams]) for grams in (a, b))
        cross, own_a, own_b = product(flat_a, flat_b.T), jnp.sum(flat_a**2, axis=1), jnp.sum(flat_b**2, axis=1)
    else:
        cross = jnp.array([[gram.inner(other) for other in b] for gram in a])
        own_a, own_b = (jnp.array([gram.inner(gram) for gram in grams]) for grams in (a, b))
    noise = n * jnp.finfo(cross.dtype).eps
    noise_a, noise_b = noise * own_a, noise * own_b
    if debiased:
        diagonal_a, diagonal_b = (jnp.stack([gram.diagonal() for gram in grams]) for grams in (a, b))

        def correction(diagonals: Array, traces: Array) -> Array:
            return traces / (n - 1) / (n - 2) - n / (n - 2) * diagonals

        trace_a, trace_b = diagonal_a.sum(axis=1), diagonal_b.sum(axis=1)
        cross += correction(product(diagonal_a, diagonal_b.T), trace_a[:, None] * trace_b)
        own_a += correction(jnp.sum(diagonal_a**2, axis=1), trace_a**2)
        own_b += correction(jnp.sum(diagonal_b**2, axis=1), trace_b**2)
    factor = n / (n * (n - 3)) if debiased else n / (n - 1) ** 2
    return tuple(factor * part for part in (cross, own_a, own_b, noise_a, noise_b))


class Estimate(NamedTuple):
    """A metric with its uncertainty over examples.

    Attributes:
        value: the metric on all examples.
        standard_error: the standard deviation of the metric over resamples.
    """

    value: Array
    standard_error: Array


def bootstrap(metric: Callable[..., Array], grams: Any, n: int, key: Array) -> Estimate:
    """A metric with its standard error over the choice of examples, by drawing N of them with replacement n times.

    An example that is drawn twice is its own neighbour, which biases debiased estimators on resamples. The value is
    therefore computed on all examples, and only the standard error comes from the resamples. The standard error is nan
    if a resample has no value, for example because it lacks a rare class.

    Args:
        metric: a function that takes what ``grams`` holds, and returns a scalar or an array.
        grams: the arguments of ``metric``: a single Gram, or a tuple of Grams and of arrays with a row for each
            example, such as one-hot targets. Wrap kernels ``(N, N)`` as :class:`DenseGram`.
        n: number of resamples; 200 give the standard error to 5 %.
        key: a key of ``jax.random``.

    Raises:
        ValueError: n < 2, different N, or a kernel that is not wrapped as a Gram.

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
