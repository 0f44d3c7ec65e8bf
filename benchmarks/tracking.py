"""What tracking costs a whole training."""

import time
from functools import partial
from itertools import count

import jax
import numpy as np
import optax
from harness import Case, Contender, ratio


def training(how, steps, probe):
    """Seconds of the loop; the floor adds as many forward passes of the probe as the tracker takes snapshots."""
    import nngp_plugins as nngp
    import zoo

    dataset = zoo.load("digits")
    x, labels, _ = dataset.probe(probe)
    f = zoo.get("linen/cnn", dataset.spec).f
    params, _ = f.init(jax.random.key(0), x[:1])
    optimizer = optax.adam(1e-3)
    images, classes = dataset.train_x, dataset.train_y
    measured = {0, *np.unique(np.geomspace(1, steps - 1, 19).round().astype(int)).tolist()}

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
        waiting = []

        def each(step, params, loss):
            if step in measured:
                waiting.append(forward(params, x))

        start = loop(each)
        jax.block_until_ready(waiting)
        return {"seconds": time.perf_counter() - start}

    # Steps go on over all rounds, so that one tracker with compiled programs measures at the same places in each.
    schedule = nngp.when(lambda step, scalars: (step - 1) % steps in measured)
    tracker, rounds = nngp.KernelTracker(f.layers(), x, targets=labels, schedule=schedule), count()
    tracker(0, params)  # compiles
    tracker.flush()

    def ours():
        first = 1 + next(rounds) * steps
        start = loop(lambda step, params, loss: tracker(first + step, params, loss=loss))
        tracker.flush()
        return {"seconds": time.perf_counter() - start}

    return {"floor": floor, "ours": ours}[how]


CASES = [
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
