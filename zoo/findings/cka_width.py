"""Kornblith et al. 2019: wider networks agree more."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import jax
import numpy as np

from nngp_plugins import metrics

from ..data import load
from ..registry import get
from ..training import Training
from . import Verdict


def measure(widths: tuple[int, ...] = (4, 16, 64), seeds: int = 4, steps: int = 300) -> Verdict:
    """Trains the all-convolutional network on digits, and compares each layer across seeds by debiased CKA.

    The number of a width is the mean over the layers but the head and over the pairs of seeds. It holds if it rises
    with every width, in the mean and in each layer from the smallest width to the largest.
    """
    data = load("digits")
    probe = data.probe(240)[0]
    of_layers = {}
    for width in widths:
        model = get("linen/cnn", data.spec, width=width)
        training = Training(model, data, model.optimizer("adam", 3e-3))
        grams = jax.jit(partial(_grams, model.f.layers("conv_*"), probe))
        trained = []
        for seed in range(seeds):
            now, _ = training.run(training.start(seed), steps, seed)
            trained.append(grams(now.params, now.state))
        cka = [[float(_cka(*pair)) for pair in zip(a, b, strict=True)] for a, b in combinations(trained, 2)]
        of_layers[width] = np.array(cka)
    lines = [
        f"width {width}: CKA across seeds {cka.mean():.3f}; by layer {', '.join(f'{c:.3f}' for c in cka.mean(axis=0))}"
        for width, cka in of_layers.items()
    ]
    means = [cka.mean() for cka in of_layers.values()]
    each = of_layers[widths[-1]].mean(axis=0) > of_layers[widths[0]].mean(axis=0)
    numbers = {"cka": {width: cka.mean(axis=0).tolist() for width, cka in of_layers.items()}}
    return Verdict(bool(np.all(np.diff(means) > 0) and each.all()), lines, numbers)


_cka = jax.jit(metrics.cka)


def _grams(f: Any, probe: Any, params: Any, state: Any) -> list[Any]:
    """The Gram of each layer after its activation."""
    return [metrics.gram_of(jax.nn.relu(y)) for y in f(params, probe, state=state).values()]
