"""What models are trained for: a loss a task, and how good the outputs are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array


@dataclass(frozen=True)
class Task:
    """A loss and a score of the outputs ``y`` of a model.

    Attributes:
        loss: ``(y, x, labels) -> mean loss``.
        score: ``(y, x, labels) -> mean score``, larger is better.
        name: what the score is called.
    """

    loss: Callable[[Any, Array, Array], Array]
    score: Callable[[Any, Array, Array], Array]
    name: str


def _cross_entropy(y: Array, x: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(y.astype(jnp.float32), labels).mean()


def _accuracy(y: Array, x: Array, labels: Array) -> Array:
    return (y.argmax(axis=-1) == labels).mean()


def _reconstruction(y: Any, x: Array, labels: Array) -> Array:
    return ((y["reconstruction"] - x).astype(jnp.float32) ** 2).mean()


TASKS: dict[str, Task] = {
    "classify": Task(_cross_entropy, _accuracy, "accuracy"),
    "next token": Task(
        lambda y, x, labels: _cross_entropy(y[:, :-1], x, x[:, 1:]),
        lambda y, x, labels: _accuracy(y[:, :-1], x, x[:, 1:]),
        "accuracy",
    ),
    "reconstruct": Task(
        _reconstruction,
        lambda y, x, labels: 1 - _reconstruction(y, x, labels) / x.astype(jnp.float32).var(),
        "explained_variance",
    ),
}
