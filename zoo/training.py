"""Training a model of the zoo: one compiled step, the same batches for the same seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array

from .data import Dataset
from .model import Model
from .tasks import TASKS


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
        params: parameters.
        state: the other values of the model, such as running statistics.
        opt_state: the state of the optimizer.
    """

    params: Any
    state: Any
    opt_state: Any


class Training:
    """How a model is trained on a data set.

    Args:
        model: the model.
        data: the data.
        optimizer: such as ``model.optimizer("adam", 1e-3)``.
        batch_size: number of examples in each step.

    The functions are compiled once for all seeds; a seed decides parameters, batches and dropout.

    Example:
        >>> import zoo
        >>> from zoo.training import Training
        >>> model = zoo.get("linen/mlp", zoo.load("moons").spec, width=32)
        >>> training = Training(model, zoo.load("moons"), model.optimizer("adam", 1e-2))
        >>> state = training.start(seed=0)
        >>> state, loss = training.run(state, steps=50, seed=0)
        >>> training.score(state) > 0.8
        True
    """

    def __init__(
        self,
        model: Model,
        data: Dataset,
        optimizer: optax.GradientTransformation,
        *,
        batch_size: int = 128,
    ):
        self.model, self.data, self.task = model, data, TASKS[model.task]
        self.batch_size = min(batch_size, len(data.train_x))
        self._order: tuple[tuple[int, int], np.ndarray] = ((0, -1), np.zeros(0, int))
        task, forward = self.task, model.forward

        def loss_fn(params: Any, state: Any, x: Array, y: Array, rng: Array) -> tuple[Array, Any]:
            outputs, new = forward(params, state, x, rng)
            return task.loss(outputs, x, y), new

        @jax.jit
        def update(now: TrainState, x: Array, y: Array, rng: Array) -> tuple[TrainState, Array]:
            (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(now.params, now.state, x, y, rng)
            updates, opt_state = optimizer.update(grads, now.opt_state, now.params)
            return TrainState(optax.apply_updates(now.params, updates), state, opt_state), loss

        # One program makes the state of the optimizer, where JAX would compile one for each shape of a parameter.
        self._update, self._first = update, jax.jit(optimizer.init)
        self._evaluate = jax.jit(
            lambda params, state, x, y: tuple(g(model.f(params, x, state=state), x, y) for g in (task.loss, task.score))
        )

    def start(self, seed: int) -> TrainState:
        """Returns the state before the first step; running statistics are those of its batch."""
        params, state = self.model.init(jax.random.key(seed), self.batch(1, seed)[0])
        return TrainState(params, state, self._first(params))

    def batch(self, step: int, seed: int) -> tuple[Any, np.ndarray]:
        """Returns the inputs and labels of a step, from 1 on. Every epoch takes each example once, in a new order."""
        n = len(self.data.train_x)
        each = n // self.batch_size
        epoch, i = divmod(step - 1, each)
        if self._order[0] != (seed, epoch):
            self._order = (seed, epoch), np.random.default_rng((seed, epoch)).permutation(n)
        rows = np.sort(self._order[1][i * self.batch_size : (i + 1) * self.batch_size])
        return self.data.train_x[rows], self.data.train_y[rows]

    def step(self, now: TrainState, step: int, seed: int) -> tuple[TrainState, Array]:
        """Returns the state after a step, from 1 on, and the loss before it; it is a function of its arguments."""
        return self._update(now, *self.batch(step, seed), jax.random.fold_in(jax.random.key(seed), step))

    def run(self, now: TrainState, steps: int, seed: int) -> tuple[TrainState, Array]:
        """Returns the state after ``steps >= 1`` steps from the start, and the loss before the last of them."""
        for step in range(1, steps + 1):
            now, loss = self.step(now, step, seed)
        return now, loss

    def first_loss(self, now: TrainState, seed: int) -> Array:
        """Returns the loss of the first batch."""
        return self._evaluate(now.params, now.state, *self.batch(1, seed))[0]

    def score(self, now: TrainState, examples: int = 2000) -> float:
        """Returns the score on the test examples, at most ``examples`` of them, in batches."""
        n, total = min(examples, len(self.data.test_x)), 0.0
        size = min(n, 500)
        for i in range(0, n, size):
            rows = slice(i, min(i + size, n))
            part = self._evaluate(now.params, now.state, self.data.test_x[rows], self.data.test_y[rows])[1]
            total += float(part) * (rows.stop - rows.start)
        return total / n
