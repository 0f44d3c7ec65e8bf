"""Metrics over many layers, many batches and many resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._catalogue import INNER, ROTATION, SCALE, TRANSLATION, entry
from ._gram import Gram
from ._powers import power_of_2
from ._products import product
from ._to_grams import as_gram, on_device, one_program

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
    sums: _Sums | None = None
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
        if sums is not None and sums.cross.shape != new.cross.shape:
            raise ValueError(f"a batch holds {new.cross.shape} layers, and one before it {sums.cross.shape}.")
        sums = new if sums is None else _sum(sums, new)
    if sums is None:
        raise ValueError("minibatch_cka_matrix got no batch.")
    return _ratio(sums)


def _grams(layers: Layers) -> list[Gram]:
    """The Grams of all layers."""
    grams = [as_gram(gram) for gram in (layers.values() if isinstance(layers, Mapping) else layers)]
    if not grams:
        raise ValueError("got no layer; pass Grams or kernels (N, N) by layer.")
    return grams


class _Sums(NamedTuple):
    """Sums over batches, each of kernels that were divided by powers of 4.

    Attributes:
        cross: HSIC of every pair of layers, ``(A, B)``.
        own_a: HSIC of each layer with itself, ``(A,)``, and ``own_b``, ``(B,)``.
        noise_a: the rounding error of these, and ``noise_b``.
        exponent_a: the powers, ``(A,)``, and ``exponent_b``, ``(B,)``.
    """

    cross: Array
    own_a: Array
    own_b: Array
    noise_a: Array
    noise_b: Array
    exponent_a: Any = None
    exponent_b: Any = None

    def divided(self, exponent_a: Array, exponent_b: Array) -> _Sums:
        """The same, of kernels that were divided by other powers."""
        dtype = self.cross.dtype
        a, b = power_of_2(self.exponent_a - exponent_a, dtype), power_of_2(self.exponent_b - exponent_b, dtype)
        cross = self.cross * a[:, None] * a[:, None] * b[None] * b[None]
        own = (part * p * p * p * p for part, p in zip(self[1:5], (a, b, a, b), strict=True))
        own_a, own_b, noise_a, noise_b = own
        return _Sums(cross, own_a, own_b, noise_a, noise_b, exponent_a, exponent_b)


@one_program
def _sum(before: _Sums, new: _Sums) -> _Sums:
    exponents = [jnp.maximum(x, y) for x, y in zip(before[5:], new[5:], strict=True)]
    sums = (x + y for x, y in zip(before.divided(*exponents)[:5], new.divided(*exponents)[:5], strict=True))
    return _Sums(*sums, *exponents)


@one_program
def _ratio(sums: _Sums) -> Float[Array, "A B"]:
    root_a = jnp.sqrt(jnp.where(sums.own_a > sums.noise_a, sums.own_a, jnp.nan))
    root_b = jnp.sqrt(jnp.where(sums.own_b > sums.noise_b, sums.own_b, jnp.nan))
    return sums.cross / (root_a[:, None] * root_b[None])


def _hsics(a: Sequence[Gram], b: Sequence[Gram], debiased: bool) -> _Sums:
    """HSIC of every pair of kernels, HSIC of each kernel with itself, and the rounding error of the latter."""
    if a[0].n <= DENSE:
        return _hsics_by_entries(a, b, debiased)
    # A program for each pair of widths: one of all pairs would take long to compile.
    (a, exponents_a), (b, exponents_b) = (zip(*map(_centered, grams), strict=True) for grams in (a, b))
    cross = jnp.stack([jnp.stack([_inner(gram, other) for other in b]) for gram in a])
    own_a, own_b = (jnp.stack([_inner(gram, gram) for gram in grams]) for grams in (a, b))
    diagonals = [jnp.stack([_diagonal(gram) for gram in grams]) for grams in (a, b)]
    return _sums(cross, own_a, own_b, *diagonals, debiased)._replace(
        exponent_a=jnp.stack(exponents_a), exponent_b=jnp.stack(exponents_b)
    )


@one_program
def _centered(a: Gram) -> tuple[Gram, Array]:
    unit, exponent = a.normalised()
    return unit.center(), exponent


@one_program
def _inner(a: Gram, b: Gram) -> Array:
    return a.inner(b)


@one_program
def _diagonal(a: Gram) -> Array:
    return a.diagonal()


@partial(one_program, static_argnames="debiased")
def _hsics_by_entries(a: Sequence[Gram], b: Sequence[Gram], debiased: bool) -> _Sums:
    """:func:`_hsics` of flattened kernels: one product for all pairs."""
    (a, exponents_a), (b, exponents_b) = (zip(*map(_centered, grams), strict=True) for grams in (a, b))
    flat_a, flat_b = (jnp.stack([gram.dense().ravel() for gram in grams]) for grams in (a, b))
    cross, own_a, own_b = product(flat_a, flat_b.T), jnp.sum(flat_a**2, axis=1), jnp.sum(flat_b**2, axis=1)
    diagonals = [jnp.stack([gram.diagonal() for gram in grams]) for grams in (a, b)]
    return _sums(cross, own_a, own_b, *diagonals, debiased)._replace(
        exponent_a=jnp.stack(exponents_a), exponent_b=jnp.stack(exponents_b)
    )


@partial(one_program, static_argnames="debiased")
def _sums(cross: Array, own_a: Array, own_b: Array, diagonal_a: Array, diagonal_b: Array, debiased: bool) -> _Sums:
    """HSIC from inner products of centred kernels.

    Each HSIC is multiplied by the number of examples, so that a batch counts in proportion to its size.
    """
    n = diagonal_a.shape[1]
    noise = n * jnp.finfo(cross.dtype).eps
    noise_a, noise_b = noise * own_a, noise * own_b
    if debiased:

        def correction(diagonals: Array, traces: Array) -> Array:
            return traces / (n - 1) / (n - 2) - n / (n - 2) * diagonals

        trace_a, trace_b = diagonal_a.sum(axis=1), diagonal_b.sum(axis=1)
        cross += correction(product(diagonal_a, diagonal_b.T), trace_a[:, None] * trace_b[None])
        own_a += correction(jnp.sum(diagonal_a**2, axis=1), trace_a**2)
        own_b += correction(jnp.sum(diagonal_b**2, axis=1), trace_b**2)
    factor = n / (n * (n - 3)) if debiased else n / (n - 1) ** 2
    return _Sums(*(factor * part for part in (cross, own_a, own_b, noise_a, noise_b)))


class Bootstrapped(NamedTuple):
    """A metric with its uncertainty over examples.

    Attributes:
        value: the metric on all examples.
        standard_error: the standard deviation of the metric over resamples.
    """

    value: Array
    standard_error: Array


def bootstrap(metric: Callable[..., Array], grams: Any, n: int, key: Array) -> Bootstrapped:
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

    arguments = tuple(as_gram(given) if isinstance(given, Gram) else on_device(given) for given in arguments)

    def resampled(key: Array) -> Array:
        drawn = jax.random.randint(key, (size,), 0, size)
        return metric(*(g.take(drawn) if isinstance(g, Gram) else g[drawn] for g in arguments))

    @jax.jit
    def errors(key: Array) -> Array:
        return jnp.std(jax.lax.map(resampled, jax.random.split(key, n)), axis=0, ddof=1)

    return Bootstrapped(metric(*arguments), errors(key))
