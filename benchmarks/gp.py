"""Gaussian processes by features, of many examples with many targets."""

import numpy as np
from harness import Case, Contender, Target


def fits(n, d, targets):
    import nngp_plugins as nngp

    rng = np.random.default_rng(0)
    phi, y = (rng.standard_normal((n, width), dtype=np.float32) for width in (d, targets))

    def run():
        posterior = nngp.gp.fit(nngp.metrics.FeatureGram(phi), y)
        posterior.mean(phi[:1000])
        posterior.variance(phi[:1000])

    return run


CASES = [
    Case(
        "a Gaussian process of N={n} examples, D={d} features, {targets} targets",
        {"ours": Contender(fits, "`gp.fit`, `mean` and `variance`", warm=False, fresh=True)},
        [
            Target("seconds", lambda numbers, _: numbers["ours"], at_most=60),
            Target("memory of the process", lambda numbers, _: numbers["ours"], "peak", "bytes", at_most=3e9),
        ],
        sizes={"n": 50_000, "d": 512, "targets": 3100},
        quick={"n": 3000, "d": 16, "targets": 5},
        rounds=3,
    ),
]
