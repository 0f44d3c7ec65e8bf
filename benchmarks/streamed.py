"""Metrics of features on the disk, against products of blocks of memmaps."""

from functools import partial

import jax
import numpy as np
from features import job, memory, network
from harness import Case, Contender, ratio

CLASSES, ROWS = 10, 4096


def memmaps(n, d):
    """Two sets of features, as plain files."""
    folder, params, x = job(n, d)
    run, maps = jax.jit(network), []
    for seed in (1, 1.1):
        phi = np.lib.format.open_memmap(folder / f"{seed}.npy", "w+", np.float32, (n, d))
        for start in range(0, n, ROWS):
            phi[start : start + ROWS] = run([seed * params[0], params[1]], x[start : start + ROWS])
        maps.append(phi)
    return maps


def stores(n, d):
    """The same features, as stores."""
    import nngp_plugins as nngp

    folder, params, x = job(n, d)
    options = {"batch_size": ROWS, "progress": False}
    return nngp, [
        nngp.write_features(network, x, [seed * params[0], params[1]], folder / str(seed), **options)
        for seed in (1, 1.1)
    ]


def products(pairs, n, d):
    """Such as ``a.T @ a`` and ``a.T @ b`` for ``[(0, 0), (0, 1)]``; of one product, the eigenvalues, too."""
    maps = memmaps(n, d)

    def run():
        sums = [np.zeros((d, d)) for _ in pairs]
        for start in range(0, n, ROWS):
            for total, (i, j) in zip(sums, pairs, strict=True):
                total += maps[i][start : start + ROWS].T @ maps[j][start : start + ROWS]
        if len(pairs) == 1:
            np.linalg.eigvalsh(sums[0])

    return run


def one_cka(n, d):
    nngp, (a, b) = stores(n, d)

    def run():
        float(nngp.metrics.cka(nngp.gram(a), nngp.gram(b)))

    return run


def all_metrics(n, d):
    (nngp, (store, _)), y = stores(n, d), np.random.default_rng(2).integers(CLASSES, size=n)
    # The first metric makes the sums: if it is one of targets, those with the targets come from the same pass.
    metrics = {**nngp.metrics.of_targets(y), **nngp.metrics.DEFAULT, "spectrum": lambda a, _: nngp.metrics.spectrum(a)}
    of_two = {known.name for known in nngp.metrics.catalogue() if known.relative_to_reference}
    alone = [metric for name, metric in metrics.items() if name not in of_two]

    def run():
        gram = nngp.gram(store)
        jax.block_until_ready([metric(gram, gram) for metric in alone])

    return run


CASES = [
    Case(
        "CKA of two stores of features, N={n}, D={d}",
        {
            "floor": Contender(partial(products, [(0, 0), (0, 1)]), "`a.T @ a` (NumPy computes half) and `a.T @ b`"),
            "two whole products": Contender(partial(products, [(0, 1), (1, 0)]), "`a.T @ b` and `b.T @ a`"),
            "ours": Contender(one_cka, "`cka(nngp.gram(a), nngp.gram(b))`, debiased"),
        },
        [ratio("ours", "floor", at_most=1.3), ratio("ours", "two whole products", at_most=1.3), memory(2e9)],
        sizes={"n": 1_000_000, "d": 1024},
        quick={"n": 3000, "d": 16},
        rounds=3,
    ),
    Case(
        "metrics of a store of features with 10 classes, N={n}, D={d}",
        {
            "floor": Contender(partial(products, [(0, 0)]), "`a.T @ a` by blocks of a memmap, then `eigvalsh`"),
            "ours": Contender(all_metrics, "all default metrics of one Gram and of targets, and the spectrum"),
        },
        [ratio("ours", "floor", at_most=1.5), memory(6e9)],
        sizes={"n": 1_000_000, "d": 1024},
        quick={"n": 3000, "d": 16},
        rounds=3,
    ),
]
