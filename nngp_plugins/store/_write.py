"""Writes kernels larger than memory, tile by tile; a job that is killed goes on where it was."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._durable import NEW, free_component
from .._require import require
from .._typing import PyTree
from ..engine import (
    ArrayBackend,
    BatchedKernelFn,
    Held,
    HeldLayout,
    Job,
    KernelFn,
    KernelPlan,
    LeafPair,
    NamedOutputs,
    OutputSource,
    Range,
    batch,
    in_tiles,
    inputs,
    progress as show_progress,
    refuse_same_names,
    transfers_allowed,
    unpacked,
)
from ._layout import GROUP, JOB, LEDGER, Layout, checksum_of, part, reason
from ._ledger import Chunk, Ledger
from ._read import KernelStore
from ._resume import ingredients, locked, prepare

DEFAULT_TILE_BYTES = 16_000_000
TILES_IN_FLIGHT = 4


@transfers_allowed()
def write_kernel(
    kernel_fn: KernelFn | BatchedKernelFn,
    x1: PyTree,
    x2: PyTree | None,
    params: PyTree,
    path: str | os.PathLike[str],
    *,
    batch_size: int,
    tile_size: int | None = None,
    resume: bool = True,
    progress: bool = True,
    **apply_fn_kwargs: Any,
) -> KernelStore:
    """Computes a kernel larger than memory, as a Zarr v3 group on the disk.

    Each tile is a chunk of its own, and is safe on the disk before the ledger lists it. After a kill at any moment, the
    same call computes what is missing, to the same bytes.

    Args:
        kernel_fn: what :func:`empirical_nngp_fn` returns, or :func:`batch` for its other options.
        x1: inputs with N1 examples: arrays, or anything with ``shape``, ``dtype`` and slicing, such as a memmap.
        x2: inputs with N2 examples, or None for ``x1``.
        params: what ``f`` takes as its parameters.
        path: the folder to write.
        batch_size: examples in a forward pass on each device.
        tile_size: examples along the side of a tile; None for that of ``kernel_fn``, or tiles of about 16 MB.
        resume: whether to go on with a store that is there; False refuses a folder that exists.
        progress: whether to show a progress bar on stderr.
        **apply_fn_kwargs: passed to ``f``, divided between ``x1`` and ``x2`` as by :func:`batch`.

    Returns:
        The finished :class:`KernelStore`, read by slicing.

    Raises:
        FileExistsError: ``path`` holds something else, or exists with ``resume=False``.
        ValueError: the kernel in ``path`` has other params, state, data, axes, dtype or tiles, and the message says
            which; an output is NaN or infinite, or products of outputs overflow, and the message says where; the batch
            axis is traced, so that the kernel is no larger than an output.
        OSError: the disk is too small, which is found before the start, or fails. What is written stays.
        FolderInUseError: another process writes to ``path``; it is a ``BlockingIOError`` too.

    Example:
        >>> import tempfile, jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x @ params)
        >>> path = tempfile.mkdtemp() + "/k.zarr"
        >>> store = nngp.write_kernel(kernel_fn, jnp.eye(3), None, jnp.ones((3, 5)), path, batch_size=2, progress=False)
        >>> store[0, :2]
        array([1., 1.], dtype=float32)
    """
    require("tensorstore", extra="store")
    kernel_fn = kernel_fn if isinstance(kernel_fn, BatchedKernelFn) else batch(kernel_fn)
    tile_size = kernel_fn.tile_size if tile_size is None else tile_size
    kernel_fn = replace(kernel_fn, batch_size=batch_size, store_on_device=True, tile_size=tile_size)
    x1, x2 = inputs("x1", x1), inputs("x2", x2)
    params, apply_fn_kwargs = unpacked(kernel_fn.kernel_fn.f, params, apply_fn_kwargs)
    source1, source2 = kernel_fn.sources(x1, x2, params, apply_fn_kwargs)
    plan = kernel_fn.plan_of(source1, source2, tile_bytes=DEFAULT_TILE_BYTES)
    layouts = _layouts(kernel_fn.kernel_fn, plan, source1.outputs)
    made_from = {"x1": x1, "x2": x2, "params": params}
    made_from.update({f"argument {name!r}": value for name, value in apply_fn_kwargs.items()})
    made_of = ingredients(plan, made_from, _settings(kernel_fn.kernel_fn, plan, source1.outputs))
    with locked(Path(path), resume=resume) as root, closing(prepare(root, made_of, layouts)) as ledger:
        if len(ledger.tiles) < sum(layout.tiles for layout in layouts):
            with StoreWriter(root, plan, layouts, ledger) as writer, show_progress(plan, progress) as on_progress:
                first = RefuseNonFinite("x1", source1)
                second = None if source2 is None else RefuseNonFinite("x2", source2)
                in_tiles(Job(plan, first, second, kernel_fn.backend(), on_progress), writer)
    return KernelStore(root)


def _layouts(kernel_fn: KernelFn, plan: KernelPlan, outputs: NamedOutputs) -> list[Layout]:
    """The arrays to write, one for each kernel."""
    layouts: list[Layout] = []
    taken = {JOB, LEDGER, GROUP, f"{JOB}{NEW}", f"{GROUP}{NEW}"}
    for (a, b), pair in plan.pairs.items():
        if pair.role == "traced":
            raise ValueError(
                f"trace_axes average {pair.name} over batch axis 0, so its kernel is no larger than an output; "
                "compute it with nngp.batch."
            )
        name = "--".join(outputs.paths[k] or "kernel" for k in ((a, b) if kernel_fn.cross_terms else (a,)))
        component = free_component(name, taken)
        batch_axes = ("x1", "x2")[: pair.batch_axes]
        others = pair.shape[pair.batch_axes :]
        rows = [min(plan.tile_rows, size) for size in pair.shape[: pair.batch_axes]]
        dimensions = (*batch_axes, *(f"{component}_{axis}" for axis in range(len(others))))
        dtype = str(jnp.dtype(pair.dtype))
        layouts.append(Layout(name, component, pair.shape, dtype, (*rows, *others), dimensions))
    refuse_same_names(layout.name for layout in layouts)
    return layouts


def _settings(kernel_fn: KernelFn, plan: KernelPlan, outputs: NamedOutputs) -> dict[str, Any]:
    """The settings that decide the numbers, by the names that users know."""
    shapes = {path or "kernel": leaf.shape[1:] for path, leaf in zip(outputs.paths, outputs.leaves, strict=True)}
    traced, diagonal = {}, {}
    for (a, b), pair in plan.pairs.items():
        if a == b:
            # An output is kept with its diagonal axes first and its traced axes last.
            name, order = outputs.paths[a] or "kernel", plan.orders[0][a]
            traced[name] = order[len(order) - len(pair.contraction.traced[0]) :]
            diagonal[name] = order[: len(pair.contraction.diagonal[0])]
    return {
        "outputs": shapes,
        "trace_axes": traced,
        "diagonal_axes": diagonal,
        "cross_terms": kernel_fn.cross_terms,
        "dtype": [str(jnp.dtype(pair.dtype)) for pair in plan.pairs.values()],
        "precision": kernel_fn.precision,
    }


class RefuseNonFinite:
    """The outputs of ``x1`` or of ``x2``, which must be finite."""

    def __init__(self, argument: str, source: OutputSource):
        self._argument, self._source = argument, source
        self.outputs, self.batch_rows = source.outputs, source.batch_rows

    def held(self, rows: Range, layout: HeldLayout, arrays: ArrayBackend, on_rows: Callable[[int], None]) -> Held:
        """The outputs; see :meth:`OutputSource.held`.

        Raises:
            ValueError: an output is NaN or infinite; the message names the output and the examples.
        """
        held = self._source.held(rows, layout, arrays, on_rows)
        axes = tuple(layout.orders[k].index(0) if held.in_order else 0 for k in layout.leaves)
        for k, finite in zip(layout.leaves, _finite(held.leaves, axes), strict=True):
            finite = np.asarray(finite)[held.first : held.first + rows[1] - rows[0]]
            if not finite.all():
                bad = [int(i) for i in rows[0] + np.flatnonzero(~finite)]
                more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
                examples = f"{', '.join(map(str, bad[:10]))}{more}"
                name = self.outputs.names[k]
                raise ValueError(f"{name} of f is NaN or infinite for {self._argument} examples {examples}.")
        return held


@partial(jax.jit, static_argnums=1)
def _finite(leaves: list[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Which examples, along these axes, are finite."""
    return [
        jnp.isfinite(leaf).all(axis=[other for other in range(leaf.ndim) if other != axis])
        for leaf, axis in zip(leaves, axes, strict=True)
    ]


class StoreWriter:
    """Writes tiles as files; each one is safe on the disk before the ledger lists it."""

    def __init__(self, root: Path, plan: KernelPlan, layouts: list[Layout], ledger: Ledger):
        self._root, self._plan, self._layouts, self._ledger = root, plan, layouts, ledger
        self._index = {pair: index for index, pair in enumerate(plan.pairs)}
        try:
            self._arrays = [layout.open(root, create=True) for layout in layouts]
        except OSError as error:
            raise self._failed(error) from error
        self._pending: deque[tuple[Chunk, Any]] = deque()
        # One tile of an earlier run is computed again, to see that f still gives the same numbers.
        self._tile_to_compare = next(reversed(ledger.tiles), None)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._record(0)
        except OSError:
            # If the block failed already, its error says more.
            if error is None:
                raise
        finally:
            self._ledger.close()

    def wants(self, pair: LeafPair, rows: Range, columns: Range) -> bool:
        """Whether a tile or its mirror image is missing."""
        chunks = [chunk for chunk, _ in self._images(pair, rows, columns)]
        return self._tile_to_compare in chunks or any(chunk not in self._ledger.tiles for chunk in chunks)

    def write(self, pair: LeafPair, rows: Range, columns: Range, tile: np.ndarray) -> None:
        """Begins to write a tile and its mirror image, and lists the tiles that are safe by now."""
        for chunk, order in self._images(pair, rows, columns):
            image = np.ascontiguousarray(tile if order is None else tile.transpose(order).conj())
            layout = self._layouts[chunk[0]]
            array = self._arrays[chunk[0]][part(layout, chunk[1:])]
            if chunk == self._tile_to_compare:
                self._compare(array, image)
            if chunk not in self._ledger.tiles:
                # TensorStore would read a file that is there already, and that may be damaged.
                with suppress(OSError):
                    layout.file(self._root, chunk[1:]).unlink()
                self._pending.append((chunk, array.write(image)))
        self._record(TILES_IN_FLIGHT)

    def _images(self, pair: LeafPair, rows: Range, columns: Range) -> list[tuple[Chunk, tuple[int, ...] | None]]:
        """The chunk of a tile and the chunk of its mirror image, with the transposition into it."""
        kernel = self._plan.pairs[pair]
        first = (rows[0] // self._plan.tile_rows, columns[0] // self._plan.tile_rows)
        free = (0,) * (len(kernel.shape) - kernel.batch_axes)
        images: list[tuple[Chunk, tuple[int, ...] | None]] = []
        images.append(((self._index[pair], *first[: kernel.batch_axes], *free), None))
        if kernel.mirror is not None and (rows != columns or pair[0] != pair[1]):
            images.append(((self._index[pair[::-1]], *first[::-1][: kernel.batch_axes], *free), kernel.mirror))
        return images

    def _compare(self, array: Any, image: np.ndarray) -> None:
        try:
            stored = array.read().result()
        except ValueError as error:
            raise ValueError(
                f"path={str(self._root)!r} holds a damaged tile: {reason(error)}; open_kernel(path).verify() lists "
                "what to delete and compute again."
            ) from error
        if stored.tobytes() != image.tobytes():
            raise ValueError(
                f"path={str(self._root)!r} holds tiles of another f: one of them, computed again, has other numbers. "
                "Pass the f it was begun with, or another path."
            )
        self._tile_to_compare = None

    def _record(self, keep: int) -> None:
        """Waits until at most ``keep`` tiles are on their way, and lists the others in the ledger."""
        safe: list[tuple[Chunk, str]] = []
        failed: Exception | None = None
        while len(self._pending) > keep:
            chunk, written = self._pending.popleft()
            try:
                written.result()
                layout = self._layouts[chunk[0]]
                safe.append((chunk, checksum_of(layout.file(self._root, chunk[1:]), layout.chunk_bytes)))
            except (ValueError, OSError, RuntimeError) as error:
                failed = error
        if safe:
            self._ledger.append(safe)
        if failed:
            raise self._failed(failed) from failed

    def _failed(self, error: Exception) -> OSError:
        return OSError(
            f"a tile could not be written to {str(self._root)!r}: {reason(error)}. What is written stays; run the same "
            "call again to go on."
        )
