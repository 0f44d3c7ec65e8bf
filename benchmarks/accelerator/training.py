"""A training of a Haiku ResNet-18 with snapshots of every layer, and one snapshot alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _device import Compilations, compilations, jitted
from cka import done
from harness import Case, Contender, Target, ratio

from ._nets import forward_of, images, network, some_more, weights_of


@dataclass(frozen=True)
class Training:
    """A training step, the forward pass of the probe, and how often it is wanted."""

    start: Any
    train_step: Callable[..., Any]
    forward: Callable[..., Any]
    net: Any
    probe: jax.Array
    steps: int
    every: int

    def loop(self, each: Callable[[int, Any], None]) -> float:
        """The training; returns its start, and waits for all of its steps at the end only."""
        carry, start = self.start, time.perf_counter()
        for step in range(self.steps):
            carry = self.train_step(*carry)
            each(step, carry)
        jax.block_until_ready(carry)
        return start

    def loop_by_steps(self, each: Callable[[int, Any], None]) -> list[float]:
        """The seconds of each step; waits for each."""
        carry, seconds = self.start, []
        for step in range(self.steps):
            start = time.perf_counter()
            carry = self.train_step(*carry)
            each(step, carry)
            jax.block_until_ready(carry)
            seconds.append(time.perf_counter() - start)
        return seconds


@lru_cache(maxsize=1)
def training(net, side, n, steps, snapshots):
    """With a batch of ``n`` images, which are the probe too."""
    net, optimizer, x = network(net, 10), optax.sgd(0.01, momentum=0.9), images(n, side)
    params, state = weights_of(net, side)
    labels = jnp.arange(n) % 10

    @jax.jit
    def train_step(params, state, opt_state):
        def loss_fn(params):
            logits, new_state = net.apply(params, state, None, x, is_training=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_state

        grads, new_state = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), new_state, opt_state

    start = params, state, jax.jit(optimizer.init)(params)
    return Training(start, train_step, forward_of(net), net, x, steps, steps // snapshots)


@dataclass(frozen=True)
class Tracked:
    """A tracker after its first snapshot, of step 0.

    Attributes:
        tracker: measures every ``every`` steps.
        starts: where each next loop starts: steps go on over all rounds, so that one tracker serves all of them.
        first: what the first snapshot compiled.
    """

    tracker: Any
    starts: Any
    first: Compilations


@lru_cache(maxsize=1)
def tracked(**sizes):
    import nngp_plugins as nngp

    t = training(**sizes)
    layers = nngp.from_haiku(t.net, is_training=False).layers()
    labels = jnp.arange(len(t.probe)) % 10
    tracker = nngp.KernelTracker(layers, t.probe, targets=labels, schedule=nngp.every(t.every))
    params, state, _ = t.start
    with compilations() as first:
        tracker(0, params, state=state)
        tracker.flush()
    return Tracked(tracker, count(t.steps, t.steps), first)


def compilation_of_forward(net, side, n, **_):
    net = network(net, 10)
    params, state = weights_of(net, side)
    x = jax.ShapeDtypeStruct((some_more(n), side, side, 3), jnp.float32)

    def run():
        with compilations() as made:
            forward_of(net).lower(params, state, x).compile()
        return {"seconds": made.seconds, "notes": f"programs {made.programs}"}

    return run


def compilation_of_snapshot(**sizes):
    def run():
        made = tracked(**sizes)
        layers = len(made.tracker.history.layers)
        return {"seconds": made.first.seconds, "notes": f"programs {made.first.programs}, layers {layers}"}

    return run


def passes_of_probe(t, waiting):
    """What the floor does beside training."""

    def each(step, carry):
        if step % t.every == 0:
            waiting.append(t.forward(*carry[:2], t.probe))

    return each


def snapshots(t, tracker, first):
    def each(step, carry):
        params, state, _ = carry
        tracker(first + step, params, state=state)

    return each


def loop_with_passes(**sizes):
    t = training(**sizes)

    def run():
        waiting = []
        start = t.loop(passes_of_probe(t, waiting))
        jax.block_until_ready(waiting)
        return {"seconds": time.perf_counter() - start}

    return run


def loop_with_tracker(**sizes):
    t, made = training(**sizes), tracked(**sizes)

    def run():
        start = t.loop(snapshots(t, made.tracker, next(made.starts)))
        trained = time.perf_counter()
        made.tracker.flush()
        end = time.perf_counter()
        return {"seconds": end - start, "flush": end - trained}

    return run


def steps_of(seconds):
    return {"seconds": median(seconds), "slowest": max(seconds) / median(seconds)}


def steps_with_passes(**sizes):
    t = training(**sizes)
    return lambda: steps_of(t.loop_by_steps(passes_of_probe(t, [])))


def steps_with_tracker(**sizes):
    t, made = training(**sizes), tracked(**sizes)

    def run():
        seconds = t.loop_by_steps(snapshots(t, made.tracker, next(made.starts)))
        made.tracker.flush()
        return steps_of(seconds)

    return run


def one_pass(**sizes):
    t = training(**sizes)
    params, state, _ = t.start
    return done(lambda: t.forward(params, state, t.probe))


def one_pass_and_grams(**sizes):
    import nngp_plugins as nngp

    t = training(**sizes)
    params, state, _ = t.start
    f = nngp.from_haiku(t.net, is_training=False).layers()

    @jitted
    def run(params, state, x):
        layers = [y.reshape(len(y), -1) for y in f(params, x, state=state).values()]
        return jnp.stack([jnp.matmul(y, y.T, precision="highest") / y.shape[1] for y in layers])

    return done(lambda: run(params, state, t.probe))


def one_snapshot(**sizes):
    t, made = training(**sizes), tracked(**sizes)
    params, state, _ = t.start

    def run():
        made.tracker(next(made.starts), params, state=state)
        made.tracker.flush()

    return run


SIZES = {"net": "ResNet-18", "side": 32, "n": 512, "steps": 300, "snapshots": 10}
QUICK = {"net": "small ResNet", "side": 32, "n": 16, "steps": 6, "snapshots": 2}
case = partial(Case, sizes=SIZES, quick=QUICK)

TRACKING = [
    # Nothing may be compiled before this one.
    case(
        "compilation of the first snapshot of every layer of Haiku {net}, a probe of {n}",
        {
            "floor": Contender(compilation_of_forward, "that of the forward pass of a few more images", warm=False),
            "ours": Contender(compilation_of_snapshot, "that of all programs of `tracker` and `flush`", warm=False),
        },
        [ratio("ours", "floor", at_most=3)],
        rounds=1,
    ),
    case(
        "{steps} steps of Haiku {net}, {side}², batch {n}, with {snapshots} snapshots of every layer, a probe of {n}",
        {
            "floor": Contender(loop_with_passes, "the loop and {snapshots} jitted forward passes of the probe"),
            "ours": Contender(loop_with_tracker, "the loop with a tracker of every layer and default metric"),
        },
        [
            ratio("ours", "floor", at_most=1.1),
            Target("flush", lambda numbers, _: numbers["ours"], "flush", "s", at_most=1),
        ],
        rounds=5,
    ),
    case(
        "the median of {steps} steps of Haiku {net}, batch {n}, with {snapshots} snapshots, waiting for each step",
        {
            "floor": Contender(steps_with_passes, "the loop with forward passes", warm=False),
            "ours": Contender(steps_with_tracker, "the loop with the tracker", warm=False),
        },
        [
            Target("slowest / median step of ours", lambda numbers, _: numbers["ours"], "slowest", at_most=3),
            Target("slowest / median step of the floor", lambda numbers, _: numbers["floor"], "slowest"),
        ],
        rounds=3,
    ),
]
SNAPSHOT = [
    case(
        "one snapshot of every layer of Haiku {net}, {side}², a probe of {n}",
        {
            "floor": Contender(one_pass, "jitted forward pass of the probe"),
            "Grams by hand": Contender(one_pass_and_grams, "jitted forward pass and one product a layer"),
            "ours": Contender(one_snapshot, "`tracker(step, params, state=state)` and `flush`"),
        },
        [ratio("ours", "floor"), ratio("ours", "Grams by hand")],
    ),
]
