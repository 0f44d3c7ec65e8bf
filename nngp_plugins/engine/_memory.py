"""Where outputs and kernels are put together: on a device, or in host memory."""

from __future__ import annotations

import math
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
class At:
    """Where a part of an array belongs.

    Attributes:
        start: the place of its first number.
        order: its axes as the array has them; None as they are.
    """

    start: tuple[int, ...]
    order: tuple[int, ...] | None = None


class Memory(Protocol):
    """Holds arrays that arrive in parts."""

    def start(self, part: Callable[[], Array]) -> Any:
        """A part that is still to be computed, as ``put`` takes it best."""

    def put(self, array: Any, like: Any, part: Any, *places: At) -> Any:
        """The array with ``part`` written into it.

        Args:
            array: what there is so far, gone after; None makes a new one.
            like: shape and dtype of the whole.
            part: a part of it, or all; what :meth:`start` returned, or an array.
            *places: where it belongs; a transposed place takes the complex conjugate.
        """

    def budget(self) -> int:
        """Bytes that outputs may take where nobody said how many: half of what there is."""


class OnDevice:
    """Memory of one device. Parts are written in place, so nothing is held twice."""

    def __init__(self, device: jax.Device):
        self.device = device

    def start(self, part: Callable[[], Array]) -> Any:
        """Leaves it to ``put``: compiled together, the part goes right to its place."""
        return part

    def put(self, array: Array | None, like: Any, part: Any, *places: At) -> Array:
        """Writes without waiting for it."""
        if part.shape == like.shape and places[0].order is None:
            return jax.device_put(part() if callable(part) else part, self.device)
        if array is None:
            array = jnp.zeros(like.shape, like.dtype, device=self.device)
        starts = tuple(np.asarray(place.start, np.int32) for place in places)
        return _write(array, part, starts, tuple(place.order for place in places))

    def budget(self) -> int:
        """Half of the device's memory; a CPU reports none and has the host's."""
        limit = (self.device.memory_stats() or {}).get("bytes_limit")
        return limit // 2 if limit else OnHost().budget()


class OnHost:
    """Host memory, as NumPy arrays."""

    def start(self, part: Callable[[], Array]) -> Array:
        """Computes it while others are fetched."""
        return part()

    def put(self, array: np.ndarray | None, like: Any, part: Any, *places: At) -> np.ndarray:
        """Fetches the part and copies it."""
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


def nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array."""
    return math.prod(shape) * jnp.dtype(dtype).itemsize
