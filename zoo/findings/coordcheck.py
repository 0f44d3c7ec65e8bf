"""Yang et al. 2022: layers keep their size in µP, and not in standard parametrisation."""

from __future__ import annotations

from ..coordinates import SIZE_LIMIT, coordinates
from ..data import load
from ..registry import get
from . import Verdict


def measure(widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048), seeds: int = 5, steps: int = 4) -> Verdict:
    """Trains the MLP on digits by Adam, and fits the slope of log √scale of each layer against log width.

    It holds if µP is correct by the command ``coordcheck``, and a layer of standard parametrisation grows.
    """
    data = load("digits")
    probe = data.probe(250)[0]
    slopes, correct = {}, {}
    for name, knobs in {"mup": {"base_width": widths[0]}, "standard": {}}.items():
        models = {w: get("linen/mlp", data.spec, width=w, parametrisation=name, **knobs) for w in widths}
        layers = coordinates(models, data, probe, seeds=seeds, steps=steps, learning_rate=3e-3, optimizer="adam")
        slopes[name] = {layer.name: layer.slopes["sqrt_scale"] for layer in layers}
        correct[name] = all(layer.good for layer in layers)
    lines = [
        f"{name}: slopes of log √scale {', '.join(f'{layer} {slope}' for layer, slope in of.items())}"
        for name, of in slopes.items()
    ]
    grows = max(slope.value for slope in slopes["standard"].values()) > SIZE_LIMIT
    numbers = {name: {layer: vars(slope) for layer, slope in of.items()} for name, of in slopes.items()}
    return Verdict(correct["mup"] and not correct["standard"] and bool(grows), lines, numbers)
