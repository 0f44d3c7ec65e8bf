"""The contraction alone, of outputs with themselves: half of the kernel mirrors the other."""

import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, ratio


def outputs(n, d):
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, d), np.float32))


def floor(n, d):
    y = outputs(n, d)
    product = jax.jit(lambda y: jnp.matmul(y, y.T, precision="highest") / d)
    return lambda: product(y).block_until_ready()


def ours(n, d):
    import nngp_plugins as nngp

    y = outputs(n, d)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x))
    return lambda: kernel_fn.contract(y).block_until_ready()


CASES = [
    Case(
        "symmetric contraction, N={n}, D={d}, float32",
        {
            "floor": Contender(floor, "one jitted `y @ y.T / D`, precision highest"),
            "ours": Contender(ours, "`nngp.batch(kernel_fn).contract(y)`"),
        },
        [ratio("ours", "floor", at_most=0.58)],
        sizes={"n": 8192, "d": 4096},
        quick={"n": 256, "d": 64},
    )
]
