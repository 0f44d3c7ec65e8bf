"""What tracking costs: a snapshot of every layer, calls that do not measure, a whole training."""

import time
from functools import partial
from itertools import count

import jax
import numpy as np
import optax
from harness import Case, Contender, Target, ratio
from resnet18 import net, weights_and_images

SPECTRAL = ("effective_rank", "stable_rank", "power_law_exponent")
CALLS = 10_000


def resnet(n):
    import nngp_plugins as nngp

    params, state, x = weights_and_images(n)
    return nngp.from_haiku(net, is_training=False), params, state, x, np.arange(n) % 10


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


def idle_calls(calls):
    import nngp_plugins as nngp

    params = {"w": np.eye(4, dtype=np.float32)}
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    tracker = nngp.KernelTracker(lambda params, x: x @ params["w"], x, schedule=nngp.log_spaced() | nngp.every(10**9))
    steps, loss = count(), jax.numpy.float32(0.5)
    tracker(next(steps), params, loss=loss)
    for _ in range(10**4 + 1):  # past the dense steps of the schedule
        tracker(next(steps), params, loss=loss)
    tracker.flush()

    def run():
        start = time.perf_counter()
        for _ in range(calls):
            tracker(next(steps), params, loss=loss)
        return {"seconds": (time.perf_counter() - start) / calls}

    return run


def training(how, steps, probe):
    """Seconds of the loop; the floor adds as many forward passes of the probe as the tracker takes snapshots."""
    import nngp_plugins as nngp
    from zoo.registry import get_dataset, get_model

    dataset = get_dataset("digits")
    x, labels = dataset.probe(probe)
    f = get_model("linen/cnn", dataset)
    params, _ = f.init(jax.random.key(0), x[:1])
    optimizer = optax.adam(1e-3)
    images, classes = dataset.train_x, dataset.train_y
    schedule = nngp.at(*np.unique(np.geomspace(1, steps - 1, 19).round().astype(int)))

    @jax.jit
    def train_step(params, opt_state, x, y):
        def loss_fn(params):
            return optax.softmax_cross_entropy_with_integer_labels(f(params, x), y).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    forward = jax.jit(f)
    order = np.random.default_rng(0).integers(0, len(images), (steps, 128))

    def loop(each):
        carry = params, optimizer.init(params)
        start = time.perf_counter()
        for step in range(steps):
            *carry, loss = train_step(*carry, images[order[step]], classes[order[step]])
            each(step, carry[0], loss)
        jax.block_until_ready(carry)
        return start

    def floor():
        waiting, before = [], [0]

        def each(step, params, loss):
            if step == 0 or schedule.due(step, before[0]):
                waiting.append(forward(params, x))
            before[0] = step

        start = loop(each)
        jax.block_until_ready(waiting)
        return {"seconds": time.perf_counter() - start}

    tracker = nngp.KernelTracker(f.layers(), x, targets=labels, schedule=nngp.every(10**9))
    tracker(0, params)  # compiles
    tracker.flush()

    def ours():
        # as a new tracker would, with the programs of the first
        tracker._seen, tracker._before, tracker._schedule, tracker._last = None, None, schedule, -1
        start = loop(lambda step, params, loss: tracker(step, params, loss=loss))
        tracker.flush()
        return {"seconds": time.perf_counter() - start}

    return {"floor": floor, "ours": ours}[how]


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
    Case(
        "a call that does not measure, of {calls}",
        {"ours": Contender(idle_calls, "`tracker(step, params, loss=loss)`")},
        [Target("seconds", lambda n, _: n["ours"], at_most=20e-6)],
        sizes={"calls": CALLS},
        quick={"calls": 100},
    ),
    Case(
        "{steps} training steps of linen/cnn with 20 snapshots of a probe of {probe}",
        {
            "floor": Contender(partial(training, "floor"), "the loop and 20 jitted forward passes of the probe"),
            "ours": Contender(partial(training, "ours"), "the loop with a tracker of every layer and default metric"),
        },
        [ratio("ours", "floor", at_most=1.05)],
        sizes={"steps": 1000, "probe": 250},
        quick={"steps": 30, "probe": 30},
    ),
]
