"""Coordinate check: whether activations and what they learn keep their size as a network grows wider.

Source: Yang et al., "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer", 2022,
appendix D.1; Yang & Hu, "Feature Learning in Infinite-Width Neural Networks", 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nngp_plugins import metrics

from .data import Dataset
from .model import Model
from .training import Training, TrainState

QUANTITIES = {"sqrt_scale": "√scale", "kernel_size": "kernel size", "kernel_change": "ΔK", "feature_change": "Δφ"}
# Half-way, on a log scale, between the largest slopes of µP and the smallest of what is wrong; docs/zoo.md has both.
SIZE_LIMIT, CHANGE_LIMIT = 0.15, 0.25
KEEPS = "keeps its size"


@dataclass(frozen=True)
class Slope:
    """The exponent of a power law in the width.

    Attributes:
        value: the mean over seeds.
        error: its standard error.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return "–" if np.isnan(self.value) else f"{self.value:+.3f} ± {self.error:.3f}"


def slope(x: Sequence[float], y: np.ndarray) -> Slope:
    """The slope of ``log y`` against ``log x``: one least-squares fit a seed.

    Args:
        x: the widths ``(W,)``.
        y: a quantity ``(W, S)`` of S seeds.

    Returns:
        The mean over seeds and its standard error, nan for one seed; both nan if a value is not positive.

    Example:
        >>> import numpy as np
        >>> slope([1, 10, 100], np.array([[2.0, 1], [20, 11], [200, 121]]))
        Slope(value=1.02..., error=0.02...)
    """
    if not (y > 0).all():
        return Slope(np.nan, np.nan)
    each = np.polyfit(np.log(x), np.log(y), 1)[0]
    error = each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    return Slope(float(each.mean()), float(error))


@dataclass(frozen=True)
class Layer:
    """How one layer depends on the width, after some steps of training.

    Attributes:
        name: its name.
        output: whether its number of features does not grow with the width.
        values: each of :data:`QUANTITIES`, ``(W, S)`` for W widths and S seeds. With features φ, K before and φ′, K′
            after training on N examples they are ``√(tr K′ / N)``, ``‖K′‖ / N``, ``‖K′ − K‖ / N`` and
            ``‖φ′ − φ‖ / √N``.
        slopes: the slope of each quantity against the width.
    """

    name: str
    output: bool
    values: Mapping[str, np.ndarray]
    slopes: Mapping[str, Slope]

    @property
    def verdict(self) -> str:
        """How wide layers differ from narrow ones: ``"grows"``, ``"shrinks"``, ``"stops learning"`` or :data:`KEEPS`.

        Activations and what they learn are judged, as kernels say the same with more noise. An output may shrink: under
        the maximal-update parametrisation it is zero at initialisation in the limit of infinite width.
        """
        size, change = self.slopes["sqrt_scale"].value, self.slopes["feature_change"].value
        if size > SIZE_LIMIT or change > CHANGE_LIMIT:
            return "grows"
        if size < -SIZE_LIMIT and not self.output:
            return "shrinks"
        return "stops learning" if change < -CHANGE_LIMIT and not self.output else KEEPS

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return self.verdict == KEEPS


def coordinates(
    models: Mapping[int, Model],
    data: Dataset,
    x: Any,
    *,
    seeds: int,
    steps: int,
    learning_rate: float,
    optimizer: str,
    batch_size: int = 128,
    on_network: Callable[[], object] = lambda: None,
) -> list[Layer]:
    """Trains networks of several widths for a few steps, and fits how each layer depends on the width.

    Args:
        models: the model of each width.
        data: the data that they are trained on.
        x: N examples on which kernels are measured.
        seeds: number of networks of each width; the same seeds, and so the same batches, at every width.
        steps: number of updates.
        learning_rate: learning rate.
        optimizer: a choice of :data:`zoo.choices.CHOICES`.
        batch_size: examples in each update.
        on_network: called after each network.

    Returns:
        The layers in forward order.

    Raises:
        FloatingPointError: a training diverged; the message names the width.
        ValueError: the layers of two widths have other names.
    """
    widths, shapes, found = list(models), [], []
    for width, model in models.items():
        shapes.append(model.f.layers().layer_shapes(model.shapes[0], model.inputs(2), state=model.shapes[1]))
        if list(shapes[-1]) != list(shapes[0]):
            raise ValueError(f"the layers of width {width} are not those of width {widths[0]}.")
        training = Training(model, data, model.optimizer(optimizer, learning_rate), batch_size=batch_size)
        found.append(list(_networks(training, x, seeds, steps, on_network)))
    layers = []
    for name in shapes[0]:
        each = np.array([[network[name] for network in networks] for networks in found])
        bad = ~np.isfinite(each).all(axis=(1, 2))
        if bad.any():
            raise FloatingPointError(f"layer {name} is not finite at width {widths[int(np.argmax(bad))]}")
        values = dict(zip(QUANTITIES, np.moveaxis(each, 2, 0), strict=True))
        is_output = len({shape[name].shape for shape in shapes}) == 1
        layers.append(Layer(name, is_output, values, {key: slope(widths, y) for key, y in values.items()}))
    return layers


def _networks(
    training: Training, x: Any, seeds: int, steps: int, on_network: Callable[[], object]
) -> Iterator[dict[str, np.ndarray]]:
    """The quantities of each layer, network by network, with functions that are compiled once."""
    f = training.model.f.layers()

    @jax.jit
    def sizes(before: TrainState, after: TrainState) -> dict[str, Array]:
        old, new = (f(now.params, x, state=now.state) for now in (before, after))
        return {name: _sizes(metrics.features(old[name]), metrics.features(new[name])) for name in new}

    for seed in range(seeds):
        first = training.start(seed)
        yield {name: np.asarray(of) for name, of in sizes(first, training.run(first, steps, seed)[0]).items()}
        on_network()


def _sizes(old: Array, new: Array) -> Array:
    n = len(new)
    before, after = (jnp.matmul(phi, phi.T, precision="highest") for phi in (old, new))
    norm = jnp.linalg.norm
    return jnp.stack([norm(new) / n**0.5, norm(after) / n, norm(after - before) / n, norm(new - old) / n**0.5])
