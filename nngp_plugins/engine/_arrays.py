"""Where outputs and kernels are put together from parts: on a device, or in host memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


@dataclass(frozen=True)
class Placement:
    """Where a part of an array belongs.

    Attributes:
        start: the index of its first number.
        order: the transposition of the part into the axes of the array; None if the axes are the same.
    """

    start: tuple[int, ...]
    order: tuple[int, ...] | None = None


class ArrayBackend(Protocol):
    """Puts arrays together that arrive in parts."""

    def start(self, part: Callable[[], Array]) -> Any:
        """Begins with a part that is still to be computed; :meth:`put` takes what this returns."""

    def put(self, array: Any, like: Any, part: Any, *places: Placement) -> Any:
        """The array with ``part`` written into it.

        Args:
            array: the array so far, which must not be used afterwards; None makes a new one.
            like: the shape and the dtype of the whole array.
            part: a part of the array, or all of it: what :meth:`start` returned, or an array.
            *places: where the part belongs; a transposed place takes its complex conjugate.
        """

    def budget(self) -> int:
        """The bytes that outputs may take by default: half of the memory."""


class OnDevice:
    """Arrays on one device. Parts are written in place, so nothing is held twice."""

    def __init__(self, device: jax.Device):
        self.device = device

    def start(self, part: Callable[[], Array]) -> Any:
        """Leaves the part to :meth:`put`: one program computes it and writes it to its place."""
        return part

    def put(self, array: Array | None, like: Any, part: Any, *places: Placement) -> Array:
        """Writes the part, and does not wait until it is computed."""
        if part.shape == like.shape and places[0].order is None:
            return jax.device_put(part() if callable(part) else part, self.device)
        if array is None:
            array = jnp.zeros(like.shape, like.dtype, device=self.device)
        starts = tuple(np.asarray(place.start, np.int32) for place in places)
        return _write(array, part, starts, tuple(place.order for place in places))

    def budget(self) -> int:
        """Half of the device's memory; a CPU reports none, and has that of the host."""
        limit = (self.device.memory_stats() or {}).get("bytes_limit")
        return limit // 2 if limit else OnHost().budget()


class OnHost:
    """NumPy arrays in host memory."""

    def start(self, part: Callable[[], Array]) -> Array:
        """Begins to compute the part, while parts before it are fetched."""
        return part()

    def put(self, array: np.ndarray | None, like: Any, part: Any, *places: Placement) -> np.ndarray:
        """Fetches the part and copies it to its place."""
        if array is None:
            array = np.empty(like.shape, like.dtype)
        part = np.asarray(part)
        for place in places:
            image = part if place.order is None else part.transpose(place.order).conj()
            array[tuple(slice(i, i + size) for i, size in zip(place.start, image.shape, strict=True))] = image
        return array

    def budget(self) -> int:
        """Half of the machine's memory."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@partial(jax.jit, donate_argnames="array", static_argnames="orders")
def _write(array: Array, part: Any, starts: tuple[Array, ...], orders: tuple[Any, ...]) -> Array:
    part = part() if callable(part) else part
    for start, order in zip(starts, orders, strict=True):
        image = part if order is None else part.transpose(order).conj()
        array = lax.dynamic_update_slice(array, image, tuple(start))
    return array
