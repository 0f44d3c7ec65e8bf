"""Optimizers in which each parameter learns at its own rate, as the parametrisation says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from .choices import CHOICES
from .parametrisation import Scale
from .spec import check_name

# The direction of a step, before the learning rate; and whether it follows the size of gradients, as SGD does.
_Direction = Callable[[], optax.GradientTransformation]
DIRECTIONS: dict[str, tuple[_Direction, bool]] = {
    "adam": (optax.scale_by_adam, False),
    "adamw": (optax.scale_by_adam, False),
    "lion": (optax.scale_by_lion, False),
    "sgd": (optax.identity, True),
    "momentum": (lambda: optax.trace(0.9), True),
}
WEIGHT_DECAY = 1e-4


def optimizer(
    name: str, learning_rate: optax.ScalarOrSchedule, scales: Sequence[Scale]
) -> optax.GradientTransformation:
    """Returns an optimizer whose steps are scaled, one factor a parameter.

    The decay of AdamW is not scaled, so that it does not depend on the width (Yang et al. 2022, section 4 and B.3).

    Args:
        name: a choice of :data:`zoo.choices.CHOICES`.
        learning_rate: the rate, or a schedule of it.
        scales: the scale of each parameter, in the order of the leaves.

    Raises:
        ValueError: there is no such optimizer.
    """
    check_name("optimizer", name, DIRECTIONS)
    direction, follows_size = DIRECTIONS[name]
    rates = [scale.sgd if follows_size else scale.adam for scale in scales]
    decay = [optax.add_decayed_weights(WEIGHT_DECAY)] if name == "adamw" else []
    return optax.chain(direction(), _scale_by(rates), *decay, optax.scale_by_learning_rate(learning_rate))


def _scale_by(rates: Sequence[float]) -> optax.GradientTransformation:
    def update(updates: Any, params: Any = None) -> Any:
        leaves, structure = jax.tree.flatten(updates)
        return jax.tree.unflatten(structure, [u if r == 1 else r * u for r, u in zip(rates, leaves, strict=True)])

    return optax.stateless(update)


def schedule(name: str, learning_rate: float, steps: int) -> optax.ScalarOrSchedule:
    """Returns a learning rate that changes over training.

    Args:
        name: a choice of :data:`zoo.choices.CHOICES`; ``"warmup-cosine"`` rises over the first tenth of the steps.
        learning_rate: the highest rate.
        steps: number of steps.

    Raises:
        ValueError: there is no such schedule.
    """
    check_name("schedule", name, CHOICES["schedule"])
    if name == "cosine":
        return optax.cosine_decay_schedule(learning_rate, steps)
    if name == "linear":
        return optax.linear_schedule(learning_rate, 0.0, steps)
    if name == "warmup-cosine":
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 10), steps)
    return learning_rate
