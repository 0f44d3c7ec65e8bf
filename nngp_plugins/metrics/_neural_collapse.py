"""How close a layer is to neural collapse."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ._catalogue import ROTATION, SCALE, TRANSLATION, entry
from ._classes import averages, means_of, separation
from ._features import FeatureGram
from ._gram import Gram
from ._powers import exponent_of, largest, power_of_2
from ._products import product
from ._streamed import StreamedGram
from ._streamed_targets import collapse_of_stream
from ._targets import Classes
from ._to_grams import as_gram, on_device, one_program

if TYPE_CHECKING:
    from jaxtyping import Float


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
            :class:`FeatureGram`, or a :class:`StreamedGram`.
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
    gram = a if isinstance(a, StreamedGram) else as_gram(a)
    classes = Classes.of(y, gram.n).present()
    count = classes.one_hot.shape[1]
    if count < 2:
        raise ValueError("neural collapse needs two classes or more, and y holds a single one.")
    columns = tuple(_columns(classes).tolist())
    if classifier is not None:
        _check_classifier(gram, columns, classifier)
    if logits is not None and _lacks_columns(logits, gram.n, columns):
        raise ValueError(
            f"logits of shape {jnp.shape(logits)} must be (N, C) with N={gram.n} and a column for each of {count} "
            "classes."
        )
    last = {"classifier": classifier, "logits": logits}
    if isinstance(gram, StreamedGram):
        return collapse_of_stream(gram, classes.one_hot, columns, **last)
    arrays = {name: on_device(array) for name, array in last.items() if array is not None}
    found: dict[str, Array] = _neural_collapse(gram, on_device(classes.one_hot), columns, **arrays)
    return {name: found[name] for name in ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4") if name in found}


def _check_classifier(gram: Gram, columns: tuple[int, ...], weights: Array) -> None:
    if not isinstance(gram, FeatureGram | StreamedGram):
        raise ValueError("classifier= needs features: pass FeatureGram(phi), as a kernel does not know its axes.")
    width = gram.phi.shape[1]
    if _lacks_columns(weights, width, columns):
        raise ValueError(
            f"classifier of shape {jnp.shape(weights)} must be (D, C) with D={width} features and a column for each of "
            f"{len(columns)} classes."
        )


def _lacks_columns(array: Array, rows: int, columns: tuple[int, ...]) -> bool:
    shape = jnp.shape(array)
    return len(shape) != 2 or shape[0] != rows or shape[1] <= max(columns)


@partial(one_program, static_argnums=2)
def _neural_collapse(
    gram: Gram, one_hot: Array, columns: tuple[int, ...], classifier: Array | None = None, logits: Array | None = None
) -> dict[str, Array]:
    gram, _ = gram.normalised()
    count = len(columns)
    projections, means = means_of(gram, one_hot)
    norms = jnp.sqrt(jnp.diagonal(means))
    pairs = ~jnp.eye(count, dtype=bool)
    lengths = jnp.where(norms > 0, norms, jnp.nan)
    cosines = means / lengths[None] / lengths[:, None]
    found = {
        "nc1": separation(gram, one_hot, projections, means),
        "nc2_norms": norms.std() / jnp.where(norms.mean() > 0, norms.mean(), jnp.nan),
        "nc2_angles": jnp.mean(jnp.abs(cosines + 1 / (count - 1)), where=pairs),
    }
    if classifier is not None:
        found["nc3"] = _self_duality(gram, one_hot, classifier[:, np.asarray(columns)])
    if logits is not None:
        found["nc4"] = _disagreement(projections, means, columns, logits)
    return found


def _self_duality(gram: Gram, one_hot: Array, weights: Array) -> Float[Array, ""]:
    """NC3: how far the weights of the classifier are from the class means."""
    means = product(gram.center().features.T, averages(gram, one_hot)[1])  # type: ignore[attr-defined]
    units = []
    for matrix in (weights.astype(means.dtype), means):
        matrix = matrix * power_of_2(-exponent_of(largest(matrix)), matrix.dtype)
        units.append(matrix / jnp.linalg.norm(matrix))
    return jnp.sum((units[0] - units[1]) ** 2)


def _disagreement(projections: Array, means: Array, columns: tuple[int, ...], logits: Array) -> Float[Array, ""]:
    """NC4: how often the network and the nearest class mean disagree."""
    # This is ‖phi − m‖² − ‖phi‖². The second term is the same for all classes and does not change the nearest one.
    distances = jnp.diagonal(means)[None] - 2 * projections
    known = (jnp.trace(means) > 0) & jnp.isfinite(distances).all() & jnp.isfinite(logits).all()
    differ = jnp.asarray(columns)[jnp.argmin(distances, axis=1)] != jnp.argmax(logits, axis=1)
    return jnp.where(known, jnp.mean(differ, dtype=means.dtype), jnp.nan)


def _columns(classes: Classes) -> np.ndarray:
    """Columns of a classifier that belong to the classes.

    Labels that are non-negative integers are column numbers themselves; other labels are counted in sorted order.
    """
    names = classes.names
    are_columns = names.dtype.kind in "iu" and names.min() >= 0
    return names if are_columns else np.arange(len(names))
