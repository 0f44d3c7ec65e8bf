"""How the contraction's time grows with the number of examples, and shrinks with that of devices."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, Target, ratio
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from store import RUNS
from two_processes import in_processes, multiply_part

SIZES = (1024, 2048, 4096, 8192, 16384)


def ours(n, d, part):
    import nngp_plugins as nngp

    y = jnp.asarray(np.random.default_rng(0).standard_normal((n // part, d), np.float32))
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x))

    def run():
        kernel_fn.contract(y).block_until_ready()

    return run


def on_devices(count, n, d):
    """A contraction of outputs that so many devices of one thread each share."""
    # JAX reads both when it is first used; without the second, one device uses all cores.
    os.environ |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "NPROC": "1"}
    import nngp_plugins as nngp

    mesh = jax.make_mesh((count,), ("examples",), axis_types=(AxisType.Auto,))
    y = np.random.default_rng(0).standard_normal((n, d), np.float32)
    y = jax.device_put(y, NamedSharding(mesh, PartitionSpec("examples")))
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x))
    return lambda: kernel_fn.contract(y).block_until_ready()


def in_numpy(count, n, d):
    """What the machine gives to so many processes that share nothing. Needs Linux."""
    return in_processes(multiply_part, count, n, d, n // 8, RUNS)


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
    ),
    Case(
        "symmetric contraction on devices of one thread each, N={n}, D={d}",
        {
            "one": Contender(partial(on_devices, 1), "outputs on one device"),
            "two": Contender(partial(on_devices, 2), "outputs shared by two devices"),
            "one, products": Contender(partial(in_numpy, 1), "products in NumPy, in a process of one core"),
            "two, products": Contender(partial(in_numpy, 2), "half of them each, in two such processes"),
        },
        [
            Target("one / two", lambda seconds, _: seconds["one"] / seconds["two"], at_least=1.8),
            ratio("one, products", "two, products"),
        ],
        sizes={"n": 8192, "d": 4096},
        quick={"n": 256, "d": 64},
        rounds=5,
    ),
]
