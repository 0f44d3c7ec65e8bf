"""Whether two kernels are more alike than chance would make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from ._features import FeatureGram
from ._gram import Gram
from ._products import product
from ._to_grams import as_gram, one_program

if TYPE_CHECKING:
    from jaxtyping import Float

# To move an entry of a kernel takes as long as this many products of features.
PRODUCTS = 128
Layers = Mapping[str, Gram | Array] | Sequence[Gram | Array]


def permutation_test(
    layers_a: Layers, layers_b: Layers | None, n: int, key: Array, debiased: bool = True
) -> Float[Array, "A B"]:
    """The p-value of each CKA of :func:`cka_matrix`, under the hypothesis that the layers are independent.

    The examples of the second model are permuted n times. The p-value is ``(1 + #{CKA of permuted ≥ CKA}) / (1 + n)``.
    If the examples are independent draws and the layers independent of each other, the chance of a p-value of at most
    α is at most α, whatever the distribution of the features. CKA and HSIC give the same p-value, because a permutation
    does not change what CKA divides by.

    Args:
        layers_a: Grams or kernels ``(N, N)`` by layer, as a dict or a sequence.
        layers_b: the same, on the same examples; None for ``layers_a``.
        n: number of permutations. The smallest p-value is ``1 / (1 + n)``.
        key: a key of ``jax.random``. All pairs of layers see the same permutations.
        debiased: as in :func:`cka`.

    Returns:
        ``(A, B)``, rows and columns in the order of the layers; nan for a constant or zero kernel.

    Raises:
        ValueError: no layer, different N, N too small, or n < 1.

    Source: Gretton et al., "A Kernel Statistical Test of Independence", NeurIPS 2007, section 3; the 1 in the p-value:
    Phipson & Smyth, "Permutation P-values Should Never Be Zero", 2010, eq. 2.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> a, b = jax.random.normal(jax.random.key(0), (2, 50, 10))
        >>> layers = [nngp.metrics.FeatureGram(phi) for phi in (a, a + b, b)]
        >>> print(nngp.metrics.permutation_test(layers[:1], layers, 99, jax.random.key(1)))
        [[0.01 0.01 0.56]]
    """
    a, b = (
        [as_gram(gram) for gram in (layers.values() if isinstance(layers, Mapping) else layers)]
        for layers in (layers_a, layers_a if layers_b is None else layers_b)
    )
    sizes = {gram.n for gram in (*a, *b)}
    least = 4 if debiased else 2
    if not a or not b or len(sizes) > 1 or min(sizes) < least or n < 1:
        raise ValueError(
            f"permutation_test takes layers on the same N >= {least} examples and n >= 1, got {len(a)} and {len(b)} "
            f"layers, N={sorted(sizes)} and n={n}."
        )
    widths = [[g.phi.shape[1] if isinstance(g, FeatureGram) else g.n for g in grams] for grams in (a, b)]
    by_features = all(isinstance(gram, FeatureGram) and gram.narrow for gram in (*a, *b))
    by_features &= sum(widths[0]) * sum(widths[1]) <= PRODUCTS * a[0].n * len(b)
    return (_by_features if by_features else _by_entries)(a, b, jax.random.split(key, n), debiased)


@partial(one_program, static_argnames="debiased")
def _by_entries(a: Sequence[Gram], b: Sequence[Gram], keys: Array, debiased: bool) -> Float[Array, "A B"]:
    """Of kernels ``(N, N)``: one product of all pairs for each permutation."""
    k, l = (jnp.stack([_centered(gram).dense() for gram in grams]) for grams in (a, b))  # noqa: E741
    sizes = [jnp.linalg.norm(kernels, axis=(1, 2)) for kernels in (k, l)]
    count = k.shape[1]
    # The debiased HSIC is ⟨K, L⟩ with a smaller diagonal of K, up to terms that no permutation changes.
    flat = (k - count / (count - 2) * k * jnp.eye(count, dtype=k.dtype) if debiased else k).reshape(len(k), -1)
    # A permutation moves the entries of all kernels together.
    entries = l.reshape(len(l), -1).T

    def hsic(order: Array) -> Array:
        return product(flat, entries[(order[:, None] * count + order[None]).ravel()])

    return _p_values(hsic, keys, count, *sizes)


@partial(one_program, static_argnames="debiased")
def _by_features(
    a: Sequence[FeatureGram], b: Sequence[FeatureGram], keys: Array, debiased: bool
) -> Float[Array, "A B"]:
    """Of features ``(N, D)``: one product of all pairs for each permutation, and no ``(N, N)`` matrix."""
    a, b = ([_centered(gram) for gram in grams] for grams in (a, b))
    sizes = [jnp.stack([gram.frobenius() for gram in grams]) for grams in (a, b)]
    phi, psi = (jnp.concatenate([gram.features for gram in grams], axis=1) for grams in (a, b))
    k, l = (jnp.stack([gram.diagonal() for gram in grams]) for grams in (a, b))  # noqa: E741
    # Which columns belong to which layer, (D, A) and (D, B).
    of_a, of_b = (jax.scipy.linalg.block_diag(*(jnp.ones((g.phi.shape[1], 1), phi.dtype) for g in x)) for x in (a, b))
    count = len(phi)

    def hsic(order: Array) -> Array:
        inner = product(product(of_a.T, product(phi.T, psi[order]) ** 2), of_b)
        return inner - count / (count - 2) * product(k, l[:, order].T) if debiased else inner

    return _p_values(hsic, keys, count, *sizes)


def _centered(gram: Gram) -> Any:
    return gram.normalised()[0].center()


def _p_values(
    hsic: Callable[[Array], Array], keys: Array, count: int, size_a: Array, size_b: Array
) -> Float[Array, "A B"]:
    """The p-values of a statistic ``(A, B)`` of the order of the examples."""
    observed, size = hsic(jnp.arange(count)), size_a[:, None] * size_b[None]
    # Permutations that only swap equal examples give the same value up to rounding, and count as at least as large.
    least = observed - count * jnp.finfo(observed.dtype).eps * size
    larger = jax.lax.map(lambda key: hsic(jax.random.permutation(key, count)) >= least, keys)
    return jnp.where(size > 0, (1 + larger.sum(axis=0)) / (1 + len(keys)), jnp.nan)
