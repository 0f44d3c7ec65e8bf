"""The examples of each batch of one side of a kernel, on the devices that run the network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding

from ._devices import on_one_device
from ._inputs import Range
from ._keys import keys_of_batches
from ._places import Places, cut, numbers_of, on_one_device_or_host
from ._ring import Ring


class Feed:
    """What is cut into batches, and how.

    Attributes:
        n: the number of examples.
        batch_rows: the number of examples in a forward pass, over all devices.
        places: the devices.
    """

    n: int
    batch_rows: int
    places: Places
    _rows: list[Any]
    _keys: list[Any]
    _fold_keys: bool
    # Whether all inputs are on the mesh of the user, as many on each device.
    _is_on_mesh: bool
    # Whether each device runs the batches of its own share of consecutive examples, so that their outputs can stay
    # there. Otherwise the batches of all devices are consecutive.
    _is_dealt: bool

    @property
    def _size(self) -> int:
        """The number of examples in a forward pass on each device."""
        return self.batch_rows // self.places.count

    @cached_property
    def share(self) -> int:
        """The number of consecutive examples whose outputs are on each device, if they are dealt out."""
        share = -(-self.n // self.places.count)
        # Whole batches get the keys that they get on one device.
        is_keyed = self._keys and self._fold_keys and not self.places.is_shared
        return -(-share // self._size) * self._size if is_keyed else share

    @property
    def ring(self) -> Ring | None:
        """The devices that share the outputs; None if there is one, or if some would have nothing to do."""
        count = self.places.count
        is_even = self.share * count - self.n < max(count, self.n // 8)
        return self.places.ring.automatic if self.places.mesh.size > 1 and is_even else None

    @property
    def home(self) -> NamedSharding | None:
        """Where a user looks for the rows of a kernel: where the inputs are, if these are on a mesh."""
        return self.places.of_batches if self._is_on_mesh else None

    def _brought(self, leaves: list[Array]) -> list[Array]:
        """Outputs where they are put together: if they are dealt out, they are there."""
        if self._is_dealt or self.places.mesh.size == 1:
            return leaves
        if self.places.is_shared:
            return [on_one_device(leaf) for leaf in leaves]
        return jax.device_put(leaves, self.places.mesh.devices.flat[0])

    def _batch(self, index: int) -> list[Any]:
        """The examples of a batch of every device."""
        first, size = index * self.batch_rows, self._size
        if not self._is_dealt:
            return self._put(self._anywhere, self.batch_rows, [[(first, min(first + self.batch_rows, self.n))]])
        start = index * size
        if self._is_on_mesh:
            return self._cut(size, (start, min(start + size, self.share)))
        parts = []
        for device in range(self.places.count):
            # The last devices may have no examples.
            low = min(device * self.share + start, self.n - 1)
            parts.append([(low, max(low + 1, min(low + size, (device + 1) * self.share, self.n)))])
        return self._put(self._rows, size, parts)

    @cached_property
    def _anywhere(self) -> list[Any]:
        """The inputs where any examples can be cut from."""
        return [on_one_device_or_host(leaf) for leaf in self._rows]

    def _cut(self, rows: int, *ranges: Range) -> list[Any]:
        """The examples of the ranges: of the share of each device if these are on the mesh already, and else of all."""
        if self._is_dealt and self._is_on_mesh:
            return self.places.take(self._rows, self.share, numbers_of(rows, ranges))
        return self._put(self._anywhere, rows, [ranges])

    def _put(self, leaves: list[Any], rows: int, groups: Sequence[Sequence[Range]]) -> list[Any]:
        device = self.places.mesh.devices.flat[0] if self.places.mesh.size == 1 else None
        parts = cut(leaves, rows, groups, device)
        return parts if device is not None else jax.device_put(parts, self.places.of_batches)

    def _keys_of(self, index: int) -> list[Array]:
        count = 1 if self.places.is_shared else self.places.count
        if not self._fold_keys:
            keys = [key[None] for key in self._keys]
        else:
            numbers: Sequence[int] = range(index * count, (index + 1) * count)
            if self._is_dealt and count > 1:
                numbers = [device * (self.share // self._size) + index for device in range(count)]
            keys = [keys_of_batches(key, numbers) for key in self._keys]
        if self.places.mesh.size == 1:
            return keys
        return self.places.everywhere(keys) if count == 1 else jax.device_put(keys, self.places.of_batches)
