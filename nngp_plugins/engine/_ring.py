"""Blocks of rows on the devices of a mesh, which travel around them so that each meets the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._meshes import automatic


@dataclass(frozen=True)
class Ring:
    """The devices that hold consecutive blocks of rows, one each, of the same size.

    No device ever holds all rows: it holds its own block, and one that visits it.

    Attributes:
        mesh: the devices.
        axes: the axes of the mesh that number the blocks, the first one outermost. Along the other axes, all devices do
            the same.
    """

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        """The number of blocks."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def automatic(self) -> Ring:
        """The same devices, whose axes JAX does not keep in the types of arrays."""
        return Ring(automatic(self.mesh), self.axes)

    def spec(self, axis: int = 0) -> PartitionSpec:
        """How an array is split whose axis counts rows."""
        return PartitionSpec(*[None] * axis, self.axes or None)

    def sharding(self, axis: int = 0) -> NamedSharding:
        """Where an array is whose axis counts rows."""
        return NamedSharding(self.mesh, self.spec(axis))

    def map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """A function of blocks as a function of arrays, for use within a compiled function."""
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    # What follows is for use within such a function of blocks.

    def place(self) -> Any:
        """The number of this device's block."""
        return lax.axis_index(self.axes) if self.axes else 0

    def sum(self, array: Array) -> Array:
        """The sum over all blocks."""
        return lax.psum(array, self.axes) if self.axes else array

    def rectangular(self, own: Any, others: Any, rows: int, arrays: Any, product: Callable[[Any, Any], Any]) -> Any:
        """The rows of a matrix of products that a device has: its block meets every block of ``others``.

        Args:
            own: this device's block, in any PyTree.
            others: its block of the columns, which travels on.
            rows: the rows of a block of the columns.
            arrays: where to write, ``(rows of own, size * rows, ...)`` each, in any PyTree.
            product: what two blocks make.
        """

        def step(distance: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            visiting, arrays = carry
            # The next block travels while this one is met.
            return self.turned(visiting, 1), put(arrays, product(own, visiting), 0, self.columns(distance, rows))

        return lax.fori_loop(0, self.size, step, (others, arrays))[1]

    def columns(self, distance: Any, rows: int) -> Any:
        """The first column of the block that is so many places later."""
        return (self.place() + distance) % self.size * rows

    def turned(self, blocks: Any, by: int) -> Any:
        """What the device has that comes so many places later."""
        if not self.axes:
            return blocks
        # JAX (0.10) numbers devices by the order of the mesh here, whatever the order of the axes that it is given.
        axes = sorted(self.axes, key=self.mesh.axis_names.index)
        numbers = np.arange(self.size).reshape([self.mesh.shape[axis] for axis in self.axes])
        place = np.argsort(numbers.transpose([self.axes.index(axis) for axis in axes]).ravel()).tolist()
        pairs = [(place[(j + by) % self.size], place[j]) for j in range(self.size)]
        return lax.ppermute(blocks, tuple(axes), pairs)


def put(arrays: Any, tiles: Any, row: Any, column: Any) -> Any:
    """Writes a tile to each array."""

    def written(array: Array, tile: Array) -> Array:
        places = [row, column, *[0] * (array.ndim - 2)]
        return lax.dynamic_update_slice(array, tile, [jnp.asarray(place, jnp.int32) for place in places])

    return jax.tree.map(written, arrays, tiles)
