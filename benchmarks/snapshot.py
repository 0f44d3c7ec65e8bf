"""What a tracker's snapshot of every layer costs over the jitted forward pass of the probe."""

from functools import partial
from itertools import count

import jax
from harness import Case, Contender, ratio

CALLS = 10


def model(name, probe):
    from zoo.registry import get_dataset, get_model

    dataset = get_dataset("digits")
    x, _ = dataset.probe(probe)
    f = get_model(name, dataset)
    return f, f.init(jax.random.key(0), x[:1])[0], x


def floor(name, probe):
    f, params, x = model(name, probe)
    forward = jax.jit(f)

    def run():
        for _ in range(CALLS):
            forward(params, x).block_until_ready()

    return run


def ours(name, probe):
    import nngp_plugins as nngp

    f, params, x = model(name, probe)
    tracker, steps = nngp.KernelTracker(f.layers(), x, schedule=nngp.every(1)), count()

    def run():
        for _ in range(CALLS):
            tracker(next(steps), params)
            tracker.flush()

    return run


CASES = [
    Case(
        f"{CALLS} snapshots of {name}, a probe of {{probe}} digits",
        {
            "floor": Contender(partial(floor, name), f"jitted forward pass, {CALLS} times"),
            "ours": Contender(partial(ours, name), "`tracker(step, params)` and `flush`, every layer"),
        },
        [ratio("ours", "floor")],
        sizes={"probe": 250},
        quick={"probe": 50},
        rounds=15,
    )
    for name in ("linen/mlp", "linen/cnn")
]
