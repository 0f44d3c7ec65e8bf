"""How a kernel arranges classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ._gram import FeatureGram, Gram, as_gram, rounding
from ._products import product
from ._similarity import alignment
from ._targets import Classes, as_targets

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package


def target_alignment(a: Gram | Array, y: Any) -> Float[Array, ""]:
    """Centred alignment of a kernel with that of the targets, ``y yᵀ``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)``, one-hot ``(N, C)``, or real targets of either shape.

    Returns:
        A scalar in [0, 1]; nan where the kernel or the targets are constant.

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


def class_block_means(a: Gram | Array, y: Any) -> Float[Array, "C C"]:
    """Mean of the kernel over pairs of examples of two classes: ``K̄_cd = mean over i in c, j in d of K_ij``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)``, whose classes come in sorted order, or one-hot ``(N, C)``.

    Returns:
        ``(C, C)``, the inner products of class means; pairs ``i = j`` count. nan for a class without examples.

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
    some = classes.counts > 0
    return jnp.where(some[:, None] & some, means, jnp.nan)


def class_separation(a: Gram | Array, y: Any) -> Float[Array, ""]:
    """Variability within classes over that between them, NC1 of neural collapse: ``tr(Σ_W Σ_B⁺) / C``.

    Of the kernel alone: ``‖W S⁺‖² / N`` with ``S`` the inner products of the C centred class means, and ``W`` those of
    each example's deviation from its class mean with them.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)`` or one-hot ``(N, C)``; classes without examples do not count.

    Returns:
        A scalar ≥ 0, smaller where classes are better separated; nan for a single class or a zero kernel.

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


def _separation(gram: Gram, classes: Classes, seen: Array, means: Array) -> Float[Array, ""]:
    within = seen - product(classes.one_hot, means)
    count = means.shape[0]
    if count < 2:
        return jnp.full((), jnp.nan, means.dtype)
    inverse = jnp.linalg.pinv(means, rtol=10 * count * jnp.finfo(means.dtype).eps, hermitian=True)
    separation = jnp.sum(product(within, inverse) ** 2) / gram.n
    return jnp.where(jnp.trace(means) / count > 4 * rounding(gram) / gram.n, separation, jnp.nan)


def _means(gram: Gram, classes: Classes) -> tuple[Float[Array, "N C"], Float[Array, "C C"]]:
    """Inner products of all centred examples, and of the class means, with the class means."""
    seen = gram.center().matvec(classes.averages)
    return seen, product(classes.averages.T, seen)


def neural_collapse(
    a: Gram | Array, y: Any, *, classifier: Array | None = None, logits: Array | None = None
) -> dict[str, Float[Array, ""]]:
    """The four numbers of neural collapse, of the last hidden layer; all go to 0 as it collapses.

    ``nc1`` is :func:`class_separation`. ``nc2_norms`` is the standard deviation of the norms of the centred class means
    over their mean, ``nc2_angles`` the mean of ``|cos + 1/(C−1)|`` over pairs of them. ``nc3`` is
    ``‖W/‖W‖ − M/‖M‖‖²`` with M the class means as columns, and ``nc4`` the fraction of examples that the network
    puts in another class than that with the nearest mean.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        y: labels ``(N,)`` or one-hot ``(N, C)``.
        classifier: weights of the last layer, ``(D, C)`` as Flax and Haiku have them, for ``nc3``, which also takes
            ``a`` by its features.
        logits: outputs of the network ``(N, C)``, for ``nc4``.

    Returns:
        A scalar of each name that the arguments define.

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
    seen, means = _means(gram, classes)
    norms = jnp.sqrt(jnp.diagonal(means))
    pairs = ~jnp.eye(count, dtype=bool)
    lengths = jnp.where(norms > 0, norms, jnp.nan)
    cosines = means / lengths / lengths[:, None]
    found = {
        "nc1": _separation(gram, classes, seen, means),
        "nc2_norms": norms.std() / jnp.where(norms.mean() > 0, norms.mean(), jnp.nan),
        "nc2_angles": jnp.mean(jnp.abs(cosines + 1 / (count - 1)), where=pairs),
    }
    if classifier is not None:
        found["nc3"] = _self_duality(gram, classes, jnp.asarray(classifier))
    if logits is not None:
        found["nc4"] = _disagreement(seen, means, classes, jnp.asarray(logits))
    return found


def _self_duality(gram: Gram, classes: Classes, weights: Array) -> Float[Array, ""]:
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


def _disagreement(seen: Array, means: Array, classes: Classes, logits: Array) -> Float[Array, ""]:
    if logits.ndim != 2 or logits.shape[0] != seen.shape[0] or logits.shape[1] <= _columns(classes).max():
        raise ValueError(
            f"logits of shape {logits.shape} must be (N, C) with N={seen.shape[0]} and a column for each of "
            f"{seen.shape[1]} classes."
        )
    # ‖phi − m‖² less ‖phi‖², which is the same for all classes
    distances = jnp.diagonal(means) - 2 * seen
    known = (jnp.trace(means) > 0) & jnp.isfinite(distances).all() & jnp.isfinite(logits).all()
    differ = jnp.asarray(_columns(classes))[jnp.argmin(distances, axis=1)] != jnp.argmax(logits, axis=1)
    return jnp.where(known, jnp.mean(differ), jnp.nan)


def _columns(classes: Classes) -> np.ndarray:
    """Columns of a classifier that belong to the classes: labels 0, 1, ... are those, others are in order."""
    names = classes.names
    counts = names.dtype.kind in "iu" and names.min() >= 0
    return names if counts else np.arange(len(names))
