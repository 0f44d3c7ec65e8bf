"""How the contraction's time grows with the number of examples."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, Target

SIZES = (1024, 2048, 4096, 8192, 16384)


def ours(n, d, part):
    import nngp_plugins as nngp

    y = jnp.asarray(np.random.default_rng(0).standard_normal((n // part, d), np.float32))
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x))

    def run():
        kernel_fn.contract(y).block_until_ready()

    return run


def slope(seconds, _):
    """Of a line through the logarithms."""
    return float(np.polyfit(np.log(SIZES), np.log([seconds[f"N={n:,}"] for n in SIZES]), 1)[0])


CASES = [
    Case(
        "symmetric contraction, N from 1k to 16k, D={d}",
        {f"N={n:,}": Contender(partial(ours, n), "`nngp.batch(kernel_fn).contract(y)`") for n in SIZES},
        [Target("log-log slope of time against N", slope, at_most=2.05)],
        sizes={"d": 512, "part": 1},
        quick={"d": 16, "part": 16},
    )
]
