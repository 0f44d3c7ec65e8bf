"""Meshes of devices: that of ``jax.set_mesh``, and those of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding

_NONE = Mesh(np.empty((), object), ())
_left: ContextVar[Mesh | None] = ContextVar("_left", default=None)


@contextmanager
def no_mesh() -> Iterator[None]:
    """Leaves the mesh of ``jax.set_mesh`` for a while, for a call or as a decorator.

    Programs of this library name their meshes, and JAX refuses other meshes than the one that is set. Within a compiled
    function it stays set.
    """
    mesh = None if jax.sharding.get_abstract_mesh().empty else _set_mesh()
    if mesh is None:
        yield
        return
    left = _left.set(mesh)
    try:
        with jax.set_mesh(_NONE):
            yield
    finally:
        _left.reset(left)


def mesh_left() -> Mesh | None:
    """The mesh that :func:`no_mesh` has left; None if there was none."""
    return _left.get()


def back_on(mesh: Mesh | None) -> Any:
    """Sets a mesh again, for a call of what the user gave; does nothing for None."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


@contextmanager
def automatic_mesh() -> Iterator[None]:
    """Sets the mesh of ``jax.set_mesh`` without explicit axes, for a while."""
    with no_mesh():
        mesh = mesh_left()
        with back_on(None if mesh is None else automatic(mesh)):
            yield


def _set_mesh() -> Mesh | None:
    try:
        return jax.sharding.get_mesh()
    except ValueError:  # within a compiled function
        return None


def automatic(mesh: Mesh) -> Mesh:
    """The same devices as a mesh whose axes JAX does not keep in the types of arrays."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def on_mesh(array: Array, mesh: Mesh) -> Array:
    """The same shards of an array on another mesh of the same devices."""
    sharding = NamedSharding(mesh, array.sharding.spec)  # type: ignore[attr-defined]
    return jax.make_array_from_single_device_arrays(
        array.shape, sharding, [shard.data for shard in array.addressable_shards]
    )


def shards_of(sharding: NamedSharding | None) -> int:
    """On how many devices equal numbers of consecutive rows of an array lie."""
    axes = sharding.spec[0] if sharding is not None and sharding.spec else None
    names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
    return math.prod(sharding.mesh.shape[name] for name in names)  # type: ignore[union-attr]
