"""Greydanus & Kobak 2024: four architectures on MNIST-1D."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..data import load
from . import Verdict

PUBLISHED = {"logistic": 32.0, "mlp": 68.0, "gru": 91.0, "cnn": 94.0}
TOLERANCE, RATE, BATCH = 3.0, 1e-2, 100
# PyTorch draws weights from a uniform distribution of variance 1 / (3 fan-in).
_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_Dense = partial(nn.Dense, kernel_init=_INIT)


def measure(steps: int = 6000, seeds: int = 3, models: tuple[str, ...] = tuple(PUBLISHED)) -> Verdict:
    """Trains the models of the authors' notebook with its settings: Adam at rate 0.01, batches of 100, 6,000 steps.

    The number is the test accuracy after the last step, the mean of the seeds.
    """
    found = {name: _accuracies(_MODELS[name](), steps, seeds) for name in models}
    lines = [
        f"{name}: {values.mean():.1f} % ± {values.std(ddof=1) / seeds**0.5 if seeds > 1 else 0:.1f}; published "
        f"{PUBLISHED[name]:.0f} %"
        for name, values in found.items()
    ]
    holds = all(abs(values.mean() - PUBLISHED[name]) <= TOLERANCE for name, values in found.items())
    return Verdict(holds, lines, {name: values.tolist() for name, values in found.items()})


class _MLP(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = nn.relu(_Dense(100)(x[..., 0]))
        return _Dense(10)(h + nn.relu(_Dense(100)(h)))


class _CNN(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for size in (5, 3, 3):
            x = nn.relu(nn.Conv(25, (size,), strides=2, padding=1, kernel_init=_INIT)(x))
        return _Dense(10)(x.reshape(len(x), -1))


class _GRU(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        both: Any = nn.Bidirectional(nn.RNN(nn.GRUCell(6)), nn.RNN(nn.GRUCell(6)))(x)
        return _Dense(10)(both.reshape(len(x), -1))


class _Logistic(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _Dense(10)(x[..., 0])


_MODELS: dict[str, Callable[[], nn.Module]] = {"logistic": _Logistic, "mlp": _MLP, "gru": _GRU, "cnn": _CNN}


def _accuracies(model: nn.Module, steps: int, seeds: int) -> np.ndarray:
    """The test accuracy of each seed, in percent."""
    data = load("mnist1d")
    x, y, test_x, test_y = map(jnp.asarray, (data.train_x, data.train_y, data.test_x, data.test_y))
    optimizer = optax.adam(RATE)

    @jax.jit
    @jax.vmap
    def trained(key: Array) -> Array:
        def step(carry: Any, i: Array) -> Any:
            params, opt_state = carry
            rows = (i * BATCH + jnp.arange(BATCH)) % len(x)

            def loss(params: Any) -> Array:
                outputs = model.apply(params, x[rows])
                return optax.softmax_cross_entropy_with_integer_labels(outputs, y[rows]).mean()

            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        params = model.init(key, x[:1])
        params = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0]
        outputs: Any = model.apply(params, test_x)
        return (outputs.argmax(axis=1) == test_y).mean()

    return 100 * np.asarray(trained(jax.random.split(jax.random.key(0), seeds)), float)
