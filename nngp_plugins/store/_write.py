"""Writes kernels larger than memory, tile by tile; a job that is killed goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._durable import NEW
from .._require import require
from .._tables import free_component
from .._typing import PyTree
from ..engine import (
    TILE_BYTES,
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
    Part,
    Range,
    batch,
    empirical_nngp_fn,
    in_tiles,
    inputs,
    progress as show_progress,
    refuse_same_names,
    undisturbed,
    unpacked,
)
from ._chunks import ChunkWriter, finite_rows, refuse_non_finite
from ._layout import GROUP, JOB, KERNEL, Layout
from ._ledger import LEDGER, Chunk
from ._read import KernelStore
from ._read_features import FeatureStore
from ._resume import OpenStore, StoreJob, begun, fingerprints, software
from ._stored_outputs import StoredOutputs, contents_of


@undisturbed()
def write_kernel(
    kernel_fn: KernelFn | BatchedKernelFn | FeatureStore,
    x1: PyTree = None,
    x2: PyTree | None = None,
    params: PyTree = None,
    path: str | os.PathLike[str] | None = None,
    *,
    batch_size: int | None = None,
    tile_size: int | None = None,
    part: tuple[int, int] | None = None,
    resume: bool = True,
    progress: bool = True,
    **apply_fn_kwargs: Any,
) -> KernelStore:
    """Computes a kernel larger than memory, as a Zarr v3 group on the disk.

    Each tile is a chunk of its own, and is safe on the disk before the ledger lists it. After a kill at any moment, the
    same call computes what is missing, to the same bytes.

    Args:
        kernel_fn: what :func:`empirical_nngp_fn` returns, or :func:`batch` for its other options. Or a
            :class:`FeatureStore`, with ``path=`` and, for a kernel ``phi1 phi2ᵀ`` of two stores, ``x2=`` another one;
            no network runs then.
        x1: inputs with N1 examples: arrays, or anything with ``shape``, ``dtype`` and slicing, such as a memmap.
        x2: inputs with N2 examples, or None for ``x1``.
        params: what ``f`` takes as its parameters.
        path: the folder to write.
        batch_size: examples in a forward pass on each device; not for stored features.
        tile_size: examples along the side of a tile; None for that of ``kernel_fn``, or tiles of about 16 MB.
        part: ``(i, n)`` to compute the i-th of n shares of the tiles, and nothing else. The n processes may run at the
            same time on machines that share a disk, or one after another, and any number of processes finishes what
            others began. A share is a few squares of tiles, for which some ``N / √n`` examples go through the network.
            None is all of it, or under ``jax.distributed`` ``(process_index, process_count)``.
        resume: whether to go on with a store that is there; False refuses a folder that exists.
        progress: whether to show a progress bar on stderr.
        **apply_fn_kwargs: passed to ``f``, divided between ``x1`` and ``x2`` as by :func:`batch`.

    Returns:
        The :class:`KernelStore`, read by slicing once all parts of it are finished (``store.complete``).

    Raises:
        TypeError: ``path`` is missing; stored features come with arguments that only a network takes.
        FileExistsError: ``path`` holds something else, or exists with ``resume=False``.
        ValueError: the kernel in ``path`` has other params, state, data, axes, dtype or tiles, and the message says
            which; an output is NaN or infinite, or products of outputs overflow, and the message says where; the batch
            axis is traced, so that the kernel is no larger than an output.
        OSError: the disk is too small, which is found before the start, or fails. What is written stays.
        FolderInUseError: another process writes to ``path``, unless it writes another of n parts; it is a
            ``BlockingIOError`` too.

    Example:
        >>> import tempfile, jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x @ params)
        >>> path = tempfile.mkdtemp() + "/k.zarr"
        >>> store = nngp.write_kernel(kernel_fn, jnp.eye(3), None, jnp.ones((3, 5)), path, batch_size=2, progress=False)
        >>> store[0, :2]
        array([1., 1.], dtype=float32)
    """
    require("tensorstore", extra="store")
    if path is None:
        raise TypeError("path=None; pass the folder to write.")
    share, given = Part.of(part), (x1, x2, params, batch_size, apply_fn_kwargs)
    asked = _of_features(kernel_fn, *given) if isinstance(kernel_fn, FeatureStore) else _of_f(kernel_fn, *given)
    tile_size = asked.kernel_fn.tile_size if tile_size is None else tile_size
    batched = replace(asked.kernel_fn, store_on_device=True, tile_size=tile_size)
    source1, source2 = asked.source1, asked.source2
    plan = batched.plan_of(source1, source2, tile_bytes=TILE_BYTES).of_part(share)
    settings = _settings(batched.kernel_fn, plan, source1.outputs)
    made_of = {**fingerprints(asked.made_of), **settings, "software": software()}
    job = StoreJob(KERNEL, _layouts(batched.kernel_fn, plan, source1.outputs), made_of, share)
    with begun(Path(path), job, resume=resume) as store:
        writer = StoreWriter(store, plan, job)
        if writer.is_wanted():
            totals = plan.forward_rows, ("tiles of the kernel", plan.tile_count)
            with writer, show_progress(progress, *totals) as on_progress:
                first = RefuseNonFinite("x1", source1)
                second = None if source2 is None else RefuseNonFinite("x2", source2)
                in_tiles(Job(plan, first, second, batched.backend(), on_progress), writer)
    return KernelStore(store.root)


class _Asked(NamedTuple):
    """The kernel that a call asks for.

    Attributes:
        kernel_fn: how it is contracted.
        source1: the outputs of ``x1``.
        source2: those of ``x2``; None if ``x2`` is None.
        made_of: all that decides the outputs, by the names that users know.
    """

    kernel_fn: BatchedKernelFn
    source1: OutputSource
    source2: OutputSource | None
    made_of: dict[str, Any]


def _of_f(
    kernel_fn: KernelFn | BatchedKernelFn, x1: PyTree, x2: PyTree | None, params: PyTree, batch_size: Any, kwargs: Any
) -> _Asked:
    """The kernel of what ``f`` returns."""
    kernel_fn = kernel_fn if isinstance(kernel_fn, BatchedKernelFn) else batch(kernel_fn)
    kernel_fn = replace(kernel_fn, batch_size=batch_size)
    x1, x2 = inputs("x1", x1), inputs("x2", x2)
    params, kwargs = unpacked(kernel_fn.kernel_fn.f, params, kwargs)
    made_of = {"x1": x1, "x2": x2, "params": params}
    made_of.update({f"argument {name!r}": value for name, value in kwargs.items()})
    return _Asked(kernel_fn, *kernel_fn.sources(x1, x2, params, kwargs), made_of)


def _of_features(
    store: FeatureStore, x1: PyTree, x2: PyTree | None, params: PyTree, batch_size: Any, kwargs: Any
) -> _Asked:
    """The kernel of features that are stored already."""
    if (
        any(value is not None for value in (x1, params, batch_size))
        or kwargs
        or not isinstance(x2, FeatureStore | None)
    ):
        raise TypeError(
            "the features of a FeatureStore are there already; pass nngp.write_kernel(store, path=...), with "
            "x2=another_store for a kernel of two."
        )
    made_of = {"x1": contents_of(store), "x2": contents_of(x2)}
    second = None if x2 is None else StoredOutputs(x2)
    return _Asked(batch(empirical_nngp_fn(store.as_outputs)), StoredOutputs(store), second, made_of)


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
    settings = {
        "outputs": shapes,
        "trace_axes": traced,
        "diagonal_axes": diagonal,
        "cross_terms": kernel_fn.cross_terms,
        "dtype": [str(jnp.dtype(pair.dtype)) for pair in plan.pairs.values()],
        "precision": kernel_fn.precision,
    }
    sizes = {"tile_size": plan.tile_rows, "batch_size": plan.batch_rows}
    return {**{name: str(value) for name, value in settings.items()}, **sizes}


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
        for k, finite in zip(layout.leaves, finite_rows(held.leaves, axes), strict=True):
            finite = np.asarray(finite)[held.first : held.first + rows[1] - rows[0]]
            refuse_non_finite(finite, rows[0], self.outputs.names[k], self._argument)
        return held


class StoreWriter(ChunkWriter):
    """Writes the tiles of a part, each with its mirror image."""

    def __init__(self, store: OpenStore, plan: KernelPlan, job: StoreJob):
        self._plan = plan
        self._index = {pair: index for index, pair in enumerate(plan.pairs)}
        self._pairs = list(plan.pairs)
        super().__init__(store, job)

    def owns(self, chunk: Chunk) -> bool:
        """Whether a tile, or the one that it is the mirror image of, belongs to the part."""
        kernel = self._plan.pairs[self._pairs[chunk[0]]]
        i, j = chunk[1:3] if kernel.batch_axes == 2 else (chunk[1], chunk[1])
        return ((j, i) if self._plan.symmetric and j < i else (i, j)) in self._plan.own_tiles

    def wants(self, pair: LeafPair, rows: Range, columns: Range) -> bool:
        """Whether a tile or its mirror image is missing."""
        return any(self.needs(chunk) for chunk, _ in self._images(pair, rows, columns))

    def write(self, pair: LeafPair, rows: Range, columns: Range, tile: np.ndarray) -> None:
        """Begins to write a tile and its mirror image, and lists the tiles that are safe by now."""
        for chunk, order in self._images(pair, rows, columns):
            self.put(chunk, tile if order is None else tile.transpose(order).conj())

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
