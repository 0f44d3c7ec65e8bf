"""Reads kernels and features from the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from .._show import facts_html
from ._layout import (
    KERNEL,
    Kind,
    Layout,
    check_group,
    checked,
    checksum_of,
    chunks_of,
    load_job,
    load_layouts,
    place,
    reason,
)
from ._ledger import LEDGER, Ledger, ledger_files, listed_in

A = TypeVar("A", bound="StoredArray")


class Store(Generic[A]):
    """Arrays on the disk: what kernels and features have in common."""

    _kind: ClassVar[Kind]
    _array: ClassVar[type[Any]]

    def __init__(self, path: str | os.PathLike[str]):
        self.path: Path = checked(Path(path))
        self._job = load_job(self.path, self._kind)
        self._layouts = load_layouts(self.path, self._job)
        check_group(self.path, self._layouts, self._kind)
        grids = [layout.grid for layout in self._layouts]
        self._listed = listed_in(Ledger(file, grids, self._kind) for file in ledger_files(self.path))
        self.arrays: dict[str, A] = {layout.name: self._array(self, i) for i, layout in enumerate(self._layouts)}

    @property
    def fraction(self) -> float:
        """The share of the store that is written, 0 to 1."""
        return len(self._listed) / sum(layout.tiles for layout in self._layouts)

    @property
    def complete(self) -> bool:
        """Whether all of it is written, by whatever processes."""
        return self.fraction == 1

    def refuse_unfinished(self) -> None:
        """Refuses to be read before all of it is written.

        Raises:
            ValueError: says how much is written, and what to do.
        """
        if not self.complete:
            ledgers = " and ".join(map(str, ledger_files(self.path))) or self.path / LEDGER
            raise ValueError(
                f"{self.path} is unfinished, {self.fraction:.0%} of its {self._kind.unit}s are written, as {ledgers} "
                f"says; run {self._kind.writer} again with the same arguments to finish it."
            )

    @property
    def _only(self) -> A:
        if len(self.arrays) > 1:
            many = f"{len(self.arrays)} {'kernels' if self._kind == KERNEL else 'arrays of features'}"
            raise ValueError(f"{self.path} holds {many}; pick one: store[name] of {list(self.arrays)}.")
        return next(iter(self.arrays.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the only array."""
        return self._only.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the only array."""
        return self._only.dtype

    @property
    def block_rows(self) -> int:
        """The rows of the only array that are read together."""
        return self._only.block_rows

    def __getitem__(self, key: Any) -> Any:
        """Reads from the only array, or picks one by name."""
        if not isinstance(key, str):
            return self._only[key]
        if key not in self.arrays:
            raise KeyError(f"{self.path} holds {self._kind.none} {key!r}, only {list(self.arrays)}.")
        return self.arrays[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._only, dtype)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name}: {k.dtype}{list(k.shape)}" for name, k in self.arrays.items())
        return f"{type(self).__name__}({str(self.path)!r}, {self.fraction:.0%} written, {arrays})"

    def _repr_html_(self) -> str:
        facts = {"path": str(self.path), "written": f"{self.fraction:.0%}"}
        arrays = {name: f"{array.dtype}{list(array.shape)}" for name, array in self.arrays.items()}
        return facts_html(type(self).__name__, facts | arrays)

    def verify(self) -> None:
        """Reads all that is written, and compares it with its checksums.

        Raises:
            ValueError: files are damaged or missing; the message names them.
        """
        damaged = [str(file) for file in self._damaged()]
        if damaged:
            more = f" and {len(damaged) - 10} more" if len(damaged) > 10 else ""
            raise ValueError(
                f"{len(damaged)} of {len(self._listed)} {self._kind.unit}s are damaged or missing: "
                f"{', '.join(damaged[:10])}{more}; delete these files and run {self._kind.writer} again, which "
                "computes what is missing."
            )

    def _damaged(self) -> Iterator[Path]:
        reads: deque[tuple[Path, Any]] = deque()
        arrays = [layout.open(self.path, self._kind) for layout in self._layouts]
        for index, (layout, array) in enumerate(zip(self._layouts, arrays, strict=True)):
            for chunk in product(*map(range, layout.grid)):
                checksums = self._listed.get((index, *chunk))
                if checksums is None:
                    continue
                file = layout.file(self.path, chunk)
                if _is_other(file, layout.chunk_bytes, checksums):
                    yield file
                    continue
                reads.append((file, array[place(layout, chunk)].read()))
                if len(reads) > 4:
                    yield from _bad(*reads.popleft())
        for read in reads:
            yield from _bad(*read)


class StoredArray:
    """One array of a store, read as NumPy reads: integers, slices, ``...`` and index arrays.

    Attributes:
        shape: the shape of the array.
        dtype: the dtype of the array.
        by_threads: that several threads may read at once.
    """

    by_threads = True

    def __init__(self, store: Store[Any], index: int):
        self._store, self._index = store, index
        self._layout: Layout = store._layouts[index]
        self._kind: Kind = store._kind
        # The chunks that somebody has read.
        self._read: set[tuple[int, ...]] = set()
        self.shape, self.dtype = self._layout.shape, np.dtype(self._layout.dtype)

    @property
    def block_rows(self) -> int:
        """The rows of a tile or a block, which is read as a whole."""
        return self._layout.chunk[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Reads a part of the array.

        Raises:
            ValueError: the store is unfinished, or a file is damaged.
            IndexError: an index is out of range.
        """
        self._store.refuse_unfinished()
        try:
            keys = _positive(key, self.shape)
            array = self._layout.open(self._store.path, self._kind)[keys]
            # This comes first, because TensorStore takes the memory that the description asks for.
            if len(self._read) < self._layout.tiles:
                self._compare(chunks_of(self._layout, keys))
            return np.asarray(array.read().result())
        except (ValueError, OSError) as error:
            is_or_are = "is" if self._kind == KERNEL else "are"
            raise ValueError(
                f"{self._kind.name} {self._layout.name!r} of {self._store.path} {is_or_are} damaged: {reason(error)}; "
                "store.verify() lists what to delete and compute again."
            ) from error

    def _compare(self, chunks: Iterable[tuple[int, ...]]) -> None:
        """Compares the checksum of each chunk that is read for the first time with that of the ledger.

        TensorStore compares the numbers with the checksum in the same file, which may be that of another chunk.

        Raises:
            ValueError: a chunk is whole, but is not the one that was written there.
        """
        folder = os.path.join(self._store.path, self._layout.component, "c")
        for chunk in chunks:
            if chunk not in self._read:
                file = os.path.join(folder, *map(str, chunk))
                if checksum_of(file, self._layout.chunk_bytes) not in self._store._listed[self._index, *chunk]:
                    raise ValueError(f"{file} is not the {self._kind.unit} that was written there")
                self._read.add(chunk)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[...].astype(dtype or self.dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._layout.name!r}, {self.dtype}{list(self.shape)})"


class StoredKernel(StoredArray):
    """One kernel of a store, read as NumPy reads."""


class KernelStore(Store[StoredKernel]):
    """A kernel on the disk, as :func:`open_kernel` and :func:`write_kernel` return it.

    ``store[:100, :100]`` reads; where ``f`` has several outputs, ``store["name"][:100, :100]``.

    Attributes:
        path: the folder of the store.
        arrays: the kernels by name.
    """

    _kind, _array = KERNEL, StoredKernel


def open_kernel(path: str | os.PathLike[str]) -> KernelStore:
    """Opens a kernel that :func:`write_kernel` wrote, finished or not.

    Args:
        path: the folder of the store.

    Returns:
        A :class:`KernelStore`, read by slicing. Nothing is unpickled.

    Raises:
        FileNotFoundError: there is no kernel.
        ValueError: the store is damaged, or reaches outside its folder.
    """
    return KernelStore(path)


def _is_other(file: Path, size: int, checksums: Iterable[str]) -> bool:
    """Whether a chunk is missing, has another size, or is not the one that was written there."""
    try:
        return checksum_of(file, size) not in checksums
    except OSError:
        return True


def _bad(file: Path, read: Any) -> Iterator[Path]:
    try:
        # TensorStore checks the numbers against the checksum at the end of the file.
        read.result()
    except (ValueError, OSError):
        yield file


def _positive(key: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """A NumPy index as TensorStore takes it: TensorStore does not count from the end."""
    keys = list(key) if isinstance(key, tuple) else [key]
    missing = len(shape) - sum(item is not Ellipsis for item in keys)
    if missing < 0 or any(item is None for item in keys) or sum(item is Ellipsis for item in keys) > 1:
        raise IndexError(f"index {key!r} does not fit an array of shape {shape}; read first, then reshape.")
    at = next((i for i, item in enumerate(keys) if item is Ellipsis), len(keys))
    keys[at : at + 1] = [slice(None)] * missing
    return tuple(_positive_axis(item, axis, size) for axis, (item, size) in enumerate(zip(keys, shape, strict=True)))


def _positive_axis(item: Any, axis: int, size: int) -> Any:
    if isinstance(item, slice):
        start, stop, step = item.indices(size)
        empty = (stop - start) * step <= 0
        return slice(start, start, 1) if empty else slice(start, stop, step)
    index = np.asarray(item)
    if index.dtype == bool and index.shape == (size,):
        index = np.flatnonzero(index)
    elif isinstance(item, list) and not index.size:
        index = index.astype(int)
    if not np.issubdtype(index.dtype, np.integer):
        raise IndexError(f"index {item!r} of axis {axis} is not an integer, a slice or an array of integers.")
    if np.any((index < -size) | (index >= size)):
        raise IndexError(f"index {item!r} of axis {axis} is out of range for its {size} examples or places.")
    return index.astype(np.int64) % size if index.ndim else int(index) % size
