"""Where outputs and kernels are put together from parts: on a device, or in host memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec

from ._ring import Ring

Order = tuple[int, ...]
"""A transposition."""


class ArrayBackend(Protocol):
    """Puts arrays together that arrive in rows."""

    waits: bool
    """Whether :meth:`write` waits until the rows are computed, so that the next ones should be on their way before."""

    def empty(self, likes: Sequence[jax.ShapeDtypeStruct], orders: Sequence[Order]) -> list[Any]:
        """New arrays; their values are anything.

        Args:
            likes: their shapes and dtypes.
            orders: the transposition of the parts of each into the axes of the array.
        """

    def write(self, arrays: list[Any], parts: Sequence[Array], start: int, orders: Sequence[Order]) -> list[Any]:
        """The arrays with rows written into them.

        Args:
            arrays: the arrays so far, which must not be used afterwards.
            parts: some rows of each array, along axis 0.
            start: the number of the first row.
            orders: the transposition of each part into the axes of its array.
        """

    def keep(self, parts: Sequence[Array], orders: Sequence[Order]) -> list[Any]:
        """All rows at once, transposed."""

    def budget(self) -> int:
        """The bytes that outputs may take by default."""


@dataclass(frozen=True)
class OnDevice:
    """Arrays on one device. Rows are written in place, so nothing is held twice.

    Attributes:
        device: the device.
    """

    device: jax.Device
    waits = False

    def empty(self, likes: Sequence[jax.ShapeDtypeStruct], orders: Sequence[Order]) -> list[Array]:
        """New arrays, all by one program."""
        with jax.default_device(self.device):
            return _empty(tuple((like.shape, np.dtype(like.dtype)) for like in likes))

    def write(self, arrays: list[Array], parts: Sequence[Array], start: int, orders: Sequence[Order]) -> list[Array]:
        """Writes rows of all arrays by one program, and does not wait for it."""
        return _write(arrays, list(parts), np.int32(start), tuple(orders))

    def keep(self, parts: Sequence[Array], orders: Sequence[Order]) -> list[Array]:
        """The same arrays, or new ones by one program if the order of the axes changes."""
        if all(is_identity(order) for order in orders):
            return list(parts)
        return _transpose(list(parts), tuple(orders))

    def budget(self) -> int:
        """Half of the device's free memory: forward passes and the compiler need some. A CPU has that of the host."""
        stats = self.device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return (limit - stats.get("bytes_in_use", 0)) // 2 if limit else OnHost().budget()


@dataclass(frozen=True)
class OnRing:
    """Arrays of which each device has consecutive rows. Nothing moves between devices.

    Attributes:
        ring: the devices, on a mesh without explicit axes.
    """

    ring: Ring
    waits = False

    def empty(self, likes: Sequence[jax.ShapeDtypeStruct], orders: Sequence[Order]) -> list[Array]:
        """New arrays, all by one program; each has as many rows on every device."""
        axes = [order.index(0) for order in orders]
        return _empty_shares(tuple((like.shape, np.dtype(like.dtype)) for like in likes), tuple(axes), self.ring)

    def write(self, arrays: list[Array], parts: Sequence[Array], start: int, orders: Sequence[Order]) -> list[Array]:
        """Writes the rows of each device by one program. ``start`` counts the rows of all devices."""
        return _write_shares(arrays, list(parts), np.int32(start // self.ring.size), tuple(orders), self.ring)

    def keep(self, parts: Sequence[Array], orders: Sequence[Order]) -> list[Array]:
        """The same arrays, or new ones by one program if the order of the axes changes."""
        if all(is_identity(order) for order in orders):
            return list(parts)
        return _transpose_shares(list(parts), tuple(orders), self.ring)

    def cut(self, arrays: list[Array], rows: int) -> list[Array]:
        """The first rows of each device."""
        if all(len(array) == rows * self.ring.size for array in arrays):
            return arrays
        return _cut_shares(arrays, rows, self.ring)

    def budget(self) -> int:
        """What all devices have together; CPUs share the memory of the host."""
        first = self.ring.mesh.devices.flat[0]
        return OnDevice(first).budget() * (self.ring.size if first.memory_stats() else 1)


@dataclass(frozen=True)
class OnHost:
    """NumPy arrays in host memory."""

    waits = True

    def empty(self, likes: Sequence[jax.ShapeDtypeStruct], orders: Sequence[Order]) -> list[np.ndarray]:
        """New arrays."""
        # Zeros take no longer. What is left of other arrays might be NaN, which hides products that overflow.
        return [np.zeros(like.shape, like.dtype) for like in likes]

    def write(
        self, arrays: list[np.ndarray], parts: Sequence[Array], start: int, orders: Sequence[Order]
    ) -> list[np.ndarray]:
        """Fetches the rows and copies them to their places."""
        for array, part, order in zip(arrays, parts, orders, strict=True):
            place = [slice(None)] * array.ndim
            place[order.index(0)] = slice(start, start + part.shape[0])
            array[tuple(place)] = np.asarray(part).transpose(order)
        return arrays

    def keep(self, parts: Sequence[Array], orders: Sequence[Order]) -> list[np.ndarray]:
        """Fetches all rows."""
        return [np.asarray(part).transpose(order) for part, order in zip(parts, orders, strict=True)]

    def budget(self) -> int:
        """Half of the machine's memory."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def on_first_device(arrays: list[Array], rows: int) -> list[Array]:
    """The first rows of arrays that are split over devices by their rows, on the first device.

    Each device's rows are sent and put in their places one after another, so that nothing is held twice.
    """
    shards = zip(*(array.addressable_shards for array in arrays), strict=True)
    shards_by_row = sorted(shards, key=lambda parts: parts[0].index[0].start or 0)
    first = OnDevice(jax.local_devices()[0])
    made: list[Array] = []
    orders = [tuple(range(array.ndim)) for array in arrays]
    for parts in shards_by_row:
        start = parts[0].index[0].start or 0
        data = [part.data[: max(rows - start, 0)] for part in parts]
        data = jax.device_put(data, first.device)
        if len(shards_by_row) == 1:
            return data
        likes = [jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype) for array in arrays]
        made = made or first.empty(likes, orders)
        if len(data[0]):
            made = first.write(made, data, start, orders)
    return made


def is_identity(order: Order) -> bool:
    """Whether a transposition changes nothing."""
    return order == tuple(range(len(order)))


@partial(jax.jit, static_argnums=0)
def _empty(likes: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]) -> list[Array]:
    return [jnp.zeros(shape, dtype) for shape, dtype in likes]


def _written(arrays: list[Array], parts: list[Array], start: Array, orders: tuple[Order, ...]) -> list[Array]:
    return [
        lax.dynamic_update_slice_in_dim(array, part.transpose(order), start, order.index(0))
        for array, part, order in zip(arrays, parts, orders, strict=True)
    ]


def _transposed(parts: list[Array], orders: tuple[Order, ...]) -> list[Array]:
    return [part.transpose(order) for part, order in zip(parts, orders, strict=True)]


_write = jax.jit(_written, donate_argnums=0, static_argnums=3)
_transpose = jax.jit(_transposed, static_argnums=1)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _empty_shares(
    likes: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...], axes: tuple[int, ...], ring: Ring
) -> list[Array]:
    def zeros() -> list[Array]:
        return [
            jnp.zeros((*shape[:axis], shape[axis] // ring.size, *shape[axis + 1 :]), dtype)
            for (shape, dtype), axis in zip(likes, axes, strict=True)
        ]

    made: list[Array] = ring.map(zeros, (), [ring.spec(axis) for axis in axes])()
    return made


@partial(jax.jit, donate_argnums=0, static_argnums=(3, 4))
def _write_shares(
    arrays: list[Array], parts: list[Array], start: Array, orders: tuple[Order, ...], ring: Ring
) -> list[Array]:
    specs = [ring.spec(order.index(0)) for order in orders]
    written: list[Array] = ring.map(partial(_written, orders=orders), (specs, ring.spec(), PartitionSpec()), specs)(
        arrays, parts, start
    )
    return written


@partial(jax.jit, static_argnums=(1, 2))
def _transpose_shares(parts: list[Array], orders: tuple[Order, ...], ring: Ring) -> list[Array]:
    specs = [ring.spec(order.index(0)) for order in orders]
    made: list[Array] = ring.map(partial(_transposed, orders=orders), (ring.spec(),), specs)(parts)
    return made


@partial(jax.jit, static_argnums=(1, 2))
def _cut_shares(arrays: list[Array], rows: int, ring: Ring) -> list[Array]:
    made: list[Array] = ring.map(lambda arrays: [a[:rows] for a in arrays], (ring.spec(),), ring.spec())(arrays)
    return made
