"""The contraction alone, of the outputs of two different inputs."""

import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, ratio


def outputs(n, d):
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, n, d), np.float32))


def floor(n, d):
    y1, y2 = outputs(n, d)
    product = jax.jit(lambda y1, y2: jnp.matmul(y1, y2.T, precision="highest") / d)
    return lambda: product(y1, y2).block_until_ready()


def ours(n, d):
    import nngp_plugins as nngp

    y1, y2 = outputs(n, d)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x))
    return lambda: kernel_fn.contract(y1, y2).block_until_ready()


CASES = [
    Case(
        "contraction with another `x2`, N=M={n}, D={d}, float32",
        {
            "floor": Contender(floor, "one jitted `y1 @ y2.T / D`, precision highest"),
            "ours": Contender(ours, "`nngp.batch(kernel_fn).contract(y1, y2)`"),
        },
        [ratio("ours", "floor", at_most=1.05)],
        sizes={"n": 6000, "d": 2048},
        quick={"n": 256, "d": 64},
    )
]
