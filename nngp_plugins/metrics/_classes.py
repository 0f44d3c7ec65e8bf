"""How a kernel arranges classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ._catalogue import ROTATION, SCALE, TRANSLATION, entry
from ._features import FeatureGram
from ._gram import Gram
from ._products import product
from ._similarity import alignment
from ._targets import Classes, as_targets
from ._to_grams import as_gram, rounding

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
    gram = as_gram(a)
    return alignment(gram, FeatureGram(jnp.asarray(as_targets(y, gram.n))))


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
    gram = as_gram(a)
    classes = Classes.of(y, gram.n)
    means = product(classes.averages.T, gram.matvec(classes.averages))
    has_examples = classes.counts > 0
    return jnp.where(has_examples[:, None] & has_examples, means, jnp.nan)


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
    gram = as_gram(a)
    classes = Classes.of(y, gram.n).present()
    return _separation(gram, classes, *_means(gram, classes))


def _separation(gram: Gram, classes: Classes, projections: Array, means: Array) -> Float[Array, ""]:
    """NC1 from what :func:`_means` returns."""
    within = projections - product(classes.one_hot, means)
    count = means.shape[0]
    if count < 2:
        return jnp.full((), jnp.nan, means.dtype)
    inverse = jnp.linalg.pinv(means, rtol=10 * count * jnp.finfo(means.dtype).eps, hermitian=True)
    separation = jnp.sum(product(within, inverse) ** 2) / gram.n
    return jnp.where(jnp.trace(means) / count > 4 * rounding(gram) / gram.n, separation, jnp.nan)


def _means(gram: Gram, classes: Classes) -> tuple[Float[Array, "N C"], Float[Array, "C C"]]:
    """The projections of centred examples onto class means, and the inner products of class means with each other."""
    projections = gram.center().matvec(classes.averages)
    return projections, product(classes.averages.T, projections)


@entry(
    title="Neural collapse",
    formula="NC1; NC2: spread of the norms of class means, |cos + 1/(C−1)|; NC3: ‖W/‖W‖ − M/‖M‖‖²; NC4: disagreement",
    range="≥ 0, NC4 in [0, 1]",
    cost="N D C",
    tells="how far the last layer is from the simplex of neural collapse, where all four are 0",
    misleads="it is defined for the last hidden layer of a classifier with at least as many features as classes",
    invariant=(ROTATION, SCALE, TRANSLATION),
    needs_targets=True,
    needs_classes=True,
)
def neural_collapse(
    a: Gram | Array, y: Any, *, classifier: Array | None = None, logits: Array | None = None
) -> dict[str, Float[Array, ""]]:
    """The four numbers of neural collapse in the last hidden layer; all go to 0 as it collapses.

    ``nc1`` is :func:`class_separation`. ``nc2_norms`` is the standard deviation of the norms of the centred class
    means, divided by their mean. ``nc2_angles`` is the mean of ``|cos + 1/(C−1)|`` over pairs of class means.
    ``nc3`` is ``‖W/‖W‖ − M/‖M‖‖²`` with the class means as the columns of M. ``nc4`` is the fraction of examples for
    which the network and the nearest class mean disagree.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)`` or one-hot ``(N, C)``.
        classifier: weights of the last layer, ``(D, C)`` as in Flax and Haiku, for ``nc3``. ``a`` must then be a
            :class:`FeatureGram`.
        logits: outputs of the network ``(N, C)``, for ``nc4``.

    Returns:
        ``nc1``, ``nc2_norms`` and ``nc2_angles``; ``nc3`` if ``classifier`` is given, and ``nc4`` if ``logits`` are.

    Raises:
        ValueError: different N, a single class, or shapes that do not match.

    Source: Papyan, Han & Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training",
    PNAS 2020, NC1 to NC4.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> y = jnp.array([0, 1, 2, 0, 1, 2])
        >>> collapsed = nngp.metrics.FeatureGram(jnp.eye(3)[y])
        >>> {name: round(float(v), 3) for name, v in nngp.metrics.neural_collapse(collapsed, y).items()}
        {'nc1': 0.0, 'nc2_norms': 0.0, 'nc2_angles': 0.0}
    """
    gram = as_gram(a)
    classes = Classes.of(y, gram.n).present()
    count = classes.one_hot.shape[1]
    if count < 2:
        raise ValueError("neural collapse needs two classes or more, and y holds a single one.")
    projections, means = _means(gram, classes)
    norms = jnp.sqrt(jnp.diagonal(means))
    pairs = ~jnp.eye(count, dtype=bool)
    lengths = jnp.where(norms > 0, norms, jnp.nan)
    cosines = means / lengths / lengths[:, None]
    found = {
        "nc1": _separation(gram, classes, projections, means),
        "nc2_norms": norms.std() / jnp.where(norms.mean() > 0, norms.mean(), jnp.nan),
        "nc2_angles": jnp.mean(jnp.abs(cosines + 1 / (count - 1)), where=pairs),
    }
    if classifier is not None:
        found["nc3"] = _self_duality(gram, classes, jnp.asarray(classifier))
    if logits is not None:
        found["nc4"] = _disagreement(projections, means, classes, jnp.asarray(logits))
    return found


def _self_duality(gram: Gram, classes: Classes, weights: Array) -> Float[Array, ""]:
    """NC3: how far the weights of the classifier are from the class means."""
    if not isinstance(gram, FeatureGram):
        raise ValueError("classifier= needs features: pass FeatureGram(phi), as a kernel does not know its axes.")
    means = product(gram.center().features.T, classes.averages)
    if weights.ndim != 2 or weights.shape[0] != means.shape[0] or weights.shape[1] <= _columns(classes).max():
        raise ValueError(
            f"classifier of shape {weights.shape} must be (D, C) with D={means.shape[0]} features and a column for "
            f"each of {means.shape[1]} classes."
        )
    weights = weights[:, _columns(classes)]
    return jnp.sum((weights / jnp.linalg.norm(weights) - means / jnp.linalg.norm(means)) ** 2)


def _disagreement(projections: Array, means: Array, classes: Classes, logits: Array) -> Float[Array, ""]:
    """NC4: how often the network and the nearest class mean disagree."""
    n, count = projections.shape
    if logits.ndim != 2 or logits.shape[0] != n or logits.shape[1] <= _columns(classes).max():
        raise ValueError(
            f"logits of shape {logits.shape} must be (N, C) with N={n} and a column for each of {count} classes."
        )
    # This is ‖phi − m‖² − ‖phi‖². The second term is the same for all classes and does not change the nearest one.
    distances = jnp.diagonal(means) - 2 * projections
    known = (jnp.trace(means) > 0) & jnp.isfinite(distances).all() & jnp.isfinite(logits).all()
    differ = jnp.asarray(_columns(classes))[jnp.argmin(distances, axis=1)] != jnp.argmax(logits, axis=1)
    return jnp.where(known, jnp.mean(differ), jnp.nan)


def _columns(classes: Classes) -> np.ndarray:
    """Columns of a classifier that belong to the classes.

    Labels that are non-negative integers are column numbers themselves; other labels are counted in sorted order.
    """
    names = classes.names
    are_columns = names.dtype.kind in "iu" and names.min() >= 0
    return names if are_columns else np.arange(len(names))
