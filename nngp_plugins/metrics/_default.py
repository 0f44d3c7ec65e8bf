"""What a tracker logs of every layer unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax import Array

from ._change import kernel_distance, relative_change
from ._classes import class_separation, target_alignment
from ._gram import Gram
from ._regression import log_marginal_likelihood, regression_accuracy
from ._similarity import cka
from ._spectrum import effective_rank, participation_ratio, power_law_exponent, rank_bound, scale, stable_rank
from ._targets import Classes

Metric = Callable[[Gram, Gram], Array]
"""Takes the Gram of a layer and that of the same layer at the first snapshot (but :class:`Velocity`); a scalar."""


def _alone(metric: Callable[[Gram], Array]) -> Metric:
    """A metric that does not look at the reference."""
    return lambda a, reference: metric(a)


def _power_law(a: Gram) -> Array:
    """Over ranks 11 to 50, or the middle half of fewer: far from the first, which is that of the mean."""
    rank = rank_bound(a)
    if rank < 2:
        return jnp.full_like(a.trace(), jnp.nan)
    first, last = (11, 50) if rank >= 50 else (1 + rank // 4, 1 + max(3 * rank // 4, rank // 4 + 1))
    return power_law_exponent(a, (first, last))


@dataclass(frozen=True)
class Velocity:
    """How fast a kernel moves: a distance that a tracker takes to the snapshot before, over the steps between.

    Attributes:
        distance: of the Grams of two snapshots; ``partial(kernel_distance, center=True)`` for
            :func:`centered_kernel_velocity`.
    """

    distance: Metric = kernel_distance

    def __call__(self, a: Gram, previous: Gram) -> Array:
        return self.distance(a, previous)


DEFAULT: Mapping[str, Metric] = MappingProxyType(
    {
        "cka": cka,
        "relative_change": relative_change,
        "kernel_distance": kernel_distance,
        "kernel_velocity": Velocity(),
        "scale": _alone(scale),
        "effective_rank": _alone(effective_rank),
        "participation_ratio": _alone(participation_ratio),
        "stable_rank": _alone(stable_rank),
        "power_law_exponent": _alone(_power_law),
    }
)
"""What needs no targets: similarity to the first snapshot, size, and spread. With :func:`of_targets`, thirteen."""


def of_targets(y: Any) -> dict[str, Metric]:
    """The metrics of a tracker that is given targets: how the kernel fits them.

    Args:
        y: labels ``(N,)`` or one-hot ``(N, C)``; of real targets, those metrics that need no classes.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> list({**nngp.metrics.DEFAULT, **nngp.metrics.of_targets(jnp.array([0, 1, 0, 1]))})[-4:]
        ['target_alignment', 'class_separation', 'regression_accuracy', 'log_marginal_likelihood']
    """
    metrics: tuple[Any, ...] = (target_alignment, log_marginal_likelihood)
    with suppress(ValueError):  # of no classes
        Classes.of(y, len(y))
        metrics = (target_alignment, class_separation, regression_accuracy, log_marginal_likelihood)
    return {metric.__name__: _alone(partial(metric, y=y)) for metric in metrics}
