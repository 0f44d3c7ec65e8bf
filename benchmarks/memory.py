"""How much more memory a batched kernel takes, at its peak, than the result, the outputs and one tile."""

import ctypes
import time
from contextlib import suppress
from functools import partial

import jax
import numpy as np
from harness import Case, Contender, ratio


def batched(n, d, batch_size, **options):
    import nngp_plugins as nngp

    rng = np.random.default_rng(0)
    x, params = rng.standard_normal((n, 16), np.float32), rng.standard_normal((16, d), np.float32)
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: jax.numpy.tanh(x @ params))
    return nngp.batch(kernel_fn, batch_size, **options), x, params


def needed(**sizes):
    kernel_fn, *arguments = batched(**sizes)
    job = kernel_fn.plan(arguments[0], None, arguments[1])
    return lambda: {"growth": job.kernel_bytes + job.output_bytes + job.tile_bytes}


def ours(store_on_device, compiled, **sizes):
    kernel_fn, x, params = batched(**sizes, store_on_device=store_on_device)

    def run():
        jax.block_until_ready(kernel_fn(x, None, params))

    if compiled:
        run()
    time.sleep(0.5)  # XLA's threads let go of buffers a little later
    # Freed memory goes back to the system only when it is trimmed, and would count as growth otherwise.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return run


CASES = [
    Case(
        "memory of a batched kernel, N={n}, D={d}, batch {batch_size}",
        {
            "floor": Contender(needed, "result + outputs + one tile"),
            "ours": Contender(partial(ours, True, True), "growth of the process, compiled before", fresh=True),
            "ours, first call": Contender(partial(ours, True, False), "growth with all that compiles", fresh=True),
            "ours, on the host": Contender(partial(ours, False, True), "`store_on_device=False`", fresh=True),
        },
        [
            ratio("ours", "floor", of="growth", at_most=1.15),
            ratio("ours, first call", "floor", of="growth"),
            ratio("ours, on the host", "floor", of="growth"),
        ],
        sizes={"n": 8192, "d": 4096, "batch_size": 512},
        quick={"n": 2048, "d": 256, "batch_size": 128},
        rounds=3,
        shows="growth",
    )
]
