"""Blocks of rows on the devices of a mesh, which travel around them so that each meets the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

    def symmetric(
        self, own: Any, rows: int, arrays: Any, take: Callable[[Any, int, int], Any], product: Callable[[Any, Any], Any]
    ) -> Any:
        """The rows of a symmetric matrix of products that a device has, but for the square on the diagonal.

        Every two blocks meet once, on one of their two devices, and what they make is sent to the other one. All
        devices compute as much.

        Args:
            own: this device's block, in any PyTree.
            rows: the rows of a block.
            arrays: where to write, ``(rows, size * rows, ...)`` each, in any PyTree.
            take: some rows of a block, by the first of them and how many there are.
            product: what two blocks make, ``(rows of the first, rows of the second, ...)`` for each array, and the
                mirror image of it: what the second one and the first one make.
        """
        here, visiting = self.place(), own
        for distance in range(1, self.size - self.size // 2):
            visiting = self._turned(visiting, 1)
            tile, image = product(own, visiting)
            arrays = self.put(arrays, tile, here + distance, rows)
            arrays = self.put(arrays, self._turned(image, -distance), here - distance, rows)
        if self.size % 2:
            return arrays
        return self._half_way(own, self._turned(visiting, 1), rows, arrays, take, product)

    def _half_way(
        self,
        own: Any,
        visiting: Any,
        rows: int,
        arrays: Any,
        take: Callable[[Any, int, int], Any],
        product: Callable[[Any, Any], Any],
    ) -> Any:
        # Two blocks that are half of the ring apart visit each other. Each device computes one half of their product:
        # the first one some rows, and the second one some columns of its mirror image.
        half, top = self.size // 2, rows - rows // 2
        is_first, column = self.place() < half, (self.place() + half) % self.size * rows

        def flat(tiles: Any) -> Any:
            return jax.tree.map(jnp.ravel, tiles)

        mine, sent = lax.cond(
            is_first,
            lambda: flat(product(take(own, 0, top), visiting)),
            lambda: flat(product(own, take(visiting, rows - top, top))),
        )
        got = self._turned(sent, half)

        # If the number of rows is odd, both devices have computed the one in the middle, and the first one counts.
        def as_first(array: Array, mine: Array, got: Array) -> Array:
            upper, lower = (tile.reshape(top, rows, *array.shape[2:]) for tile in (mine, got))
            return _written(_written(array, upper, 0, column), lower[2 * top - rows :], top, column)

        def as_second(array: Array, mine: Array, got: Array) -> Array:
            left, right = (tile.reshape(rows, top, *array.shape[2:]) for tile in (got, mine))
            return _written(_written(array, right, 0, column + rows - top), left, 0, column)

        ways = [partial(jax.tree.map, way) for way in (as_first, as_second)]
        return lax.cond(is_first, *ways, arrays, mine, got)

    def rectangular(self, own: Any, others: Any, rows: int, arrays: Any, product: Callable[[Any, Any], Any]) -> Any:
        """The rows of a matrix of products that a device has: its block meets every block of ``others``.

        Args:
            own: this device's block, in any PyTree.
            others: its block of the columns, which travels on.
            rows: the rows of a block of the columns.
            arrays: where to write, as for :meth:`symmetric`.
            product: what two blocks make.
        """

        def step(distance: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            visiting, arrays = carry
            # The next block travels while this one is met.
            return self._turned(visiting, 1), self.put(arrays, product(own, visiting), self.place() + distance, rows)

        return lax.fori_loop(0, self.size, step, (others, arrays))[1]

    def put(self, arrays: Any, tiles: Any, number: Any, rows: int) -> Any:
        """Writes tiles to the columns of a block."""
        start = number % self.size * rows
        return jax.tree.map(lambda array, tile: _written(array, tile, 0, start), arrays, tiles)

    def _turned(self, blocks: Any, by: int) -> Any:
        """What the device has that comes so many places later."""
        if not self.axes:
            return blocks
        # JAX (0.10) numbers devices by the order of the mesh here, whatever the order of the axes that it is given.
        axes = sorted(self.axes, key=self.mesh.axis_names.index)
        numbers = np.arange(self.size).reshape([self.mesh.shape[axis] for axis in self.axes])
        place = np.argsort(numbers.transpose([self.axes.index(axis) for axis in axes]).ravel()).tolist()
        pairs = [(place[(j + by) % self.size], place[j]) for j in range(self.size)]
        return lax.ppermute(blocks, tuple(axes), pairs)


def _written(array: Array, tile: Array, row: int, column: Any) -> Array:
    places = [row, column, *[0] * (array.ndim - 2)]
    return lax.dynamic_update_slice(array, tile, [jnp.asarray(place, jnp.int32) for place in places])
