"""What finding every layer costs before anything runs: tracing, and compilation where a model scans over its blocks."""

import time
from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, ratio
from scanned import transformer


def compilation(what, size, n, **depths):
    """Seconds that XLA takes for the program of a kernel function, or of a tracker."""
    import nngp_plugins as nngp

    f, params, x = transformer(n, depths[size])
    kernel_fn = nngp.empirical_nngp_fn(f.layers(), trace_axes=nngp.all_but_batch)
    measurement = nngp.KernelTracker(f.layers(), np.asarray(x)).measurement
    programs = {
        "kernels": lambda params, x: kernel_fn(x, None, params),
        "tracker": lambda params, x: measurement.traced(params, None, x).grams,
    }

    def run():
        jax.clear_caches()  # JAX would keep what it compiled in the last round.
        lowered = jax.jit(programs[what]).lower(params, x)
        start = time.perf_counter()
        lowered.compile()
        return {"seconds": time.perf_counter() - start}

    return run


def tracing(layers, n):
    import nngp_plugins as nngp

    net = hk.transform_with_state(lambda x, is_training: hk.nets.ResNet50(10)(x, is_training))
    f, x = nngp.from_haiku(net, is_training=False), jax.ShapeDtypeStruct((n, 64, 64, 3), jnp.float32)
    params, state = jax.eval_shape(lambda x: f.init(jax.random.key(0), x, is_training=True), x)
    g = f.layers() if layers else f

    def run():
        jax.jit(lambda params, state, x: g(params, x, state=state)).trace(params, state, x)

    return run


CASES = [
    Case(
        "tracing of Haiku ResNet-50, {n} images of 64×64",
        {
            "floor": Contender(partial(tracing, False), "`jax.jit(f).trace`"),
            "ours": Contender(partial(tracing, True), "`jax.jit(f.layers()).trace`"),
        },
        [ratio("ours", "floor", at_most=2)],
        sizes={"n": 128},
        quick={"n": 4},
        rounds=15,
    ),
]
CASES += [
    Case(
        f"compilation of a transformer of {{deep}} scanned and rematted blocks, {what} of every layer",
        {
            "shallow": Contender(partial(compilation, which, "shallow"), "{shallow} blocks"),
            "deep": Contender(partial(compilation, which, "deep"), "{deep} blocks"),
        },
        [ratio("deep", "shallow", at_most=limit)],
        sizes={"n": 32, "shallow": 4, "deep": 48},
        quick={"n": 4, "shallow": 2, "deep": 4},
    )
    for what, which, limit in (("a tracker's Grams", "tracker", 1.2), ("kernels", "kernels", None))
]
