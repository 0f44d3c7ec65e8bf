"""CKA of many layers and many batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product as product_of
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ._catalogue import INNER, ROTATION, SCALE, TRANSLATION, entry
from ._gram import Gram
from ._powers import power_of_2
from ._products import product
from ._streamed import StreamedGram, as_streamed, is_streamed
from ._streamed_layers import LayerProducts
from ._to_grams import as_gram, one_program

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
        layers_a: Grams or kernels ``(N, N)`` by layer, as a dict or a sequence. Features that are read block by block
            are read in one pass for all pairs, or in several if the layers have more than 4,096 features together.
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
    given = layers.values() if isinstance(layers, Mapping) else layers
    grams = [gram if isinstance(gram, StreamedGram) else as_gram(gram) for gram in given]
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
    if is_streamed(*a, *b):
        return _hsics_of_streams([as_streamed(gram) for gram in a], [as_streamed(gram) for gram in b], debiased)
    if a[0].n <= DENSE:
        return _hsics_by_entries(a, b, debiased)
    # A program for each pair of widths: one of all pairs would take long to compile.
    (a, exponents_a), (b, exponents_b) = (zip(*map(_centered, grams), strict=True) for grams in (a, b))
    cross = jnp.stack([jnp.stack([_inner(gram, other) for other in b]) for gram in a])
    own_a, own_b = (jnp.stack([_inner(gram, gram) for gram in grams]) for grams in (a, b))
    diagonals = (jnp.stack([_diagonal(gram) for gram in grams]) for grams in (a, b))
    return _sums(cross, own_a, own_b, _of_diagonals(*diagonals), a[0].n, a[0].n, debiased)._replace(
        exponent_a=jnp.stack(exponents_a), exponent_b=jnp.stack(exponents_b)
    )


def _hsics_of_streams(a: list[StreamedGram], b: list[StreamedGram], debiased: bool) -> _Sums:
    """:func:`_hsics` of features that are read block by block. A layer of both sides is read once."""
    layers = list({id(gram.phi): gram for gram in (*a, *b)}.values())
    places = {id(gram.phi): k for k, gram in enumerate(layers)}
    first, second = ([places[id(gram.phi)] for gram in grams] for grams in (a, b))
    found, pairs = LayerProducts(layers, product_of(first, second)), np.ix_(first, second)
    dtype, terms = np.result_type(*(gram.dtype for gram in layers)), max(gram.phi.shape[1] for gram in layers)

    def parts(of: np.ndarray) -> list[Array]:
        return [jnp.asarray(part, dtype) for part in (of[pairs], of[first, first], of[second, second])]

    traces = (jnp.asarray(found.traces[of], dtype) for of in (first, second))
    sums = _sums(*parts(found.products), _Diagonals(*parts(found.dots), *traces), a[0].n, terms, debiased)
    exponents = (jnp.asarray(found.exponents[of]) for of in (first, second))
    return sums._replace(exponent_a=next(exponents), exponent_b=next(exponents))


class _Diagonals(NamedTuple):
    """Sums over the diagonals of centred kernels.

    Attributes:
        cross: inner products of the diagonals of every pair, ``(A, B)``.
        own_a: squared norms of the diagonals, ``(A,)``, and ``own_b``, ``(B,)``.
        trace_a: the traces, ``(A,)``, and ``trace_b``, ``(B,)``.
    """

    cross: Array
    own_a: Array
    own_b: Array
    trace_a: Array
    trace_b: Array


@one_program
def _of_diagonals(a: Array, b: Array) -> _Diagonals:
    own_a, own_b = jnp.sum(a**2, axis=1), jnp.sum(b**2, axis=1)
    return _Diagonals(product(a, b.T), own_a, own_b, a.sum(axis=1), b.sum(axis=1))


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
    diagonals = (jnp.stack([gram.diagonal() for gram in grams]) for grams in (a, b))
    return _sums(cross, own_a, own_b, _of_diagonals(*diagonals), a[0].n, a[0].n, debiased)._replace(
        exponent_a=jnp.stack(exponents_a), exponent_b=jnp.stack(exponents_b)
    )


@partial(one_program, static_argnames=("n", "terms", "debiased"))
def _sums(cross: Array, own_a: Array, own_b: Array, diagonals: _Diagonals, n: int, terms: int, debiased: bool) -> _Sums:
    """HSIC from inner products of centred kernels, with so many rounding errors each.

    Each HSIC is multiplied by the number of examples, so that a batch counts in proportion to its size.
    """
    noise = terms * jnp.finfo(cross.dtype).eps
    noise_a, noise_b = noise * own_a, noise * own_b
    if debiased:

        def correction(products: Array, traces: Array) -> Array:
            return traces / (n - 1) / (n - 2) - n / (n - 2) * products

        trace_a, trace_b = diagonals.trace_a, diagonals.trace_b
        cross += correction(diagonals.cross, trace_a[:, None] * trace_b[None])
        own_a += correction(diagonals.own_a, trace_a**2)
        own_b += correction(diagonals.own_b, trace_b**2)
    factor = n / (n * (n - 3)) if debiased else n / (n - 1) ** 2
    return _Sums(*(factor * part for part in (cross, own_a, own_b, noise_a, noise_b)))
