"""Training a model of the zoo with optax while its kernels are tracked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from nngp_plugins import KernelTracker, ModelFn

from .data import Dataset


def train(
    f: ModelFn,
    dataset: Dataset,
    tracker: KernelTracker,
    *,
    steps: int,
    learning_rate: float = 3e-3,
    batch_size: int = 128,
    seed: int = 0,
    on_step: Callable[[], Any] = lambda: None,
) -> float:
    """Trains with Adam on the cross entropy, and tracks from initialisation (step 0) to the last step.

    Args:
        f: the model, from inputs ``(N, H, W, C)`` to logits ``(N, classes)``.
        dataset: the data to train on.
        tracker: called at every step with the parameters and the loss, and with the test accuracy when it measures. It
            is closed at the end.
        steps: number of updates.
        learning_rate: learning rate of Adam.
        batch_size: number of examples in each update.
        seed: random seed of the parameters and of the order of examples.
        on_step: called after every update.

    Returns:
        The test accuracy after the last step.
    """
    params, state = f.init(jax.random.key(seed), dataset.train_x[:1])
    optimizer = optax.adam(learning_rate)
    opt_state = optimizer.init(params)
    x, y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)

    def loss_fn(params: Any, x: Array, y: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(f(params, x, state=state), y).mean()

    @jax.jit
    def update(params: Any, opt_state: Any, batch: Array) -> tuple[Any, Any, Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, x[batch], y[batch])
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    @jax.jit
    def accuracy(params: Any) -> Array:
        return (f(params, dataset.test_x, state=state).argmax(axis=-1) == dataset.test_y).mean()

    with tracker:
        first_loss = jax.jit(partial(loss_fn, x=x[:batch_size], y=y[:batch_size]))(params)
        tracker(0, params, state=state, loss=first_loss, test_accuracy=accuracy(params))
        for step, batch in enumerate(_batches(len(x), batch_size, steps, seed), start=1):
            params, opt_state, loss = update(params, opt_state, batch)
            scalars = {"loss": loss}
            if tracker.due(step) or step == steps:
                scalars["test_accuracy"] = accuracy(params)
            tracker(step, params, state=state, **scalars)
            on_step()
    return float(accuracy(params))


def _batches(n: int, size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the indices of each batch. Every epoch takes each example once, in a new order."""
    rng, order = np.random.default_rng(seed), np.zeros(0, int)
    for _ in range(steps):
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(n)])
        batch, order = order[:size], order[size:]
        yield batch
