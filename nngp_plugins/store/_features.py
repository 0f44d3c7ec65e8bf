"""Writes the features of a model, block by block; a job that is killed goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._durable import NEW
from .._require import require
from .._tables import free_component
from .._typing import PyTree, wide
from ..engine import (
    NetworkOutputs,
    Part,
    batch,
    batch_first,
    empirical_nngp_fn,
    progress as show_progress,
    refuse_same_names,
    undisturbed,
    unpacked,
)
from ._chunks import ChunkWriter, finite_rows, refuse_non_finite
from ._layout import FEATURES, GROUP, JOB, Layout
from ._ledger import LEDGER, Chunk
from ._read_features import IDS, FeatureStore, as_ids, described
from ._resume import OpenStore, StoreJob, begun, fingerprints, software

BLOCK_BYTES = 16_000_000


@undisturbed()
def write_features(
    f: Callable[..., PyTree],
    x: PyTree,
    params: PyTree,
    path: str | os.PathLike[str],
    *,
    batch_size: int,
    block_size: int | None = None,
    dtype: Any = None,
    part: tuple[int, int] | None = None,
    ids: Any = None,
    resume: bool = True,
    progress: bool = True,
    **apply_fn_kwargs: Any,
) -> FeatureStore:
    """Writes the features of a model's outputs on N examples to the disk, as a Zarr v3 group.

    The features ``phi`` of an output are its numbers ``(N, D)``, divided by ``sqrt(D)``, so that ``K = phi phiᵀ``.
    Every example goes through the network once, for all outputs. Each block of examples is a chunk of its own, and is
    safe on the disk before the ledger lists it. After a kill at any moment, the same call computes what is missing, to
    the same bytes.

    Args:
        f: ``f(params, x, **kwargs)``, such as a :class:`ModelFn`; ``f.layers()`` for the features of every layer.
        x: inputs with N examples along axis 0: arrays, or anything with ``shape``, ``dtype`` and slicing, such as a
            memmap.
        params: what ``f`` takes as its parameters.
        path: the folder to write.
        batch_size: examples in a forward pass on each device.
        block_size: examples of a block, rounded up to whole batches; None for blocks of about 16 MB.
        dtype: the dtype to store, such as ``jnp.bfloat16`` for half of the bytes and three digits; None for that of the
            output, at least float32.
        part: ``(i, n)`` to write the i-th of n shares of the examples, and nothing else. The n processes may run at the
            same time on machines that share a disk, or one after another, and any number of processes finishes what
            others began. None is all of it, or under ``jax.distributed`` ``(process_index, process_count)``.
        ids: whole numbers or strings, ``(N,)``, by which examples are known; they are kept beside the features.
        resume: whether to go on with a store that is there; False refuses a folder that exists.
        progress: whether to show a progress bar on stderr.
        **apply_fn_kwargs: passed to ``f``, as by :func:`batch`.

    Returns:
        The :class:`FeatureStore`, read by slicing once all parts of it are finished (``store.complete``).

    Raises:
        FileExistsError: ``path`` holds something else, or exists with ``resume=False``.
        ValueError: the features in ``path`` have other params, state, data, ids, dtype or batches, and the message says
            which; an output is NaN or infinite, and the message says for which examples; outputs depend on the other
            examples in the batch; an argument is wrong.
        TypeError: an output is complex.
        OSError: the disk is too small, which is found before the start, or fails. What is written stays.
        FolderInUseError: another process writes the same part, or one of another number of parts.

    Example:
        >>> import tempfile, jax.numpy as jnp, nngp_plugins as nngp
        >>> path = tempfile.mkdtemp() + "/phi.zarr"
        >>> f = lambda params, x: x @ params
        >>> store = nngp.write_features(f, jnp.eye(6), jnp.ones((6, 4)), path, batch_size=2, progress=False)
        >>> store[:2]
        array([[0.5, 0.5, 0.5, 0.5],
               [0.5, 0.5, 0.5, 0.5]], dtype=float32)
        >>> round(float(nngp.metrics.effective_rank(nngp.gram(store))), 3)
        1.0
    """
    require("tensorstore", extra="store")
    dtype, share = _checked_dtype(dtype), Part.of(part)
    f, x = batch_first(f, "x", x)
    params, apply_fn_kwargs = unpacked(f, params, apply_fn_kwargs)
    kernel_fn = batch(empirical_nngp_fn(_FeaturesOf(f, dtype)), batch_size)
    source, _ = kernel_fn.sources(x, None, params, apply_fn_kwargs)
    given = {"x": x, "params": params}
    if ids is not None:
        given["ids"] = ids = as_ids(ids, source.n)
    given.update({f"argument {name!r}": value for name, value in apply_fn_kwargs.items()})
    layouts = _layouts(source, block_size)
    made_of = {**fingerprints(given), **_settings(source, layouts), "software": software()}
    also = {"outputs": described(source.outputs.structure, [layout.name for layout in layouts])}
    job = StoreJob(FEATURES, layouts, made_of, share, also, {} if ids is None else {IDS: ids.tolist()})
    with begun(Path(path), job, resume=resume) as store:
        writer = BlockWriter(store, job)
        if writer.is_wanted():
            with writer, show_progress(progress, source.n, ("blocks of features", len(writer.own))) as on_progress:
                for blocks in writer.runs():
                    _write(source, blocks, writer, on_progress)
    return FeatureStore(store.root)


class BlockWriter(ChunkWriter):
    """Writes the blocks of a part.

    Attributes:
        own: the numbers of its blocks.
        block_rows: examples of a block.
    """

    def __init__(self, store: OpenStore, job: StoreJob):
        self.own, self.block_rows = job.part.of_range(job.layouts[0].grid[0]), job.layouts[0].chunk[0]
        super().__init__(store, job)

    def owns(self, chunk: Chunk) -> bool:
        """Whether a block belongs to the part."""
        return chunk[1] in self.own

    def runs(self) -> Iterator[range]:
        """The blocks to compute: ranges of consecutive ones."""
        arrays = range(len(self._job.layouts))
        first = self.own.start
        for block in (*self.own, self.own.stop):
            if block == self.own.stop or not any(self.needs((array, block, 0)) for array in arrays):
                if first < block:
                    yield range(first, block)
                first = block + 1


def _write(source: NetworkOutputs, blocks: range, writer: BlockWriter, on_progress: Any) -> None:
    """Runs the network on the examples of some blocks, and writes each block when its batches are done."""
    rows = writer.block_rows
    parts: list[list[np.ndarray]] = []
    for first, leaves in source.batches((blocks.start * rows, min(blocks.stop * rows, source.n)), on_progress[0]):
        examples = min(source.batch_rows, source.n - first)
        for name, finite in zip(source.outputs.names, finite_rows(leaves, (0,) * len(leaves)), strict=True):
            refuse_non_finite(np.asarray(finite)[:examples], first, name, "x")
        parts.append([np.asarray(leaf)[:examples] for leaf in leaves])
        if (first + examples) % rows == 0 or first + examples == source.n:
            for array, leaf in enumerate(zip(*parts, strict=True)):
                writer.put((array, first // rows, 0), leaf[0] if len(leaf) == 1 else np.concatenate(leaf))
            parts = []
            on_progress[1](1)


def _settings(source: NetworkOutputs, layouts: list[Layout]) -> dict[str, Any]:
    """The settings that decide the numbers, by the names that users know."""
    return {
        "outputs": str({layout.name: layout.shape[1:] for layout in layouts}),
        "dtype": str([layout.dtype for layout in layouts]),
        "batch_size": source.batch_rows,
        "block_size": layouts[0].chunk[0],
    }


def _layouts(source: NetworkOutputs, block_size: int | None) -> list[Layout]:
    """The arrays to write, one for each output. A block holds whole batches, so that they are the same in any part."""
    outputs = source.outputs
    refuse_same_names(path or FEATURES.name for path in outputs.paths)
    row_bytes = max(leaf.shape[1] * leaf.dtype.itemsize for leaf in outputs.leaves)
    if block_size is not None and (not isinstance(block_size, Integral) or block_size < 1):
        raise ValueError(f"block_size={block_size!r} must be a positive number of examples, or None.")
    batches = -(-block_size // source.batch_rows) if block_size else BLOCK_BYTES // (row_bytes * source.batch_rows)
    rows = min(source.n, max(1, int(batches)) * source.batch_rows)
    taken = {JOB, LEDGER, GROUP, IDS, *(f"{name}{NEW}" for name in (JOB, GROUP, IDS))}
    layouts = []
    for path, leaf in zip(outputs.paths, outputs.leaves, strict=True):
        name = path or FEATURES.name
        component = free_component(name, taken)
        dimensions = ("x", f"{component}_0")
        layouts.append(Layout(name, component, leaf.shape, str(leaf.dtype), (rows, leaf.shape[1]), dimensions))
    return layouts


def _checked_dtype(dtype: Any) -> Any:
    """A floating dtype that JAX computes with, or None."""
    if dtype is None:
        return None
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"dtype={str(dtype)!r} must be a dtype of real numbers, such as float32 or bfloat16; float64 needs "
            "jax_enable_x64."
        )
    return dtype


@dataclass(frozen=True)
class _FeaturesOf:
    """A model as a function that returns the features of each output.

    Attributes:
        f: the model.
        dtype: the dtype of the features; None for that of the output, at least float32.
    """

    f: Callable[..., PyTree]
    dtype: Any

    def __call__(self, params: PyTree, x: PyTree, **kwargs: Any) -> PyTree:
        return jax.tree.map(self._features, self.f(params, x, **kwargs))

    def _features(self, y: Array) -> Array:
        y = jnp.asarray(y)
        if jnp.issubdtype(y.dtype, jnp.complexfloating):
            raise TypeError(f"features are real, and an output is {y.dtype}; return its real and imaginary parts.")
        flat = y.reshape(y.shape[0], -1).astype(wide(y.dtype))
        phi = flat / jnp.sqrt(jnp.asarray(flat.shape[1], flat.dtype))
        return phi if self.dtype is None else phi.astype(self.dtype)
