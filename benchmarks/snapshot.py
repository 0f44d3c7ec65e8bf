"""What a tracker's snapshot of every layer costs over the jitted forward pass of the probe: in turn, medians."""

import statistics
import time

import jax

import nngp_plugins as nngp
from zoo.registry import get_dataset, get_model


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name, rounds=30):
    dataset = get_dataset("digits")
    probe, _ = dataset.probe(250)
    f = get_model(name, dataset)
    params, _ = f.init(jax.random.key(0), probe[:1])
    forward = jax.jit(f)
    tracker = nngp.KernelTracker(f.layers(), probe, schedule=nngp.every(1))
    steps = iter(range(rounds + 2))

    def snapshot():
        tracker(next(steps), params)
        tracker.flush()

    snapshot(), jax.block_until_ready(forward(params, probe))  # compile
    times = [(seconds(lambda: jax.block_until_ready(forward(params, probe))), seconds(snapshot)) for _ in range(rounds)]
    tracker.close()
    floor, ours = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    layers = len(tracker.history.layers)
    print(f"{name}: forward {floor:.2f} ms, snapshot of {layers} layers {ours:.2f} ms, ratio {ours / floor:.2f}")


if __name__ == "__main__":
    for network in ("linen/mlp", "linen/cnn"):
        compare(network)
