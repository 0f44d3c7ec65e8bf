"""How a kernel arranges classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from .._typing import wide
from ._catalogue import ROTATION, SCALE, TRANSLATION, entry
from ._features import FeatureGram
from ._gram import Gram
from ._products import product
from ._similarity import alignment
from ._streamed import StreamedGram
from ._streamed_targets import block_means_of_stream, of_targets, separation_of_stream
from ._targets import Classes, as_targets
from ._to_grams import as_gram, on_device, one_program, rounding

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="Target alignment",
    formula="alignment of K with Y Yᵀ, centred",
    range="[0, 1]",
    cost="N D C",
    tells="how much of the kernel is about the targets; it grows in rich training",
    misleads="with one-hot labels it reaches 1 only if all classes are equally far apart; few examples bias it, like "
    "biased CKA",
    invariant=(ROTATION, SCALE, TRANSLATION),
    needs_targets=True,
    tracked=True,
)
def target_alignment(a: Gram | Array, y: Any) -> Float[Array, ""]:
    """Centred alignment of a kernel with the kernel of the targets, ``y yᵀ``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)``, one-hot ``(N, C)``, or real targets of either shape.

    Returns:
        A scalar in [0, 1]; nan if the kernel or the targets are constant.

    Raises:
        ValueError: different N.

    Source: Cortes et al., "Algorithms for Learning Kernels Based on Centered Alignment", JMLR 2012.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> y = jnp.array([0, 0, 1, 1])
        >>> round(float(nngp.metrics.target_alignment(jnp.float32(y[:, None] == y), y)), 3)
        1.0
    """
    if isinstance(a, StreamedGram):
        return alignment(a, of_targets(a, as_targets(y, a.n)))
    gram = as_gram(a)
    return _target_alignment(gram, on_device(as_targets(y, gram.n)))


@one_program
def _target_alignment(gram: Gram, targets: Array) -> Float[Array, ""]:
    return alignment(gram, FeatureGram(targets.astype(wide(gram.diagonal().dtype))))


@entry(
    title="Class block means",
    formula="mean of K_ij over i in class c and j in class d",
    range="(C, C)",
    cost="N D C",
    tells="which classes the kernel treats as alike",
    misleads="the diagonal counts each example with itself, which weighs much if classes are small",
    needs_targets=True,
    needs_classes=True,
)
def class_block_means(a: Gram | Array, y: Any) -> Float[Array, "C C"]:
    """Mean of the kernel over pairs of examples of two classes: ``K̄_cd = mean over i in c, j in d of K_ij``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)`` or one-hot ``(N, C)``; the classes of labels are sorted.

    Returns:
        ``(C, C)``, the inner products of class means; pairs ``i = j`` are included. nan for a class without examples.

    Raises:
        ValueError: different N, or rows that are not one-hot.

    Source: Shan & Bordelon, "A Theory of Neural Tangent Kernel Alignment and Its Influence on Training", 2021.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> nngp.metrics.class_block_means(jnp.eye(4), jnp.array([0, 0, 1, 1])).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    if isinstance(a, StreamedGram):
        return block_means_of_stream(a, Classes.of(y, a.n).one_hot)
    gram = as_gram(a)
    return _class_block_means(gram, on_device(Classes.of(y, gram.n).one_hot))


@one_program
def _class_block_means(gram: Gram, one_hot: Array) -> Float[Array, "C C"]:
    counts, weights = averages(gram, one_hot)
    means = product(weights.T, gram.matvec(weights))
    has_examples = counts > 0
    return jnp.where(has_examples[:, None] & has_examples[None], means, jnp.nan)


def averages(gram: Gram, one_hot: Array) -> tuple[Float[Array, " C"], Float[Array, "N C"]]:
    """Examples of each class, and ``A`` for which ``Aᵀ phi`` are class means, zero for a class without examples."""
    one_hot = one_hot.astype(wide(gram.diagonal().dtype))
    counts = one_hot.sum(axis=0)
    return counts, one_hot / jnp.maximum(counts, 1)[None]


@entry(
    title="Class separation  NC1",
    formula="tr(Σ_W Σ_B⁺) / C",
    range="≥ 0",
    cost="N D C",
    tells="NC1: spread within classes over distance between them; it falls to 0 in neural collapse",
    misleads="it is large and noisy if class means hardly differ, as at initialisation",
    invariant=(ROTATION, SCALE, TRANSLATION),
    log_axis=True,
    needs_targets=True,
    needs_classes=True,
    tracked=True,
)
def class_separation(a: Gram | Array, y: Any) -> Float[Array, ""]:
    """Variability within classes over variability between them, NC1 of neural collapse: ``tr(Σ_W Σ_B⁺) / C``.

    The kernel alone determines it as ``‖W S⁺‖² / N``. ``S`` holds the inner products of the C centred class means with
    each other, and ``W`` the inner products of each example's deviation from its class mean with the class means.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)`` or one-hot ``(N, C)``; classes without examples are ignored.

    Returns:
        A scalar ≥ 0, smaller if classes are better separated; nan for a single class or a zero kernel.

    Raises:
        ValueError: different N, or rows that are not one-hot.

    Source: Papyan, Han & Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training",
    PNAS 2020, NC1.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> y = jnp.array([0, 0, 1, 1])
        >>> float(nngp.metrics.class_separation(jnp.float32(y[:, None] == y), y))
        0.0
    """
    if isinstance(a, StreamedGram):
        return separation_of_stream(a, Classes.of(y, a.n).present().one_hot)
    gram = as_gram(a)
    return _class_separation(gram, on_device(Classes.of(y, gram.n).present().one_hot))


@one_program
def _class_separation(gram: Gram, one_hot: Array) -> Float[Array, ""]:
    unit, _ = gram.normalised()
    return separation(unit, one_hot, *means_of(unit, one_hot))


def separation(gram: Gram, one_hot: Array, projections: Array, means: Array) -> Float[Array, ""]:
    """NC1 from what :func:`means_of` returns."""
    within = projections - product(one_hot.astype(means.dtype), means)
    count = means.shape[0]
    if count < 2:
        return jnp.full((), jnp.nan, means.dtype)
    inverse = jnp.linalg.pinv(means, rtol=10 * count * jnp.finfo(means.dtype).eps, hermitian=True)
    nc1 = jnp.sum(product(within, inverse) ** 2) / gram.n
    return jnp.where(jnp.trace(means) / count > 4 * rounding(gram) / gram.n, nc1, jnp.nan)


def means_of(gram: Gram, one_hot: Array) -> tuple[Float[Array, "N C"], Float[Array, "C C"]]:
    """The projections of centred examples onto class means, and the inner products of class means with each other."""
    _, weights = averages(gram, one_hot)
    projections = gram.center().matvec(weights)
    return projections, product(weights.T, projections)
