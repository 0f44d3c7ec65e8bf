"""What a snapshot computes: the Gram of every layer, stacked, and every metric of every Gram."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from ..adapters import is_model
from ..metrics import DenseGram, Metric, Velocity, features
from ..metrics._products import product


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


def in_batches(f: Callable[[Any], Any], probe: Any, n: int, size: int | None) -> Any:
    """``f(probe)`` by batches of one size; the last is filled up with examples of the first, which are cut off."""
    if size is None or size >= n:
        return f(probe)
    count = -(-n // size)

    def cut(x: Array) -> Array:
        return jnp.concatenate([x, x[: count * size - n]]).reshape(count, size, *x.shape[1:])

    def joined(y: Array) -> Array:
        if y.shape[1:2] != (size,):
            return y[0]  # no batch in front, which is told with the name of the layer
        return y.reshape(count * size, *y.shape[2:])[:n]

    return jax.tree.map(joined, jax.lax.map(f, jax.tree.map(cut, probe)))


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
    """The Grams of all layers, ``(L, N, N)``.

    One product a layer, of the first example and what the others differ from it, gives both forms for all at once:
    centring what is left of an offset loses no digits, and XLA has little to compile.
    """
    products = []
    for y in layers.values():
        phi = features(y)
        others = jnp.arange(len(phi))[:, None] > 0
        seen_from_first = phi - jnp.where(others, phi[0], 0)
        products.append(product(seen_from_first, seen_from_first.T))
    stacked = jnp.stack(products)
    others = jnp.arange(stacked.shape[1]) > 0
    seen = jnp.where(others[:, None] & others, stacked, 0)
    shift = jnp.where(others, stacked[:, 0], 0)
    columns = seen - seen.mean(axis=1, keepdims=True)
    centered = columns - columns.mean(axis=2, keepdims=True)
    return DenseGram(seen + shift[:, :, None] + shift[:, None, :] + stacked[:, :1, :1], centered)


def layer_metrics(
    metrics: Mapping[str, Metric], grams: DenseGram, references: DenseGram, previous: DenseGram, steps: float | Array
) -> tuple[dict[str, Array], tuple[Array, Array]]:
    """Every metric of every layer, each ``(L,)``, and traces, plain and centred, that tell a degenerate kernel.

    The previous snapshot is so many ``steps`` away; nan where there is none.
    """

    def of_layer(
        gram: DenseGram, reference: DenseGram, before: DenseGram
    ) -> tuple[dict[str, Array], tuple[Array, Array]]:
        def value(metric: Metric) -> Array:
            return metric(gram, before) / steps if isinstance(metric, Velocity) else metric(gram, reference)

        traces = gram.trace(), gram.center().trace()
        return {name: value(metric) for name, metric in metrics.items()}, traces

    # not vmap: XLA on CPU (JAX 0.10) waits forever for batched eigenvalues beside a batched Cholesky decomposition
    return jax.lax.map(lambda grams: of_layer(*grams), (grams, references, previous))


def with_eigenvalues(grams: DenseGram) -> DenseGram:
    """The same Grams with their eigenvalues, by SciPy: JAX (0.10) computes eigenvectors as well, which takes thrice."""
    from scipy.linalg import eigvalsh  # here, for it takes long to import

    matrices = np.asarray(grams.matrix)
    values = np.full(matrices.shape[:2], np.nan, matrices.dtype)
    for i, matrix in enumerate(matrices):
        if np.isfinite(matrix).all():
            values[i] = eigvalsh(matrix, check_finite=False, driver="evd")
    return DenseGram(grams.matrix, grams.centered, jnp.asarray(values))


def on_one_device(array: Any) -> Any:
    """An array on a single device, from as many as it is on."""
    if not isinstance(array, Array) or len(array.devices()) == 1:
        return array
    if not array.is_fully_replicated:
        if not isinstance(array.sharding, NamedSharding):
            return jnp.asarray(np.asarray(array))
        array = jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec()))
    return array.addressable_shards[0].data  # device_put to one device leaves the mesh in its type


def check_arguments(f: Any, batch_size: int | None, config: Any) -> None:
    """Refuses arguments of a tracker that are something else.

    Raises:
        TypeError: ``f`` is no function, or ``config`` no mapping.
        ValueError: ``batch_size`` is not positive.
    """
    if not callable(f) or is_model(f):
        raise TypeError(
            f"f={reprlib.repr(f)} is no function f(params, x); pass one, such as nngp.as_model_fn(model).layers()."
        )
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config={reprlib.repr(config)} is not a mapping; pass a dict, such as vars(args).")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be positive, or None for the whole probe at once.")


def check_layers(known: Mapping[str, Any], found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses to go on with a run of other layers.

    Raises:
        ValueError: names the first that differs.
    """
    for name in [*known, *found]:
        old, new = known.get(name), found.get(name)
        if new is None or old is None or list(old) != list(new):
            said = [f"of shape {tuple(shape)}" if shape is not None else "missing" for shape in (old, new)]
            raise ValueError(
                f"the run folder is of another model: layer {name!r} is {said[0]} there and {said[1]} now (without the "
                "batch axis); go on with the same model, or name another folder."
            )


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


def check_metrics(metrics: Mapping[str, Metric], n: int) -> tuple[dict[str, Metric], bool]:
    """Metrics that give a scalar for Grams of ``n`` examples; they are traced, nothing is computed.

    Returns:
        The metrics, and whether one needs eigenvalues.

    Raises:
        TypeError: not a mapping, or not a function of two Grams that returns a scalar.
        ValueError: a name with a slash, or too few examples.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics={reprlib.repr(metrics)} is not a dict {{name: metric(gram, reference_gram)}}.")
    kernel, eigenvalues = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, n), (n,)))
    spectral = False
    for name, metric in metrics.items():
        if "/" in name:
            raise ValueError(f"metrics={name!r} has a slash in its name, which separates layer and metric.")

        def traced(kernel: Array, eigenvalues: Array, metric: Metric = metric) -> Array:
            gram = DenseGram(kernel, kernel, eigenvalues)
            return metric(gram, gram)

        try:
            jaxpr, out = jax.make_jaxpr(traced, return_shape=True)(kernel, eigenvalues)
            shape = out.shape
        except ValueError as error:
            raise ValueError(f"metrics[{name!r}] on a probe of {n} examples: {error}") from error
        except (TypeError, AttributeError) as error:
            raise TypeError(f"metrics[{name!r}] is no metric(gram, reference_gram) -> scalar: {error}") from error
        if shape:
            raise TypeError(f"metrics[{name!r}] returns an array of shape {shape}, not a scalar.")
        spectral |= any(jaxpr.jaxpr.invars[1] is variable for step in jaxpr.jaxpr.eqns for variable in step.invars)
    return dict(metrics), spectral
