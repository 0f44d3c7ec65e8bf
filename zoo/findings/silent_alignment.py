"""Atanasov et al. 2022: the kernel aligns with the target while the loss still stands."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nngp_plugins import metrics

from . import Verdict

EXAMPLES, INPUTS, WIDTH = 100, 20, 50


def measure(small: float = 0.03, large: float = 0.3, seeds: int = 5, steps: int = 2500) -> Verdict:
    """Trains a linear network with two hidden layers on whitened inputs and a linear target, by gradient descent.

    The kernel is that of the last hidden layer, and its alignment with the target is not centred.

    Args:
        small: factor on the standard deviation ``1/√fan_in`` of the small initial weights.
        large: the same of the large ones.
        seeds: number of data sets and networks.
        steps: number of steps at a rate of 0.05.
    """
    numbers: dict[str, Any] = {}
    lines = []
    for name, scale in (("small", small), ("large", large)):
        losses, alignments = map(np.asarray, _trained(jax.random.split(jax.random.key(0), seeds), scale, steps))
        aligned = np.argmax(alignments >= 0.9 * alignments[:, -1:], axis=1)
        fallen = np.argmax(losses < 0.9 * losses[:, :1], axis=1)
        numbers[name] = {"aligned": aligned.tolist(), "fallen": fallen.tolist()}
        numbers[name] |= {"alignment": alignments[:, -1].tolist(), "loss": losses[:, -1].tolist()}
        lines.append(
            f"{name} init ({scale} / √fan-in): 90 % of the final alignment at step {np.median(aligned):.0f}, "
            f"the loss down by 10 % at step {np.median(fallen):.0f} (medians of {seeds} seeds)"
        )
    first = {name: np.less(of["aligned"], of["fallen"]) for name, of in numbers.items()}
    return Verdict(bool(first["small"].all() and not first["large"].any()), lines, numbers)


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(0, None, None))
def _trained(key: Array, scale: Array, steps: int) -> tuple[Array, Array]:
    """Loss and alignment at each step."""
    data, target, init = jax.random.split(key, 3)
    x = jax.random.normal(data, (EXAMPLES, INPUTS))
    x = jnp.linalg.svd(x - x.mean(axis=0), full_matrices=False)[0] * EXAMPLES**0.5
    beta = jax.random.normal(target, (INPUTS, 1))
    y = x @ (beta / jnp.linalg.norm(beta))
    shapes = ((INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))
    weights = [
        scale * jax.random.normal(k, shape) / shape[0] ** 0.5
        for k, shape in zip(jax.random.split(init, len(shapes)), shapes, strict=True)
    ]

    def hidden(weights: list[Array]) -> Array:
        return x @ weights[0] @ weights[1]

    def step(weights: list[Array], _: None) -> tuple[list[Array], tuple[Array, Array]]:
        loss, grads = jax.value_and_grad(lambda w: jnp.mean((hidden(w) @ w[2] - y) ** 2) / 2)(weights)
        kernel, target = metrics.FeatureGram(hidden(weights)), metrics.FeatureGram(y)
        alignment = metrics.alignment(kernel, target, center=False)
        return [w - 0.05 * g for w, g in zip(weights, grads, strict=True)], (loss, alignment)

    curves: tuple[Array, Array] = jax.lax.scan(step, weights, length=steps)[1]
    return curves
