"""Writes kernels larger than memory: tile by tile, durably, and on from where it was when it is killed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._require import require
from ._batch import BatchedKernelFn, batch
from ._contract import Tile
from ._empirical import KernelFn, Outputs
from ._inputs import unpacked
from ._job import Job, Range
from ._layout import GROUP, JOB, LEDGER, Layout, checksum_of, free_component, part, reason
from ._ledger import Chunk, Ledger
from ._memory import Memory
from ._resume import fingerprints, locked, prepare
from ._run import Place, Side, run, ticks
from ._store import KernelStore

PyTree = Any
# of a tile by default
TILE_BYTES = 16_000_000
# tiles on their way to the disk
PENDING = 4


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

    Each tile is a chunk of its own, safe on the disk before the ledger lists it. Killed at any moment, the same call
    computes what is missing, to the same bytes.

    Args:
        kernel_fn: what :func:`empirical_nngp_fn` returns, or :func:`batch` for its other options.
        x1: inputs with N1 examples: arrays, or anything with ``shape``, ``dtype`` and slicing, such as a memmap.
        x2: inputs with N2 examples, or None for ``x1``.
        params: what ``f`` takes as its parameters.
        path: folder to write.
        batch_size: examples in a forward pass on each device.
        tile_size: examples along the side of a tile; None for tiles of about 16 MB.
        resume: whether to go on with what is there; False refuses a folder that exists.
        progress: show a progress bar (on stderr).
        **apply_fn_kwargs: passed to ``f``, as :func:`batch` deals them out.

    Returns:
        The finished :class:`KernelStore`, read by slicing.

    Raises:
        FileExistsError: ``path`` holds something else, or exists with ``resume=False``.
        ValueError: the kernel there is of other params, state, data, axes, dtype or tiles: says which; an output is
            NaN or infinite: says where; the batch axis is traced, so the kernel is no larger than an output.
        OSError: the disk is too small, found before the start, or fails. What is written stays.
        BlockingIOError: another process writes there.

    Example:
        >>> import tempfile, jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x @ params)
        >>> path = tempfile.mkdtemp() + "/k.zarr"
        >>> store = nngp.write_kernel(kernel_fn, jnp.eye(3), None, jnp.ones((3, 5)), path, batch_size=2, progress=False)
        >>> store[0, :2]
        array([1., 1.], dtype=float32)
    """
    require("tensorstore", extra="store")
    if tile_size is not None and (not isinstance(tile_size, Integral) or tile_size < 1):
        raise ValueError(f"tile_size={tile_size!r} must be a positive number of examples, or None.")
    kernel_fn = kernel_fn if isinstance(kernel_fn, BatchedKernelFn) else batch(kernel_fn)
    kernel_fn = replace(kernel_fn, batch_size=batch_size, store_on_device=True)
    params, apply_fn_kwargs = unpacked(kernel_fn.kernel_fn.f, params, apply_fn_kwargs)
    side1, side2 = kernel_fn.sides(x1, x2, params, apply_fn_kwargs)
    job = kernel_fn.job_of(side1, side2, side1.rows, tile_rows=tile_size and int(tile_size), tile_bytes=TILE_BYTES)
    layouts = _layouts(kernel_fn.kernel_fn, job, side1.outputs)
    inputs = {"x1": x1, "x2": x2, "params": params}
    inputs.update({f"argument {name!r}": value for name, value in apply_fn_kwargs.items()})
    made_of = fingerprints(job, inputs, _settings(kernel_fn.kernel_fn, job, side1.outputs))
    with locked(Path(path), resume=resume) as root:
        ledger = prepare(root, made_of, layouts)
        if len(ledger.tiles) < sum(layout.tiles for layout in layouts):
            with StoreWriter(root, job, layouts, ledger) as writer, ticks(job, progress) as on:
                first = Finite("x1", side1)
                second = None if side2 is None else Finite("x2", side2)
                run(job, kernel_fn.kernel_fn.precision, first, second, kernel_fn.memory(), writer, on)
    return KernelStore(root)


def _layouts(kernel_fn: KernelFn, job: Job, outputs: Outputs) -> list[Layout]:
    """The arrays to write, one a kernel."""
    layouts: list[Layout] = []
    taken = {JOB, LEDGER, GROUP, f"{JOB}.new", f"{GROUP}.new"}
    for (a, b), pair in job.pairs.items():
        if pair.role == "traced":
            raise ValueError(
                f"trace_axes average {pair.name} over batch axis 0, so its kernel is no larger than an output; "
                "compute it with nngp.batch."
            )
        name = "--".join(outputs.paths[k] or "kernel" for k in ((a, b) if kernel_fn.cross_terms else (a,)))
        if name in (layout.name for layout in layouts):
            raise ValueError(f"two outputs of f are called {name!r}; give each a name of its own.")
        component = free_component(name, taken)
        batch_axes = ("x1", "x2")[: pair.batch_axes]
        others = pair.shape[pair.batch_axes :]
        rows = [min(job.tile_rows, size) for size in pair.shape[: pair.batch_axes]]
        dimensions = (*batch_axes, *(f"{component}_{axis}" for axis in range(len(others))))
        dtype = str(jnp.dtype(pair.dtype))
        layouts.append(Layout(name, component, pair.shape, dtype, (*rows, *others), dimensions))
    return layouts


def _settings(kernel_fn: KernelFn, job: Job, outputs: Outputs) -> dict[str, Any]:
    """What else decides the numbers, by the names that users know."""
    shapes = {path or "kernel": leaf.shape[1:] for path, leaf in zip(outputs.paths, outputs.leaves, strict=True)}
    traced, diagonal = {}, {}
    for (a, b), pair in job.pairs.items():
        if a == b:
            count = len(job.orders[0][a]) - len(pair.plan.traced[0])
            name = outputs.paths[a] or "kernel"
            traced[name], diagonal[name] = job.orders[0][a][count:], job.orders[0][a][: len(pair.plan.diagonal[0])]
    return {
        "outputs": shapes,
        "trace_axes": traced,
        "diagonal_axes": diagonal,
        "cross_terms": kernel_fn.cross_terms,
        "dtype": [str(jnp.dtype(pair.dtype)) for pair in job.pairs.values()],
        "precision": kernel_fn.precision,
    }


class Finite:
    """One side of a kernel whose outputs must be finite."""

    def __init__(self, name: str, side: Side):
        self._name, self._side = name, side
        self.outputs = side.outputs

    def tiles(
        self, start: int, stop: int, size: int, memory: Memory, on_rows: Callable[[int], None]
    ) -> list[list[Any]]:
        """The outputs; see :meth:`Side.tiles`.

        Raises:
            ValueError: some are NaN or infinite; names the layer and the examples.
        """
        tiles = self._side.tiles(start, stop, size, memory, on_rows)
        for low, leaves in zip(range(start, stop, size), tiles, strict=True):
            for name, finite in zip(self.outputs.names, _finite(leaves), strict=True):
                if not np.all(finite):
                    bad = [int(i) for i in low + np.flatnonzero(~np.asarray(finite))]
                    more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
                    said = f"{', '.join(map(str, bad[:10]))}{more}"
                    raise ValueError(f"{name} of f is NaN or infinite for {self._name} examples {said}.")
        return tiles


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all(axis=range(1, leaf.ndim)) for leaf in leaves]


class StoreWriter:
    """Where tiles become files: each is safe on the disk before the ledger lists it."""

    def __init__(self, root: Path, job: Job, layouts: list[Layout], ledger: Ledger):
        self._root, self._job, self._layouts, self._ledger = root, job, layouts, ledger
        self._index = {place: index for index, place in enumerate(job.pairs)}
        try:
            self._arrays = [layout.open(root, create=True) for layout in layouts]
        except OSError as error:
            raise self._failed(error) from error
        self._pending: deque[tuple[Chunk, Any]] = deque()
        # a tile of an earlier run that is computed again, to see that f still gives the same
        self._known = next(reversed(ledger.tiles), None)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._record(0)
        except OSError:
            if error is None:
                raise  # else the first error says more
        finally:
            self._ledger.close()

    def wants(self, place: Place, rows: Range, columns: Range) -> bool:
        """Whether a tile or its mirror image is missing."""
        chunks = [chunk for chunk, _ in self._images(place, rows, columns)]
        return self._known in chunks or any(chunk not in self._ledger.tiles for chunk in chunks)

    def start(self, tile: Tile) -> jax.Array:
        """Computes a tile while those before are written."""
        return tile()

    def write(self, place: Place, rows: Range, columns: Range, tile: jax.Array) -> None:
        """Begins to write a tile and its mirror image, and lists those that are safe by now."""
        for chunk, order in self._images(place, rows, columns):
            image = np.asarray(tile if order is None else _mirrored(tile, order))
            layout = self._layouts[chunk[0]]
            array = self._arrays[chunk[0]][part(layout, chunk[1:])]
            if chunk == self._known:
                self._check_known(array, image)
            if chunk not in self._ledger.tiles:
                with suppress(OSError):  # TensorStore would read a file that is there, and it may be damaged
                    layout.file(self._root, chunk[1:]).unlink()
                self._pending.append((chunk, array.write(image)))
        self._record(PENDING)

    def _images(self, place: Place, rows: Range, columns: Range) -> list[tuple[Chunk, tuple[int, ...] | None]]:
        """The chunk of a tile and that of its mirror image, with the transposition into it."""
        pair = self._job.pairs[place]
        first = (rows[0] // self._job.tile_rows, columns[0] // self._job.tile_rows)
        free = (0,) * (len(pair.shape) - pair.batch_axes)
        images: list[tuple[Chunk, tuple[int, ...] | None]] = []
        images.append(((self._index[place], *first[: pair.batch_axes], *free), None))
        if pair.mirror is not None and (rows != columns or place[0] != place[1]):
            images.append(((self._index[place[::-1]], *first[::-1][: pair.batch_axes], *free), pair.mirror))
        return images

    def _check_known(self, array: Any, image: np.ndarray) -> None:
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
        self._known = None

    def _record(self, keep: int) -> None:
        """Waits until at most ``keep`` tiles are on their way, and lists the others."""
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


@partial(jax.jit, static_argnames="order")
def _mirrored(tile: jax.Array, order: tuple[int, ...]) -> jax.Array:
    return tile.transpose(order).conj()
