"""Outputs whose examples several devices share: kernels of them without a device that holds all features."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

T = TypeVar("T")


def rows_of(y: Array) -> NamedSharding | None:
    """How devices share the examples of an array, ``(N, ...)``; None if they do not, or if a program hides it."""
    sharding = jax.typeof(y).sharding if isinstance(y, jax.core.Tracer) else y.sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty or not sharding.spec:
        return None
    return sharding if sharding.shard_shape(y.shape)[0] < len(y) else None


def by_some_features(make: Callable[[Array], T], y: Array, rows: NamedSharding | None) -> T:
    """What a function makes of an output; each device works on some of the features of all examples.

    Devices have all features of some examples before. So each sends every feature once at most, and a product over
    features becomes a sum over devices. Without this, XLA sends all features of all examples to every device.

    Args:
        make: makes small arrays of the output, such as kernels; they are whole on every device.
        y: the output, ``(N, ...)``, in a compiled function.
        rows: how devices share its examples; None if they do not.
    """
    if rows is None:
        return make(y)
    explicit = AxisType.Explicit in rows.mesh.axis_types

    def spread(y: Array) -> T:
        specs = PartitionSpec(rows.spec[0]), PartitionSpec(None, rows.spec[0])
        places = specs if explicit else [NamedSharding(rows.mesh, spec) for spec in specs]
        # The first constraint keeps XLA from sending the inputs of the network in place of its outputs.
        y = lax.with_sharding_constraint(y, places[0])
        flat = lax.optimization_barrier(y.reshape(len(y), -1))
        return make(lax.with_sharding_constraint(flat, places[1]))

    if not explicit:
        return spread(y)
    made: T = jax.sharding.auto_axes(spread, out_sharding=NamedSharding(rows.mesh, PartitionSpec()))(y)
    return made
