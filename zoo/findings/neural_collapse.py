"""Papyan et al. 2020: features go on to collapse after the training error is zero."""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from nngp_plugins import metrics

from ..data import load
from . import Verdict

BATCH, DEPTH = 125, 3


def measure(epochs: int = 300, each: int = 100, width: int = 256, rate: float = 0.1, decay: float = 5e-3) -> Verdict:
    """Trains MLPs on digits, and measures NC1 of their last hidden layer on the training examples after every epoch.

    As in the paper, classes have equally many examples, networks have batch normalisation, and the optimizer is SGD
    with momentum 0.9, whose rate falls by a factor of 10 after each third. The weight decay is ten times that of the
    paper: features collapse as rate · decay · steps grows, and there are twenty times fewer steps here.

    It holds if NC1 at the end is at most a tenth of what it was when the training error first was zero. Two controls
    say what it takes: no weight decay, and no batch normalisation.

    Args:
        epochs: number of passes through the examples.
        each: examples of each class.
        width: units of each of the three hidden layers.
        rate: the first learning rate.
        decay: weight decay.
    """
    settings = {
        "batch normalisation, weight decay": (True, decay),
        "without weight decay": (True, 0.0),
        "without batch normalisation": (False, decay),
    }
    lines, numbers = [], {}
    for name, (norm, decay) in settings.items():
        nc1, wrong = _trained(_MLP(width, norm), epochs, each, rate, decay)
        solved = int(np.argmax(wrong == 0)) if (wrong == 0).any() else None
        numbers[name] = {"nc1": nc1.tolist(), "wrong": wrong.tolist(), "solved": solved and solved + 1}
        if solved is None:
            lines.append(f"{name}: the training error is still {wrong[-1]:.4f} after {epochs} epochs")
        else:
            then = f"{nc1[solved]:.3g} after {solved + 1} epochs, where the training error first is zero"
            lines.append(f"{name}: NC1 is {then}, and {nc1[-1]:.3g} after {epochs}")
    nc1, solved = (next(iter(numbers.values()))[key] for key in ("nc1", "solved"))
    return Verdict(solved is not None and nc1[-1] <= nc1[solved - 1] / 10, lines, numbers)


class _MLP(nn.Module):
    width: int
    norm: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Returns the last hidden layer and the logits."""
        x = x.reshape(len(x), -1)
        for _ in range(DEPTH):
            x = nn.Dense(self.width, kernel_init=nn.initializers.he_normal())(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x) if self.norm else x)
        return x, nn.Dense(10)(x)


def _trained(model: _MLP, epochs: int, each: int, rate: float, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """NC1 and the training error after every epoch."""
    data = load("digits")
    rows = np.concatenate([np.flatnonzero(data.train_y == k)[:each] for k in range(data.classes)])
    x, y = jnp.asarray(data.train_x[rows]), jnp.asarray(data.train_y[rows])
    steps = len(x) // BATCH
    falls = {steps * epochs // 3: 0.1, 2 * steps * epochs // 3: 0.1}
    schedule = optax.piecewise_constant_schedule(rate, falls)
    optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(schedule, momentum=0.9))

    def step(now: Any, rows: Array) -> Any:
        variables, opt_state = now
        state, params = flax.core.pop(variables, "params")

        def loss(params: Any) -> Any:
            (_, logits), new = model.apply({"params": params, **state}, x[rows], True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean(), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return ({"params": optax.apply_updates(params, updates), **new}, opt_state), None

    def epoch(now: Any, key: Array) -> Any:
        order = jax.random.permutation(key, len(x))[: steps * BATCH]
        now, _ = jax.lax.scan(step, now, order.reshape(steps, BATCH))
        outputs: Any = model.apply(now[0], x, False)
        features, logits = outputs
        nc1 = metrics.class_separation(metrics.FeatureGram(metrics.features(features)), y)
        return now, (nc1, (logits.argmax(axis=1) != y).mean())

    variables = model.init(jax.random.key(0), x, True)
    keys = jax.random.split(jax.random.key(1), epochs)
    curves = jax.lax.scan(epoch, (variables, optimizer.init(variables["params"])), keys)[1]
    nc1, wrong = (np.asarray(curve, float) for curve in curves)
    return nc1, wrong
