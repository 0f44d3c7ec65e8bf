"""Time of one product in each precision, and how far its kernel of three inputs is from that in float64."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from _device import jitted
from harness import Case, Contender
from jax.lax import DotAlgorithmPreset

from ._compare import Skipped


@cache
def inputs(n, d):
    """Three inputs of float32, each with its kernel in float64."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((n, d), np.float32)
    row = rng.standard_normal(d, np.float32)
    made = {"random": noise, "1000 added": noise + np.float32(1000), "1e-4 apart": row + np.float32(1e-4) * noise}
    wide = {name: x.astype(np.float64) for name, x in made.items()}
    return {name: (x, wide[name] @ wide[name].T / d) for name, x in made.items()}


def one_product(precision):
    return lambda y: jnp.matmul(y, y.T, precision=precision) / y.shape[1]


def of_the_library(y):
    """What this library does when it is asked for float32, which may be another algorithm on another device."""
    import nngp_plugins as nngp

    return nngp.empirical_nngp_fn(lambda params, x: x, precision="float32")(y, None, None)


def product_and_errors(product, n, d, small):
    product, errors = jitted(product), {}
    for name, (x, exact) in inputs(small, d).items():
        errors[name] = np.abs(np.asarray(product(x), np.float64) - exact).max() / np.abs(exact).max()
    y = jax.jit(lambda key: jax.random.normal(key, (n, d), np.float32))(jax.random.key(0))
    notes = "errors " + ", ".join(f"{error:.1e} ({name})" for name, error in errors.items())

    def run():
        product(y).block_until_ready()
        return {"notes": notes}

    return run


def if_supported(algorithm, **sizes):
    """The same of an algorithm that not every backend has."""
    try:
        return product_and_errors(one_product(algorithm), **sizes)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as refusal:
        lines = str(refusal).strip().split("\n")
        raise Skipped(f"the backend refuses it, {lines[0]}") from refusal


KERNEL = "a jitted `y @ y.T / D`"
CONTENDERS = {
    "default": Contender(partial(product_and_errors, one_product("default")), KERNEL),
    "highest": Contender(partial(product_and_errors, one_product("highest")), KERNEL),
    "float32": Contender(partial(product_and_errors, of_the_library), "`empirical_nngp_fn(f, precision='float32')`"),
} | {
    algorithm.name: Contender(partial(if_supported, algorithm), KERNEL)
    for algorithm in (
        DotAlgorithmPreset.TF32_TF32_F32_X3,
        DotAlgorithmPreset.BF16_BF16_F32_X3,
        DotAlgorithmPreset.BF16_BF16_F32_X6,
    )
}
PRECISION = [
    Case(
        "one product, N={n}, D={d}; errors against float64, N={small}: largest difference / largest entry",
        CONTENDERS,
        [],
        sizes={"n": 8192, "d": 4096, "small": 1024},
        quick={"n": 64, "d": 32, "small": 16},
    )
]
