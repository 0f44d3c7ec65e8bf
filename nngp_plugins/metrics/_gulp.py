"""How differently ridge regressions on two sets of features predict."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import Array

from ._catalogue import ROTATION, SCALE, TRANSLATION, VECTORS, entry
from ._change import relative_change
from ._features import FeatureGram
from ._gram import Gram
from ._to_grams import as_gram_pair, one_program, rounding

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="GULP distance",
    formula="‖P(K) − P(L)‖, P(K) = K (K + λ tr K I)⁻¹, of centred kernels",
    range="[0, √(rank K + rank L)]",
    cost=VECTORS,
    tells="how far apart the predictions of ridge regressions from the two features can be, for the worst target",
    misleads="it depends on λ: a small one counts all directions alike, as CCA does, and a large one only the largest",
    invariant=(ROTATION, SCALE, TRANSLATION),
    relative_to_reference=True,
)
def gulp(a: Gram | Array, b: Gram | Array, ridge: float = 0.01) -> Float[Array, ""]:
    """GULP distance: how differently ridge regressions on two sets of features predict, at most.

    The features are centred and scaled to ``tr Σ = 1``, as in the published code. Then ``P(K) y`` are the predictions
    for targets ``y``, and the distance is ``‖P(K) − P(L)‖``. It obeys the triangle inequality.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples.
        ridge: λ > 0, relative to the trace of the covariance ``Σ``.

    Returns:
        A scalar ≥ 0; nan for a constant or zero kernel.

    Raises:
        ValueError: different N, or a ridge that is not positive.

    Source: Boix-Adserà et al., "GULP: a prediction-based metric between representations", NeurIPS 2022, section 2.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> a, b = (nngp.metrics.FeatureGram(phi) for phi in jax.random.normal(jax.random.key(0), (2, 50, 10)))
        >>> round(float(nngp.metrics.gulp(a, a)), 3), round(float(nngp.metrics.gulp(a, b)), 1)
        (0.0, 3.5)
    """
    if not ridge > 0:
        raise ValueError(f"ridge={ridge} must be positive; it is relative to the trace of the covariance.")
    return _gulp(*as_gram_pair(a, b, at_least=2, turned=True), ridge)


@partial(one_program, static_argnames="ridge")
def _gulp(a: Gram, b: Gram, ridge: float) -> Float[Array, ""]:
    a, b = predictions(a, ridge), predictions(b, ridge)
    return relative_change(a, b) * b.frobenius()


def predictions(gram: Gram, ridge: float = 0.01) -> FeatureGram:
    """``P(K)`` of centred features, by its eigenvectors; nan for a constant kernel."""
    near = gram.normalised()[0]
    centered = near.center()
    rank = min(gram.n, gram.phi.shape[1]) if isinstance(gram, FeatureGram) else gram.n
    values, vectors = centered.top_eigh(rank)
    trace = centered.trace()
    values = jnp.maximum(values, 0) / jnp.where(trace > rounding(near), trace, jnp.nan)
    # The derivative of a root is infinite at zero.
    some = jnp.where(values == 0, 1, values)
    return FeatureGram(vectors * jnp.where(values == 0, 0, jnp.sqrt(some / (some + ridge)))[None])
