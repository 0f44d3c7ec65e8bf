"""The network's half of a batched kernel: every example goes through ``f`` once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._static import Static
from ._empirical import Outputs
from ._inputs import batch_of
from ._job import ranges
from ._memory import At, Memory

PyTree = Any
KEYS = ("rng", "rngs")
WHOLE = ("state", *KEYS)


@dataclass(frozen=True)
class Call:
    """A call of ``f`` but for its arrays: hashable, so that every batch reuses one compiled function.

    Attributes:
        f: the apply function.
        structure: of ``(x, kwargs)``.
        kinds: of each leaf: ``rows`` go through by batches, ``whole`` ones are the same for all batches, ``keys`` are
            folded for each, and ``static`` ones are no arrays.
        statics: the static leaves.
    """

    f: Static
    structure: Any
    kinds: tuple[str, ...]
    statics: Static

    def __call__(self, params: PyTree, rows: Sequence[Any], whole: Sequence[Any], keys: Sequence[Any]) -> PyTree:
        """The outputs of ``f``."""
        leaves = {"rows": iter(rows), "whole": iter(whole), "keys": iter(keys), "static": iter(self.statics.value)}
        x, kwargs = self.structure.unflatten(next(leaves[kind]) for kind in self.kinds)
        y = Outputs.of(self.f.value(params, x, **kwargs))
        return y.structure.unflatten(y.leaves)


@partial(jax.jit, static_argnames=("call", "mesh"))
def _run(call: Call, mesh: jax.sharding.Mesh, params: PyTree, rows: Any, whole: Any, keys: Any) -> PyTree:
    """``f`` on one batch a device, each with a key of its own."""

    def on_device(params: PyTree, rows: Any, whole: Any, keys: Any) -> PyTree:
        return call(params, rows, whole, [key[0] for key in keys])

    if mesh.size == 1:
        return on_device(params, rows, whole, keys)
    split, same = PartitionSpec("devices"), PartitionSpec()
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(same, split, same, split), out_specs=split, check_vma=False)
    return mapped(params, rows, whole, keys)


class Forward:
    """The forward passes of one side of a kernel.

    Attributes:
        n: number of examples.
        rows: number of them in a forward pass, over all devices.
    """

    def __init__(
        self,
        side: str,
        f: Callable[..., PyTree],
        params: PyTree,
        x: PyTree,
        kwargs: dict[str, Any],
        *,
        batch_size: int,
        devices: Sequence[jax.Device],
        fold: bool,
        check: bool,
        shared: Collection[str] = (),
    ):
        self.side, self.n = side, batch_of(side, x)
        self.rows = batch_size * len(devices)
        self._fold, self._check = fold, check and not (self.n == self.rows == batch_size)
        self._mesh = jax.sharding.Mesh(np.asarray(devices), ("devices",), axis_types=(AxisType.Auto,))
        self._sort(f, x, kwargs, {*WHOLE, *shared})
        everywhere = NamedSharding(self._mesh, PartitionSpec()) if len(devices) > 1 else devices[0]
        self._params = jax.device_put(params, everywhere)
        self._whole[:] = jax.device_put(self._whole, everywhere)

    def _sort(self, f: Callable[..., PyTree], x: PyTree, kwargs: dict[str, Any], whole: set[str]) -> None:
        """Sorts the leaves of ``x`` and the keyword arguments into the kinds of a :class:`Call`."""
        self._rows: list[Any] = []
        self._whole: list[Any] = []
        self._keys: list[Any] = []
        statics: list[Any] = []
        kinds: dict[str, list[Any]] = {
            "rows": self._rows,
            "whole": self._whole,
            "keys": self._keys,
            "static": statics,
        }
        said: list[str] = []
        paths, structure = jax.tree_util.tree_flatten_with_path((x, kwargs))
        for path, leaf in paths:
            kind = "rows" if path[0].idx == 0 else self._kind(path[1].key, leaf, whole)
            said.append(kind)
            kinds[kind].append(_local(leaf) if kind == "rows" else leaf)
        self._call = Call(Static(f), structure, tuple(said), Static(tuple(statics)))

    def _kind(self, name: str, leaf: Any, whole: set[str]) -> str:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return "static"
        if name in KEYS:
            return "keys"
        return "rows" if name not in whole and leaf.shape[:1] == (self.n,) else "whole"

    @cached_property
    def outputs(self) -> Outputs:
        """Names, shapes and dtypes of the outputs of all examples; computes nothing."""
        structs = [jax.ShapeDtypeStruct((self.rows, *leaf.shape[1:]), _canonical(leaf.dtype)) for leaf in self._rows]
        keys = [_folded(key, 0, self._mesh.size) for key in self._keys]
        outputs = _run.eval_shape(self._call, self._mesh, self._params, structs, self._whole, keys)
        self._refuse_wrong_rows(outputs, self.rows // self._mesh.size)
        y = Outputs.named(outputs)
        leaves = (jax.ShapeDtypeStruct((self.n, *leaf.shape[1:]), leaf.dtype) for leaf in y.leaves)
        return Outputs(y.structure, y.paths, tuple(leaves))

    def tiles(
        self, start: int, stop: int, size: int, memory: Memory, on_rows: Callable[[int], None]
    ) -> list[list[Any]]:
        """The outputs of the examples from ``start`` to ``stop`` in tiles of ``size`` rows, a list of leaves each."""
        bounds = ranges(start, stop, size)
        likes = [
            [jax.ShapeDtypeStruct((high - low, *leaf.shape[1:]), leaf.dtype) for leaf in self.outputs.leaves]
            for low, high in bounds
        ]
        tiles: list[list[Any]] = [[None] * len(like) for like in likes]
        for first, leaves in self._batches(start, stop, on_rows):
            last = first + leaves[0].shape[0]
            for tile, like, (low, high) in zip(tiles, likes, bounds, strict=True):
                if low >= last or high <= first:
                    continue
                for k, leaf in enumerate(leaves):
                    part = leaf if low <= first and last <= high else leaf[max(low - first, 0) : high - first]
                    tile[k] = memory.put(tile[k], like[k], part, At((max(first - low, 0), *[0] * (part.ndim - 1))))
        return tiles

    def _batches(self, start: int, stop: int, on_rows: Callable[[int], None]) -> Iterator[tuple[int, list[Any]]]:
        """The outputs of each batch with the number of its first example, cut to ``start`` and ``stop``."""
        before: Any = None
        for index in range(start // self.rows, -(-stop // self.rows)):
            first = index * self.rows
            leaves = jax.tree.leaves(self._outputs(first, self.rows, index))
            if self._check:
                self._check = False
                self._check_independent(first, index, leaves)
            jax.block_until_ready(before)  # one batch runs while the next is on its way, no more
            before = leaves
            on_rows(min(self.rows, self.n - first))
            low, high = max(start - first, 0), min(stop, self.n) - first
            leaves = [leaf if low == 0 and high >= self.rows else leaf[low:high] for leaf in leaves]
            if self._mesh.size > 1:
                leaves = jax.device_put(leaves, self._mesh.devices.flat[0])
            yield first + low, leaves

    def _outputs(self, first: int, rows: int, index: int) -> PyTree:
        """The outputs of ``rows`` examples; where there are fewer, the last one stands in for those missing."""
        return self._run([_rows(leaf, rows, (first, min(first + rows, self.n))) for leaf in self._rows], index)

    def _run(self, rows: list[Any], index: int) -> PyTree:
        count = self._mesh.size
        keys = [_folded(key, index * count, count) if self._fold else key[None] for key in self._keys]
        y = _run(self._call, self._mesh, self._params, rows, self._whole, keys)
        refuse_traced(y)
        return y

    def _check_independent(self, first: int, index: int, leaves: list[Any]) -> None:
        """Refuses an ``f`` whose outputs depend on the other examples in the batch.

        Compares the first outputs of a batch with those in a batch of another size; with a key, whose noise may depend
        on that size, an example next to itself with the same example next to others.
        """
        count, size = self._mesh.size, self.rows // self._mesh.size
        if self._keys:
            few, width = 1, max(size, 2)
            rows, here, ends = width * count, (first, first + 1), (max(self.n - width + 1, 0), self.n)
            leaves = jax.tree.leaves(self._run([_rows(leaf, rows, here) for leaf in self._rows], index))
            others = self._run([_rows(leaf, rows, here, ends) for leaf in self._rows], index)
            compared = "next to other examples"
        else:
            few = 1 if size == 2 else 2
            others = self._outputs(first, few * count, index)
            compared = f"between batches of {size} and {few}"
            self._refuse_other_outputs(others, few)
            self._refuse_wrong_rows(others, few)
        for name, a, b in zip(self.outputs.names, leaves, jax.tree.leaves(others), strict=True):
            error = _relative_error(a[: min(few, size)], b[: min(few, size)])
            if error > _tolerance(a.dtype):
                raise ValueError(
                    f"{name} of f depends on the other examples in the batch: the first rows differ by {error:.0%} "
                    f"{compared}, so batches cannot give the kernel of the whole. Run the model in evaluation mode "
                    "(train=False, is_training=False, model.eval()), or pass check=False to take batches as they are."
                )

    def _refuse_other_outputs(self, y: PyTree, rows: int) -> None:
        """Refuses an ``f`` whose outputs are not the same ones for every size of a batch."""
        usual, other = set(self.outputs.paths), set(Outputs.named(y).paths)
        if usual != other:
            size, names = self.rows // self._mesh.size, sorted(usual ^ other)
            raise ValueError(
                f"f returns {', '.join(map(repr, names[:3]))} only for batches of {size} or only for batches of {rows} "
                f"examples of {self.side}: a layer without a batch may by chance be as long as one. Leave it out, as "
                f"f.layers('!{names[0]}') does, or take another batch_size."
            )

    def _refuse_wrong_rows(self, y: PyTree, rows: int) -> None:
        """Refuses outputs that have not a row for each of ``rows`` examples on a device."""
        y, count = Outputs.named(y), self._mesh.size
        for name, leaf in zip(y.names, y.leaves, strict=True):
            if leaf.shape[:1] != (rows * count,):
                shape = (leaf.shape[0] // count, *leaf.shape[1:]) if leaf.shape else ()
                raise ValueError(
                    f"{name} of f has shape {shape} for a batch of {rows} examples of {self.side}; batches can only be "
                    "put together along a batch axis 0 with a row for each example."
                )


def refuse_traced(tree: PyTree) -> None:
    """Refuses what has no values yet.

    Raises:
        TypeError: a leaf is traced.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            "a batched kernel function was called inside jit, grad or vmap; its loop over batches runs outside, so "
            "call it there, or use the unbatched kernel function inside."
        )


def _canonical(dtype: Any) -> Any:
    """The dtype that an array has as JAX takes it: float32 for float64, but where 64 bits are switched on."""
    return jax.dtypes.canonicalize_dtype(dtype) if isinstance(dtype, np.dtype) else dtype


def _local(leaf: Any) -> Any:
    """An input as something to slice: what is spread over devices comes to the host first."""
    return np.asarray(leaf) if isinstance(leaf, jax.Array) and len(leaf.devices()) > 1 else leaf


def _rows(leaf: Any, rows: int, *ranges: tuple[int, int]) -> Any:
    """The examples of the ranges, the last repeated to make ``rows`` of them."""
    on_device = isinstance(leaf, jax.Array)
    parts = [
        lax.dynamic_slice_in_dim(leaf, start, stop - start) if on_device else np.asarray(leaf[start:stop])
        for start, stop in ranges
    ]
    xp: Any = jnp if on_device else np
    missing = rows - sum(part.shape[0] for part in parts)
    parts.append(xp.broadcast_to(parts[-1][-1:], (missing, *parts[-1].shape[1:])))
    parts = [part for part in parts if part.shape[0]]
    return xp.concatenate(parts) if len(parts) > 1 else parts[0]


def _folded(key: Any, start: int, count: int) -> Any:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(start, start + count, dtype=np.uint32))


def _relative_error(a: Any, b: Any) -> float:
    """The largest difference over the largest value; the same NaN or infinity in the same place is no difference."""
    a, b = np.asarray(a), np.asarray(b)
    a, b = (y.astype(np.complex128 if np.iscomplexobj(y) else np.float64) for y in (a, b))
    scale = max(np.max(np.abs(y), where=np.isfinite(y), initial=0) for y in (a, b))
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    a, b = a[differ], b[differ]
    if not np.all(np.isfinite(a) & np.isfinite(b)):
        return np.inf
    return float(np.max(np.abs(a - b)) / scale) if a.size else 0.0


def _tolerance(dtype: Any) -> float:
    """How much rounding may differ between batches, where sums are taken in another order."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    eps, single = float(jnp.finfo(dtype).eps), float(jnp.finfo("float32").eps)
    return 10 * max(eps, min(eps, single) ** 0.5)
