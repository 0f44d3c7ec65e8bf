"""What a snapshot of every layer costs over the jitted forward pass of the probe, and what its compilation takes."""

import time
from functools import partial
from itertools import count

import jax
import numpy as np
from harness import Case, Contender, ratio
from resnet18 import net, weights_and_images

SPECTRAL = ("effective_rank", "stable_rank", "power_law_exponent")


def forward_of_resnet(n):
    params, state, x = weights_and_images(n)
    forward = jax.jit(lambda params, state, x: net.apply(params, state, None, x, is_training=False)[0])
    return lambda: forward(params, state, x).block_until_ready()


def snapshot_of_resnet(without, n):
    import nngp_plugins as nngp

    params, state, x = weights_and_images(n)
    every = {**nngp.metrics.DEFAULT, **nngp.metrics.of_targets(np.arange(n) % 10)}
    metrics = {name: metric for name, metric in every.items() if name not in without}
    f = nngp.from_haiku(net, is_training=False).layers()
    tracker, steps = nngp.KernelTracker(f, x, schedule=nngp.every(1), metrics=metrics), count()

    def run():
        tracker(next(steps), params, state=state)
        tracker.flush()

    return run


def first_over_second(setup, n):
    """Seconds that the first run takes longer than the second: those of compilation."""
    run = setup(n)

    def measured():
        start = time.perf_counter()
        run()
        second = time.perf_counter()
        run()
        return {"seconds": 2 * second - start - time.perf_counter()}

    return measured


CASES = [
    Case(
        f"a snapshot of every layer of Haiku ResNet-18, a probe of {{n}}, {what}",
        {
            "floor": Contender(forward_of_resnet, "jitted forward pass of the probe"),
            "ours": Contender(partial(snapshot_of_resnet, without), "`tracker(step, params, state=state)` and `flush`"),
        },
        [ratio("ours", "floor", at_most=target)],
        sizes={"n": 512},
        quick={"n": 8},
    )
    for what, without, target in (
        ("metrics without a spectrum", SPECTRAL, 1.2),
        ("every default metric", (), 1.4),
    )
] + [
    Case(
        "compilation of the first snapshot of Haiku ResNet-18, a probe of {n}",
        {
            "floor": Contender(
                partial(first_over_second, forward_of_resnet), "that of the forward pass", warm=False, fresh=True
            ),
            "ours": Contender(
                partial(first_over_second, partial(snapshot_of_resnet, ())),
                "that of both programs",
                warm=False,
                fresh=True,
            ),
        },
        [ratio("ours", "floor", at_most=3)],
        sizes={"n": 64},
        quick={"n": 8},
        rounds=5,
    ),
]
