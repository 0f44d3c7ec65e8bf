"""What a snapshot computes: the Gram of every layer, stacked, and every metric of every Gram."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..metrics import DenseGram, FeatureGram, Metric, features


def probe_size(probe: Any) -> int:
    """Number of examples of a probe.

    Raises:
        ValueError: its arrays have no common batch in front, or an empty one.
    """
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(probe)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"probe_x must hold arrays with one batch of examples in front, got batch sizes {sorted(sizes)}."
        )
    return sizes.pop()


def layer_outputs(outputs: Any, n: int) -> dict[str, Array]:
    """The arrays of a PyTree by name, in order.

    Raises:
        ValueError: there is none, or one does not have the ``n`` examples of the probe in front.
    """
    layers = {
        jax.tree_util.keystr(path, simple=True, separator="/") or "output": jnp.asarray(y)
        for path, y in jax.tree_util.tree_leaves_with_path(outputs)
    }
    if not layers:
        raise ValueError(f"f returned {outputs!r}, which holds no array to measure.")
    for name, y in layers.items():
        if y.ndim == 0 or y.shape[0] != n:
            raise ValueError(f"layer {name!r} has shape {y.shape}, not the {n} examples of the probe in front.")
    return layers


def stacked_grams(layers: Mapping[str, Array]) -> DenseGram:
    """The Grams of all layers, ``(L, N, N)``."""
    grams = (FeatureGram(features(y)).by_entries() for y in layers.values())
    return jax.tree.map(lambda *grams: jnp.stack(grams), *grams)


def layer_metrics(
    metrics: Mapping[str, Metric], grams: DenseGram, references: DenseGram
) -> tuple[dict[str, Array], tuple[Array, Array]]:
    """Every metric of every layer, each ``(L,)``, and traces, plain and centred, that tell a degenerate kernel."""

    def of_layer(gram: DenseGram, reference: DenseGram) -> tuple[dict[str, Array], tuple[Array, Array]]:
        traces = gram.trace(), gram.center().trace()
        return {name: metric(gram, reference) for name, metric in metrics.items()}, traces

    # not vmap: XLA on CPU (JAX 0.10) waits forever for batched eigenvalues beside a batched Cholesky decomposition
    return jax.lax.map(lambda pair: of_layer(*pair), (grams, references))


def check_scalars(scalars: Mapping[str, Any]) -> None:
    """Refuses what is not a single number.

    Raises:
        TypeError: names it.
    """
    for name, value in scalars.items():
        if not isinstance(value, int | float | np.generic | np.ndarray | Array) or jnp.shape(value):
            raise TypeError(
                f"{name}={reprlib.repr(value)} is not a scalar; pass single numbers, and a model's state as state=."
            )


def check_targets(targets: Any, n: int) -> np.ndarray:
    """Labels ``(N,)`` or one-hot ``(N, C)`` of the ``n`` examples of a probe; labels ``(N, 1)`` lose that axis.

    Raises:
        TypeError: they hold Python objects.
        ValueError: they have another shape.
    """
    labels = np.asarray(targets)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != n:
        raise ValueError(f"targets of shape {labels.shape} do not label the {n} examples of the probe.")
    if labels.dtype == object:
        raise TypeError("targets hold Python objects; pass an array of numbers or strings.")
    return labels


def check_metrics(metrics: Mapping[str, Metric], n: int) -> dict[str, Metric]:
    """Metrics that give a scalar for Grams of ``n`` examples; their shapes are worked out, nothing is computed.

    Raises:
        TypeError: not a mapping, or not a function of two Grams that returns a scalar.
        ValueError: a name with a slash, or too few examples.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics={reprlib.repr(metrics)} is not a dict {{name: metric(gram, reference_gram)}}.")
    kernel = jax.ShapeDtypeStruct((n, n), jnp.float32)
    gram = DenseGram(kernel, kernel)  # type: ignore[arg-type]  # stands for its shape
    for name, metric in metrics.items():
        if "/" in name:
            raise ValueError(f"metrics={name!r} has a slash in its name, which separates layer and metric.")
        try:
            shape = jax.eval_shape(metric, gram, gram).shape
        except ValueError as error:
            raise ValueError(f"metrics[{name!r}] on a probe of {n} examples: {error}") from error
        except (TypeError, AttributeError) as error:
            raise TypeError(f"metrics[{name!r}] is no metric(gram, reference_gram) -> scalar: {error}") from error
        if shape:
            raise TypeError(f"metrics[{name!r}] returns an array of shape {shape}, not a scalar.")
    return dict(metrics)
