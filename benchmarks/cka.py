"""CKA of many examples, by their features."""

import gc

import jax
import jax.numpy as jnp
from _device import jitted
from harness import Case, Contender, Target, ratio
from metrics import normal


def done(run):
    """Waits for what ``run`` returns, which is not that of the other contenders."""

    def wait():
        jax.block_until_ready(run())

    return wait


def two_products(n, d):
    phi, psi = normal(0, n, d), normal(1, n, d)
    products = jitted(lambda a, b: [jnp.matmul(a.T, c, precision="highest") for c in (a, b)])
    return done(lambda: products(phi, psi))


def one_cka(n, d):
    from nngp_plugins.metrics import FeatureGram, cka

    a, b = jax.block_until_ready([FeatureGram(normal(seed, n, d)) for seed in (0, 1)])
    gc.collect()  # NumPy's arrays that JAX has copied, which would count as memory of the process before the run
    return done(lambda: cka(a, b))


CASES = [
    Case(
        "CKA of two sets of features, N={n}, D={d}",
        {
            "floor": Contender(two_products, "two jitted products, `a.T @ a` and `a.T @ b`"),
            "ours": Contender(one_cka, "`cka(a, b)`, debiased"),
        },
        [
            ratio("ours", "floor", at_most=1.3),
        ],
        sizes={"n": 50_000, "d": 512},
        quick={"n": 3000, "d": 16},
        rounds=15,
    ),
    Case(
        "memory of the first CKA of two sets of features, N={n}, D={d}",
        {"ours": Contender(one_cka, "`cka(a, b)`, with its compilation", warm=False, fresh=True)},
        [Target("beside the inputs", lambda numbers, _: numbers["ours"], "growth", "bytes", at_most=100e6)],
        sizes={"n": 50_000, "d": 512},
        quick={"n": 3000, "d": 16},
        rounds=3,
        shows="growth",
    ),
]
