"""Named outputs of ``f``, in batches, eager and traced: the one path that all callers take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from .._typing import PyTree
from ._arrays import ArrayBackend
from ._inputs import Range, batch_of
from ._places import Places, is_on_mesh
from ._ring import Ring


@dataclass(frozen=True)
class NamedOutputs:
    """The outputs of ``f``, taken apart.

    Attributes:
        structure: the PyTree without its leaves.
        paths: the path of each leaf, such as ``block/conv``; the empty string for a single array.
        leaves: arrays, or their shapes and dtypes.
    """

    structure: Any
    paths: tuple[str, ...]
    leaves: tuple[Any, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The leaves as messages call them."""
        return tuple(f"output {path!r}" if path else "the output" for path in self.paths)

    @classmethod
    def of(cls, y: PyTree) -> NamedOutputs:
        """Takes outputs apart, and makes every leaf an array.

        Raises:
            TypeError: a leaf is not numeric.
            ValueError: a leaf is empty.
        """
        named = cls.unchecked(y)
        leaves = tuple(_as_array(name, leaf) for name, leaf in zip(named.names, named.leaves, strict=True))
        return replace(named, leaves=leaves)

    def structs(self) -> NamedOutputs:
        """Shapes and dtypes in place of arrays, by which plans are kept."""
        return replace(self, leaves=tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.leaves))

    @classmethod
    def unchecked(cls, y: PyTree) -> NamedOutputs:
        """Takes outputs apart and leaves their leaves as they are."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(y)
        paths = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
        return cls(structure, paths, tuple(leaf for _, leaf in leaves))


def refuse_same_names(names: Iterable[str]) -> None:
    """Refuses two outputs of one name, such as those of ``{"a/b": y, "a": {"b": z}}``.

    Raises:
        ValueError: names it.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"two outputs of f are called {name!r}; give each a name of its own.")


def _as_array(name: str, y: Any) -> Array:
    try:
        array = jnp.asarray(y)
        numeric = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool
    except TypeError:
        numeric = False
    if not numeric:
        found = getattr(y, "dtype", None) or type(y).__name__
        raise TypeError(f"{name} of f is {found}, not numeric; return arrays of numbers (None is left out).")
    if array.size == 0:
        raise ValueError(f"{name} of f is empty, with shape {array.shape}; a kernel needs at least one number.")
    return array


def traced_outputs(
    f: Callable[[PyTree, Any], PyTree], x: PyTree, argument: str, batch_size: int | None, shards: int = 1
) -> NamedOutputs:
    """The outputs of ``f(x, i)`` by batches of one size, for use within a compiled function.

    Each batch has as many examples of every shard, so that all devices work and no example leaves its own. The last
    batch is filled up with the first examples of each shard, whose outputs are cut off.

    Args:
        f: a function of the inputs, and of the number ``i`` of the batch.
        x: inputs with N examples along axis 0.
        argument: the argument that they were passed as, for messages.
        batch_size: examples of a forward pass, a multiple of the shards; None for all of them at once.
        shards: on how many devices equal numbers of consecutive examples lie.

    Raises:
        TypeError: an output is not numeric.
        ValueError: an output is empty, or does not have a row for each example.
    """
    n = batch_of(argument, x)
    share = n // shards
    size = share if batch_size is None else min(batch_size // shards, share)
    count = -(-share // size)

    def run(batch: tuple[PyTree, Any]) -> PyTree:
        y = NamedOutputs.of(f(*batch))
        refuse_other_rows(y, shards * size, argument)
        return y.structure.unflatten(y.leaves)

    def cut(leaf: Array) -> Array:
        leaf = leaf.reshape(shards, share, *leaf.shape[1:])
        leaf = jnp.concatenate([leaf, leaf[:, : count * size - share]], axis=1)
        leaf = leaf.reshape(shards, count, size, *leaf.shape[2:]).swapaxes(0, 1)
        return leaf.reshape(count, shards * size, *leaf.shape[3:])

    def joined(y: Array) -> Array:
        y = y.reshape(count, shards, size, *y.shape[2:]).swapaxes(0, 1)
        return y.reshape(shards, count * size, *y.shape[3:])[:, :share].reshape(n, *y.shape[3:])

    if count == 1:
        return NamedOutputs.unchecked(run((x, 0)))
    return NamedOutputs.unchecked(jax.tree.map(joined, jax.lax.map(run, (jax.tree.map(cut, x), jnp.arange(count)))))


def refuse_other_rows(y: NamedOutputs, rows: int, argument: str, devices: int = 1) -> None:
    """Refuses outputs that do not have a row for each of ``rows`` examples on each device.

    Raises:
        ValueError: names the first such output.
    """
    for name, leaf in zip(y.names, y.leaves, strict=True):
        if leaf.shape[:1] != (rows * devices,):
            shape = (leaf.shape[0] // devices, *leaf.shape[1:]) if leaf.shape else ()
            raise ValueError(
                f"{name} of f has shape {shape} for a batch of {rows} examples of {argument}; every output needs a row "
                "for each example along axis 0."
            )


class HeldLayout(NamedTuple):
    """How the outputs of blocks are held.

    Attributes:
        leaves: the places of the outputs.
        orders: the transposition of each of all outputs into the axes that its contraction reads.
        block_rows: examples of a block; the last one may have fewer.
        tile_rows: rows of a tile.
    """

    leaves: tuple[int, ...]
    orders: tuple[tuple[int, ...], ...]
    block_rows: int
    tile_rows: int

    @classmethod
    def as_they_are(cls, outputs: NamedOutputs, n: int) -> HeldLayout:
        """All outputs of all examples, with their axes in the order of ``f``."""
        orders = tuple(tuple(range(leaf.ndim)) for leaf in outputs.leaves)
        return cls(tuple(range(len(orders))), orders, n, 1)


class Held(NamedTuple):
    """The outputs of a block of examples.

    Attributes:
        leaves: arrays, of which some rows may be anything.
        in_order: whether each array is transposed into the axes that its contraction reads.
        first: the row of the first example of the block.
    """

    leaves: list[Any]
    in_order: bool
    first: int


class OutputSource(Protocol):
    """Where the outputs of ``x1`` or of ``x2`` come from."""

    @property
    def outputs(self) -> NamedOutputs:
        """Names, shapes and dtypes of the outputs of all examples."""

    @property
    def batch_rows(self) -> int:
        """How many examples are computed at a time."""

    def held(self, rows: Range, layout: HeldLayout, arrays: ArrayBackend, on_rows: Callable[[int], None]) -> Held:
        """The outputs of a block of examples.

        Args:
            rows: the examples of the block.
            layout: which outputs, and how they are held.
            arrays: where the outputs are put together.
            on_rows: is told how many examples are done, each time some are.
        """


class SharedSource(OutputSource, Protocol):
    """A source whose outputs several devices may share."""

    @property
    def ring(self) -> Ring | None:
        """The devices that can share the outputs; None if they are for one device."""

    @property
    def share(self) -> int:
        """How many consecutive examples each device has, if several devices share the outputs."""

    @property
    def home(self) -> NamedSharding | None:
        """Where the rows of a kernel go; None for the first device."""


@dataclass
class GivenOutputs:
    """Outputs that exist already.

    Attributes:
        argument: the argument that they were passed as, for messages.
        outputs: the outputs.
        ring: the devices that share them; None if they are on one device.
        home: where the rows of a kernel go; None for the first device.
    """

    argument: str
    outputs: NamedOutputs
    ring: Ring | None = None
    home: NamedSharding | None = None

    @classmethod
    def of(cls, y1: PyTree, y2: PyTree | None) -> tuple[GivenOutputs, GivenOutputs | None]:
        """The outputs of both sides; None if there is no second one."""
        return cls("y1", NamedOutputs.of(y1)), None if y2 is None else cls("y2", NamedOutputs.of(y2))

    @property
    def share(self) -> int:
        """The number of consecutive examples on each device."""
        return self.batch_rows // (1 if self.ring is None else self.ring.size)

    def on(self, places: Places) -> GivenOutputs | None:
        """The same outputs, shared by all devices of a mesh; None if they are not as many for each."""
        if not places.divides(self.batch_rows):
            return None
        ring, leaves = places.ring.automatic, self.outputs.leaves
        shared = replace(self.outputs, leaves=tuple(jax.device_put(list(leaves), ring.sharding())))
        home = places.of_batches if any(map(is_on_mesh, leaves)) else None
        return GivenOutputs(self.argument, shared, ring, home)

    @property
    def batch_rows(self) -> int:
        """The number of examples.

        Raises:
            ValueError: an output has no batch axis, or has another number of examples than the first output.
        """
        rows = self.outputs.leaves[0].shape[:1]
        for name, leaf in zip(self.outputs.names, self.outputs.leaves, strict=True):
            if not rows or leaf.shape[:1] != rows:
                raise ValueError(
                    f"{name} in {self.argument} has shape {leaf.shape}; every output needs a row for each example "
                    f"along axis 0, as {self.outputs.names[0]} has with shape {self.outputs.leaves[0].shape}."
                )
        return rows[0]

    def held(self, rows: Range, layout: HeldLayout, arrays: ArrayBackend, on_rows: Callable[[int], None]) -> Held:
        """The outputs as they are; see :meth:`OutputSource.held`."""
        on_rows(rows[1] - rows[0])
        return Held([self.outputs.leaves[k] for k in layout.leaves], False, rows[0])
