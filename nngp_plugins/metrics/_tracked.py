"""The metrics that a tracker logs of every layer, and how it evaluates them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._catalogue import Entry, Metric, catalogue
from ._dense import DenseGram
from ._gram import Gram
from ._targets import labels_of
from ._to_grams import on_device
from ._velocity import Velocity, per_step


@dataclass(frozen=True)
class _Alone:
    """A metric of one Gram in the form that a tracker calls; it ignores the reference."""

    metric: Callable[[Gram], Array]

    def __call__(self, a: Gram, reference: Gram) -> Array:
        return self.metric(a)


def default_metrics(targets: Any = None) -> dict[str, Metric]:
    """The metrics that a tracker logs unless it is told otherwise, with those registered from outside.

    Args:
        targets: labels ``(N,)``, one-hot ``(N, C)`` or real targets of the probe; None leaves out the metrics that need
            them.

    Example:
        >>> import nngp_plugins as nngp
        >>> list(nngp.metrics.default_metrics())[:3]
        ['cka', 'relative_change', 'kernel_distance']
    """
    alone = {known.name: _as_tracked(known) for known in catalogue() if known.tracked and not known.needs_targets}
    return alone if targets is None else {**alone, **of_targets(targets)}


def of_targets(y: Any) -> dict[str, Metric]:
    """The metrics that a tracker adds if it is given targets: how well the kernel fits them.

    Args:
        y: labels ``(N,)`` or one-hot ``(N, C)``, as :func:`labels_of` tells them apart from numbers, which get only the
            metrics that need no classes.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> list({**nngp.metrics.DEFAULT, **nngp.metrics.of_targets(jnp.array([0, 1, 0, 1]))})[-4:]
        ['target_alignment', 'class_separation', 'regression_accuracy', 'log_marginal_likelihood']
    """
    has_classes = isinstance(y, jax.core.Tracer) or labels_of(y) is not None
    wanted = [known for known in catalogue() if known.tracked and known.needs_targets]
    return {known.name: _as_tracked(known, y=y) for known in wanted if has_classes or not known.needs_classes}


def _as_tracked(known: Entry, **targets: Any) -> Metric:
    """The function of two Grams that a tracker calls for an entry of the catalogue."""
    metric = known.tracked if callable(known.tracked) else known.metric
    if targets:
        metric = partial(metric, **targets)
    return metric if known.relative_to_reference else _Alone(metric)


DEFAULT: Mapping[str, Metric] = MappingProxyType(default_metrics())
"""The metrics of this package that a tracker logs if it has no targets: similarity to the reference, scale and
spread. :func:`of_targets` adds four; :func:`default_metrics` adds metrics that were registered from outside."""


def needs_spectrum(metrics: Mapping[str, Metric]) -> bool:
    """Whether any of these metrics asks for eigenvalues, so that they are worth computing once for all.

    The catalogue answers, also for a ``functools.partial`` or a :class:`Velocity` of its metrics. A metric that is not
    in the catalogue counts as one that asks.

    Example:
        >>> import nngp_plugins as nngp
        >>> nngp.metrics.needs_spectrum({"cka": nngp.metrics.cka}), nngp.metrics.needs_spectrum(nngp.metrics.DEFAULT)
        (False, True)
    """
    return any(known is None or known.needs_spectrum for known in map(_entry_behind, metrics.values()))


def is_in_units_of_kernel(metric: Metric) -> bool:
    """Whether a metric of one Gram is c times as large for c times the kernel, as the catalogue says.

    Example:
        >>> import nngp_plugins as nngp
        >>> [name for name, metric in nngp.metrics.DEFAULT.items() if nngp.metrics.is_in_units_of_kernel(metric)]
        ['scale']
    """
    known = _entry_behind(metric)
    return known is not None and known.in_units_of_kernel


def _entry_behind(metric: object) -> Entry | None:
    """The entry of a metric, or of the metric that a wrapper calls."""
    for known in catalogue():
        if metric is known.metric or metric is known.tracked:
            return known
    match metric:
        case partial(func=inner) | _Alone(metric=inner) | Velocity(distance=inner):
            return _entry_behind(inner)
    return None


def identity_of(metric: object) -> Hashable | None:
    """What two metrics have in common if they compute the same; None for a function that the catalogue lacks.

    Example:
        >>> import numpy as np, nngp_plugins as nngp
        >>> first, second = (nngp.metrics.of_targets(np.arange(6) % 2)["target_alignment"] for _ in range(2))
        >>> nngp.metrics.identity_of(first) == nngp.metrics.identity_of(second)
        True
    """
    arguments: Hashable = ()
    match metric:
        case _Alone(metric=inner) | Velocity(distance=inner):
            pass
        case partial(func=inner, args=args, keywords=keywords):
            values = [*args, *keywords.values()]
            if not all(isinstance(value, bool | int | float | np.ndarray | Array) for value in values):
                return None
            if any(isinstance(value, jax.core.Tracer) for value in values):
                return None
            contents = ((str(a.dtype), a.shape, a.tobytes()) for a in map(np.asarray, values))
            arguments = len(args), *keywords, *contents
        case _:
            return metric if callable(metric) and _entry_behind(metric) is not None else None
    known = identity_of(inner)
    return None if known is None else (type(metric), known, arguments)


def evaluate_layer(
    metrics: Mapping[str, Metric], gram: DenseGram, reference: DenseGram, previous: DenseGram, steps: float | Array
) -> dict[str, Array]:
    """Every metric of one layer.

    Args:
        metrics: by name.
        gram: the Gram of a snapshot.
        reference: that of the reference.
        previous: that of the previous snapshot; only a :class:`Velocity` looks at it.
        steps: training steps since the previous snapshot; nan if there is none.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> gram = nngp.metrics.DenseGram(2 * jnp.eye(4))
        >>> metrics = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "scale")}
        >>> float(nngp.metrics.evaluate_layer(metrics, gram, gram, gram, 1.0)["scale"])
        2.0
    """

    def value(metric: Metric) -> Array:
        if isinstance(metric, Velocity):
            return per_step(jnp.asarray(metric(gram, previous)), on_device(steps))
        return metric(gram, reference)

    return {name: value(metric) for name, metric in metrics.items()}


def evaluate(
    metrics: Mapping[str, Metric], grams: DenseGram, references: DenseGram, previous: DenseGram, steps: float | Array
) -> tuple[dict[str, Array], tuple[Array, Array]]:
    """Every metric of every layer.

    Args:
        metrics: by name.
        grams: the Grams of a snapshot, ``(L, N, N)``, as :func:`stacked_grams` makes them.
        references: those of the reference, with the same layers.
        previous: those of the previous snapshot; only a :class:`Velocity` looks at them.
        steps: training steps since the previous snapshot; nan if there is none.

    Returns:
        Each metric with its values ``(L,)``, and the traces ``(L,)`` of the Grams and of the centred Grams, by which
        a caller recognises degenerate kernels.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> grams = nngp.metrics.stacked_grams({"hidden": jnp.ones((4, 8)), "output": 2 * jnp.eye(4)})
        >>> metrics = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "scale")}
        >>> values, (traces, centered_traces) = nngp.metrics.evaluate(metrics, grams, grams, grams, 1.0)
        >>> round(float(values["scale"][0]), 3), round(float(centered_traces[1]), 3)
        (1.0, 3.0)
    """

    def of_layer(layer: tuple[DenseGram, DenseGram, DenseGram]) -> tuple[dict[str, Array], tuple[Array, Array]]:
        gram = layer[0]
        return evaluate_layer(metrics, *layer, steps), (gram.trace(), gram.center().trace())

    # A vmap would hang: XLA on CPU (JAX 0.10) never finishes batched eigenvalues beside a batched Cholesky.
    values: tuple[dict[str, Array], tuple[Array, Array]] = jax.lax.map(of_layer, (grams, references, previous))
    return values
