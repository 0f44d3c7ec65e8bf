"""Contractions of outputs that are on the device already, and CKA, against jitted products."""

from dataclasses import replace
from functools import lru_cache, partial

import cka
import jax
import jax.numpy as jnp
import spatial
from _device import jitted
from harness import Case, Contender, ratio
from jax import lax


@lru_cache(maxsize=1)
def outputs(n, d, dtype):
    return jax.jit(lambda key: jax.random.normal(key, (n, d), jnp.float32).astype(dtype))(jax.random.key(0))


def one_product(precision, dtype, n, d):
    y = outputs(n, d, dtype)
    options = {"precision": precision, "preferred_element_type": jnp.float32}
    product = jitted(lambda y: lax.dot_general(y, y, (((1,), (1,)), ((), ())), **options))
    return lambda: product(y).block_until_ready()


def ours(precision, dtype, n, d):
    import nngp_plugins as nngp

    y = outputs(n, d, dtype)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x, precision=precision))
    return lambda: kernel_fn.contract(y).block_until_ready()


def symmetric(sizes, quick, precision="highest", dtype="float32", floor="", at_most=None):
    floor = floor or precision
    return Case(
        f"symmetric contraction, N={{n}}, D={{d}}, {dtype}, precision {precision}",
        {
            "floor": Contender(partial(one_product, floor, dtype), f"one jitted `y @ y.T`, precision {floor}"),
            "ours": Contender(partial(ours, precision, dtype), "`nngp.batch(kernel_fn).contract(y)`"),
        },
        [ratio("ours", "floor", at_most=at_most)],
        sizes,
        quick,
    )


large = partial(symmetric, {"n": 16384, "d": 4096}, {"n": 256, "d": 64})
SYMMETRIC = [
    large("highest", at_most=0.56),
    large("default", at_most=0.75),
    large("highest", "bfloat16", at_most=0.75),
    large("float32", floor="highest"),
]
SIZES = [
    symmetric({"n": n, "d": 4096}, {"n": n // 16, "d": 64}, at_most=1.05) for n in (256, 512, 1024, 2048, 4096, 8192)
]
SPATIAL = [replace(case, targets=[ratio("ours", "floor", at_most=1.1)]) for case in spatial.CASES]
CKA = [replace(cka.CASES[0], targets=[ratio("ours", "floor", at_most=2)], rounds=7)]
