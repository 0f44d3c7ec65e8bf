"""What a call of a tracker costs that does not measure."""

import time
from itertools import count

import jax
import numpy as np
from harness import Case, Contender, Target

CALLS = 10_000


def idle_calls(calls):
    import nngp_plugins as nngp

    params, loss, steps = {"w": np.eye(4, dtype=np.float32)}, jax.numpy.float32(0.5), count()
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    schedule = nngp.log_spaced() | nngp.every(10**9)
    tracker = nngp.KernelTracker(lambda params, x: x @ params["w"], x, schedule=schedule)
    for _ in range(10**4 + 1):  # past the dense steps of the schedule
        tracker(next(steps), params, loss=loss)
    tracker.flush()

    def run():
        start = time.perf_counter()
        for _ in range(calls):
            tracker(next(steps), params, loss=loss)
        return {"seconds": (time.perf_counter() - start) / calls}

    return run


CASES = [
    Case(
        "a call that does not measure, of {calls}",
        {"ours": Contender(idle_calls, "`tracker(step, params, loss=loss)`")},
        [Target("seconds", lambda n, _: n["ours"], at_most=10e-6)],
        sizes={"calls": CALLS},
        quick={"calls": 100},
    ),
]
