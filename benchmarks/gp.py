"""Gaussian processes: by features of many examples with many targets, and by a kernel on the disk."""

import tempfile
from functools import partial

import numpy as np
from harness import Case, Contender, Target, ratio


def fits(n, d, targets):
    import nngp_plugins as nngp

    rng = np.random.default_rng(0)
    phi, y = (rng.standard_normal((n, width), dtype=np.float32) for width in (d, targets))

    def run():
        posterior = nngp.gp.fit(nngp.metrics.FeatureGram(phi), y)
        posterior.mean(phi[:1000])
        posterior.variance(phi[:1000])

    return run


def fits_from_disk(n, d, width, by_steps):
    """The kernel of a wide layer, on the disk."""
    import jax

    import nngp_plugins as nngp

    rng = np.random.default_rng(0)
    x, params = (rng.standard_normal(shape, dtype=np.float32) for shape in ((n, d), (d, width)))
    y = np.float32(x[:, :3] ** 2)
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: jax.nn.relu(x @ params))
    folder = tempfile.TemporaryDirectory()
    store = nngp.write_kernel(kernel_fn, x, None, params, folder.name + "/kernel", batch_size=1000, progress=False)
    k = np.asarray(kernel_fn(x[:100], x, params))

    def run():
        posterior = nngp.gp.fit(store, y, nugget=0.01, memory_budget=8 * n * n if by_steps else None)
        assert by_steps == (posterior.residual is not None)
        run.folder = folder  # It is removed with the function.
        return posterior.mean(k).astype(np.float32)

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
    Case(
        "a Gaussian process by a kernel on the disk, N={n}, 3 targets",
        {
            "steps": Contender(partial(fits_from_disk, by_steps=True), "conjugate gradients", warm=False, fresh=True),
            "factor": Contender(partial(fits_from_disk, by_steps=False), "Cholesky", warm=False, fresh=True),
        },
        [
            ratio("steps", "factor"),
            Target("memory of the process", lambda numbers, _: numbers["steps"], "peak", "bytes"),
            ratio("steps", "factor", of="peak"),
        ],
        sizes={"n": 20_000, "d": 50, "width": 2000},
        quick={"n": 300, "d": 5, "width": 400},
        rounds=3,
    ),
]
