"""Which devices run the network on which examples, and how examples are cut into batches there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .._meshes import mesh_left
from .._typing import PyTree
from ._devices import on_one_device
from ._inputs import Range
from ._ring import Ring

DEVICES = "devices"


@dataclass(frozen=True)
class Places:
    """The devices of a job, and how they share examples.

    Attributes:
        ring: the devices in the order in which they share examples: consecutive ones to each.
        batch_axes: the axes of the user's mesh that the batches of ``f`` are sharded over, if inputs or parameters are
            sharded: one call of ``f`` runs on the whole mesh. None if each device runs ``f`` on batches of its own.
    """

    ring: Ring
    batch_axes: tuple[str, ...] | None = None

    @classmethod
    def of(cls, devices: Sequence[jax.Device], sides: Sequence[PyTree], others: PyTree) -> Places:
        """The mesh of inputs or parameters that are sharded over devices, or that of ``jax.set_mesh``, or the devices.

        Args:
            devices: the devices that run the network otherwise.
            sides: the inputs of both sides.
            others: the parameters and the keyword arguments.
        """
        own = cls(Ring(Mesh(np.asarray(devices), (DEVICES,), axis_types=(AxisType.Auto,)), (DEVICES,)))
        if len(devices) == 1 and jax.local_device_count() == 1:
            return own
        inputs = [leaf for leaf in jax.tree.leaves(list(sides)) if is_on_mesh(leaf)]
        sharded = [leaf for leaf in (*inputs, *jax.tree.leaves(others)) if is_on_mesh(leaf) and _is_split(leaf)]
        if not sharded:
            given = mesh_left()
            if given is not None and {*given.devices.flat} == {*devices}:
                return cls(Ring(given, given.axis_names), given.axis_names)
            return own
        mesh = sharded[0].sharding.mesh
        inputs = [leaf for leaf in inputs if leaf.sharding.mesh.devices.size == mesh.size]
        split = max((_axes_of(leaf.sharding) for leaf in inputs), key=len, default=())
        everywhere = (*split, *(axis for axis in mesh.axis_names if axis not in split))
        is_even = all(leaf.shape[0] % mesh.size == 0 for leaf in inputs)
        return cls(Ring(mesh, everywhere if is_even else split), split)

    @property
    def count(self) -> int:
        """How many devices share the examples."""
        return self.ring.size

    @property
    def is_shared(self) -> bool:
        """Whether one call of ``f`` runs on all devices, which are a mesh of the user."""
        return self.batch_axes is not None

    @property
    def mesh_of_f(self) -> Mesh | None:
        """The mesh of ``jax.set_mesh`` that ``f`` runs on, as when the user calls it; None if none is set."""
        given = mesh_left()
        return given if given is not None and (self.is_shared or given.size == self.mesh.size == 1) else None

    def divides(self, examples: int) -> bool:
        """Whether all devices get as many examples."""
        return examples % self.count == 0

    def sharding_of(self, leaf: Any) -> NamedSharding | None:
        """Where batches of an input are; None if ``f`` need not know."""
        if not self.is_shared:
            return None
        return leaf.sharding if is_on_mesh(leaf) else self.of_batches

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.ring.mesh

    @property
    def of_batches(self) -> NamedSharding:
        """Where the batches are."""
        return (
            NamedSharding(self.mesh, PartitionSpec(self.batch_axes or None)) if self.is_shared else self.ring.sharding()
        )

    def everywhere(self, tree: PyTree) -> PyTree:
        """Arrays that all batches need, on all devices; those that are sharded over the user's mesh stay so."""
        leaves = jax.tree.leaves(tree)
        if self.batch_axes is not None:
            same = NamedSharding(self.mesh, PartitionSpec())
            there = set(self.mesh.devices.flat)
            is_there = [is_on_mesh(a) and a.devices() == there for a in leaves]
            placed = [a if here else jax.device_put(a, same) for a, here in zip(leaves, is_there, strict=True)]
            return jax.tree.unflatten(jax.tree.structure(tree), placed)
        where = NamedSharding(self.mesh, PartitionSpec()) if self.count > 1 else self.mesh.devices.flat[0]
        # Putting hundreds of arrays where they are already takes as long as a small kernel.
        if self.count == 1 and all(isinstance(a, jax.Array) and a.devices() == {where} for a in leaves):
            return tree
        return jax.device_put(tree, where)

    def sharded(self, leaf: Any) -> Array:
        """Inputs on the user's mesh, in batches of which every device has its share."""
        spec = [self.batch_axes or None]
        if is_on_mesh(leaf):
            # Only the axis of examples must be the same for all inputs.
            taken = set(self.batch_axes or ())
            spec += [None if taken.intersection(_names(entry)) else entry for entry in leaf.sharding.spec[1:]]
        where = NamedSharding(self.mesh, PartitionSpec(*spec))
        return leaf if is_on_mesh(leaf) and leaf.sharding == where else jax.device_put(leaf, where)

    def take(self, leaves: list[Array], share: int, numbers: np.ndarray) -> list[Array]:
        """The same examples of each device's share, of inputs that are sharded over the user's mesh.

        Args:
            leaves: the inputs.
            share: the examples of each device.
            numbers: the numbers of the examples within a share.
        """
        # Devices that differ along other axes have the same examples of the inputs.
        here = self.count // math.prod(self.mesh.shape[axis] for axis in self.batch_axes or ())
        places = np.concatenate([k * share + numbers for k in range(here)])
        return _taker(tuple(leaf.sharding for leaf in leaves))(leaves, places.astype(np.int32))


def is_on_mesh(leaf: Any) -> bool:
    """Whether an array lies on a mesh of several devices."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return False
    return isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh.size > 1


def _is_split(leaf: Array) -> bool:
    return not leaf.sharding.is_fully_replicated


def _axes_of(sharding: Any) -> tuple[str, ...]:
    """The axes of the mesh that examples are sharded over."""
    return _names(sharding.spec[0]) if len(sharding.spec) else ()


def _names(entry: Any) -> tuple[str, ...]:
    """The axes of the mesh that one axis of an array is sharded over."""
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


@lru_cache(maxsize=256)
def _taker(shardings: tuple[NamedSharding, ...]) -> Any:
    specs = [sharding.spec for sharding in shardings]

    def take(leaves: list[Array], numbers: Array) -> list[Array]:
        return [leaf[numbers] for leaf in leaves]

    mesh = shardings[0].mesh
    return jax.jit(jax.shard_map(take, mesh=mesh, in_specs=(specs, PartitionSpec()), out_specs=specs, check_vma=False))


def cut(leaves: list[Any], rows: int, groups: Sequence[Sequence[Range]], device: jax.Device | None) -> list[Any]:
    """The examples of groups of ranges; the last example of each group is repeated until there are ``rows`` of them.

    Args:
        leaves: inputs on one device, in host memory or on the disk.
        rows: how many examples of each group.
        groups: which examples.
        device: the only device that needs them; None if there are several.
    """
    on_device = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    numbers = np.concatenate([numbers_of(rows, ranges) for ranges in groups])
    taken = iter(_take(on_device, numbers) if on_device else ())
    return [next(taken) if isinstance(leaf, jax.Array) else _moved(leaf, rows, groups, device) for leaf in leaves]


def _moved(leaf: Any, rows: int, groups: Sequence[Sequence[Range]], device: jax.Device | None) -> Any:
    """Examples of an array in host memory or on the disk, which begin to move to the device."""
    parts: list[np.ndarray] = []
    for ranges in groups:
        parts += [np.asarray(leaf[start:stop]) for start, stop in ranges]
        missing = rows - sum(stop - start for start, stop in ranges)
        if missing:
            parts.append(np.broadcast_to(parts[-1][-1:], (missing, *parts[-1].shape[1:])))
    whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return whole if device is None else jax.device_put(whole, device)


@jax.jit
def _take(leaves: list[Array], examples: Array) -> list[Array]:
    return [leaf[examples] for leaf in leaves]


def numbers_of(rows: int, ranges: Sequence[Range]) -> np.ndarray:
    """The numbers of the examples of the ranges, the last one repeated."""
    numbers = np.full(rows, ranges[-1][1] - 1, np.int32)
    filled = 0
    for start, stop in ranges:
        numbers[filled : filled + stop - start] = np.arange(start, stop)
        filled += stop - start
    return numbers


def on_one_device_or_host(leaf: Any) -> Any:
    """An input that can be sliced: one that is spread over devices comes to the host first."""
    if not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1:
        return leaf
    return on_one_device(leaf) if leaf.is_fully_replicated else np.asarray(leaf)
