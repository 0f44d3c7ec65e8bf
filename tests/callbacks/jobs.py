"""What tests/forks.py runs for the tests of resuming: a tracked training with checkpoints."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from helpers.arrays import normal

import nngp_plugins as nngp

LOADED = tensorstore  # which a tracker would import
STEPS, CHECKPOINT = 80, 6
OPENS = 25  # the step up to which a layer is zero
SCHEDULE = nngp.log_spaced(6) | nngp.every(3)
METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "kernel_velocity", "scale")}


def f(params, x):
    hidden = jnp.tanh(x @ params["hidden"])
    late = jnp.maximum(params["steps"] - OPENS, 0) * hidden
    return {"hidden": hidden, "head": hidden @ params["head"], "late": late}


def run(path, pause=0.0):
    """Trains from the last checkpoint, or from the start; every process has the same numbers."""
    x, y = normal(0, 12, 5), normal(1, 12, 2)
    params = {"hidden": normal(2, 5, 9), "head": normal(3, 9, 2), "steps": np.float32(0)}
    saved, start = Path(path) / "checkpoint.npz", 0
    if saved.exists():
        with np.load(saved) as arrays:
            start, params = int(arrays["step"]) + 1, {name: arrays[name] for name in params}

    @jax.jit
    def train_step(params):
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((f(params, x)["head"] - y) ** 2))(params)
        trained = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
        return {**trained, "steps": params["steps"] + 1}, loss

    with nngp.KernelTracker(
        f, x, schedule=SCHEDULE, metrics=METRICS, run=Path(path) / "run", keep_kernels=True
    ) as tracker:
        for step in range(start, STEPS):
            params, loss = train_step(params)
            tracker(step, params, loss=loss)
            if step % CHECKPOINT == CHECKPOINT - 1:
                tracker.flush()
                new = saved.with_name("new.npz")
                np.savez(new, step=step, **params)
                os.replace(new, saved)
            time.sleep(pause)
