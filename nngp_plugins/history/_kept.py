"""Kernels of every snapshot, which a run folder keeps."""

from __future__ import annotations

import errno
import math
import zlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._require import require
from .._tables import free_component
from ..metrics import undivided
from ._files import KERNELS
from ._kept_arrays import (
    EXPONENT,
    NO_STEP,
    STEP,
    ZARR,
    description,
    file_of,
    folders_of,
    make_or_open,
    open_all,
    open_array,
    resized,
    row_of,
)


class _Row(NamedTuple):
    """What is kept of a snapshot: its row and its step, and the kernel or the features of each layer."""

    i: int
    step: int
    kept: Mapping[str, np.ndarray]
    exponents: np.ndarray

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.kept.values())


class KeptKernels:
    """A Zarr v3 group ``kernels`` with an array for each layer, ``(snapshots, N, N)``.

    A layer with D < N features keeps its features, ``(snapshots, N, D)``, in place of the kernel, which is their
    product with themselves. Row i belongs to line i of ``metrics.jsonl``. The array ``step`` holds its step, which is
    written when the kernels are safe, so that a row without its step does not count.

    If a kernel leaves the range of its dtype, there is the array ``-exponent``, ``(snapshots, L)``. A kernel is what is
    held times 4 to this power. The attribute ``layers`` of this array is the order of its layers, and ``first_row`` is
    the first row that it has.

    Args:
        run: the run folder.
        most_bytes: the bytes of host memory for rows that the disk did not take. They are written when it takes others.
    """

    def __init__(self, run: Path, most_bytes: int):
        require("tensorstore", extra="store")
        self._root, self._most_bytes = run / KERNELS, most_bytes
        self._arrays: list[Any] = []
        self._rows = 0
        self._held: deque[_Row] = deque()

    def append(self, i: int, step: int, kept: Mapping[str, np.ndarray], exponents: np.ndarray) -> None:
        """Writes row ``i``: the kernel, divided by a power of 4, or the features of each layer.

        Raises:
            OSError: the disk did not take it. Until it does, reading it is an error, and later rows can be written.
        """
        row = _Row(i, step, kept, exponents)
        try:
            self._write(row)
        except OSError:
            if sum(other.nbytes for other in self._held) + row.nbytes <= self._most_bytes:
                self._held.append(row)
            raise
        self.catch_up()

    def catch_up(self) -> None:
        """Writes rows that the disk did not take before, as far as it takes them now."""
        for _ in range(len(self._held)):
            try:
                self._write(self._held[0])
            except OSError:
                # What is wrong may be wrong with this row alone.
                self._held.rotate(-1)
                return
            self._held.popleft()

    def _write(self, row: _Row) -> None:
        i, step, kept, exponents = row
        values = [np.asarray(step, np.int64), *kept.values()]
        try:
            if not self._arrays:
                self._arrays = open_all(self._root, kept, values)
            if len(self._arrays) == len(values) and (exponents.any() or (self._root / EXPONENT).exists()):
                about = {"name": "", "layers": list(kept), "first_row": i}
                self._arrays.append(make_or_open(self._root / EXPONENT, about, exponents, ["layer"]))
            if len(self._arrays) > len(values):
                order = description(self._root / EXPONENT)["attributes"]["layers"]
                values.append(
                    exponents[[list(kept).index(layer) for layer in order]].astype(self._arrays[-1].dtype.numpy_dtype)
                )
            self._rows = max(self._rows, i + 1)
            self._arrays = resized(self._arrays, self._rows)
            for write in [array[i].write(value) for array, value in zip(self._arrays[1:], values[1:], strict=True)]:
                write.result()
            self._arrays[0][i].write(values[0]).result()
        except (ValueError, RuntimeError) as error:
            # TensorStore reports errors of the disk as either of these.
            raise OSError(f"{self._root} can't be written: {error}") from error


def checksums(kept: Mapping[str, np.ndarray], exponents: np.ndarray) -> list[int]:
    """One of what is kept of each layer, in their order, so that the kernel of another snapshot is noticed."""
    return [_checksum(value, int(exponent)) for value, exponent in zip(kept.values(), exponents, strict=True)]


def _checksum(value: np.ndarray, exponent: int) -> int:
    """The CRC-32 of the numbers, which begins with the exponent."""
    return zlib.crc32(np.ascontiguousarray(value).view(np.uint8).data, exponent % 2**32)


def cut_off(run: Path, rows: int) -> None:
    """Makes the rows not count that a process wrote which was killed before their line was whole.

    Raises:
        ValueError: the array of steps is damaged.
        OSError: the disk fails.
    """
    # A process may have been killed before the array was there that its folder is for.
    if (run / KERNELS / STEP / ZARR).exists():
        steps = open_array(run / KERNELS / STEP)
        if steps.shape[0] > rows:
            try:
                resized([steps], rows)
            except (ValueError, RuntimeError) as error:
                raise OSError(errno.EIO, f"its kernels can't be cut: {error}", str(run / KERNELS)) from error


def kept_kernel(run: Path | None, layer: str, i: int, step: int, *, checksum: int | None, diverged: bool) -> np.ndarray:
    """The kernel ``(N, N)`` of a layer in row ``i``, made from its features if these are kept.

    It is in float64 if it leaves the range of float32.

    Args:
        run: the run folder.
        layer: the name of the layer.
        i: the row.
        step: the step of the row.
        checksum: what :func:`checksums` said when it was measured; None for a run of an older version.
        diverged: whether the kernel is not finite.

    Raises:
        FileNotFoundError: the run keeps no kernels.
        ValueError: the disk did not take this kernel, or its file is damaged.
    """
    if run is None or not (run / KERNELS).is_dir():
        raise FileNotFoundError(f"run={str(run)!r} keeps no kernels; pass keep_kernels=True to KernelTracker.")
    folder = folders_of(run / KERNELS).get(layer, run / KERNELS / free_component(layer, set()))
    of = f"the kernel of layer {layer!r} at step {step}"
    for file in (folder / ZARR, run / KERNELS / STEP / ZARR):
        if not file.exists():
            raise ValueError(f"{file} is missing, so that {of} is lost; perhaps the disk did not take it.")
    steps, array = open_array(run / KERNELS / STEP), open_array(folder)
    file = file_of(run / KERNELS / STEP, i, 1)
    missing = f"{folder} lacks {of}, which the disk did not take, or {file}, which would say so, is damaged."
    says = row_of(run / KERNELS / STEP, steps, i, of) if i < min(steps.shape[0], array.shape[0]) else NO_STEP
    # Version 0.1.0 did not write the step 0.
    if (steps.fill_value if says is None else says) != step:
        raise ValueError(missing)
    value = row_of(folder, array, i, of)
    if value is None:
        # Version 0.1.0 did not write a kernel of which all is nan.
        if diverged and steps.fill_value != NO_STEP:
            return np.full(array.shape[1:], np.nan, array.dtype.numpy_dtype)
        raise ValueError(missing)
    exponent = _exponent(run / KERNELS / EXPONENT, layer, i, of)
    if checksum is not None and checksum != _checksum(value, exponent):
        raise ValueError(f"{file_of(folder, i, array.rank)} is not what was written there, so that {of} is lost.")
    return undivided(value, exponent) if value.shape[0] == value.shape[1] else _kernel_of(value)


def _exponent(folder: Path, layer: str, i: int, of: str) -> int:
    if not (folder / ZARR).exists():
        return 0
    about, array = description(folder)["attributes"], open_array(folder)
    exponents = row_of(folder, array, i, of) if i < array.shape[0] else None
    # Rows before the first kernel that left the range have none.
    if exponents is None and i >= about.get("first_row", math.inf):
        raise ValueError(f"{folder} lacks a row, so that {of} is lost.")
    if layer not in about.get("layers", ()):
        raise ValueError(f"{folder / ZARR} is damaged: it does not name layer {layer!r}.")
    return 0 if exponents is None else int(exponents[about["layers"].index(layer)])


def _kernel_of(features: np.ndarray) -> np.ndarray:
    largest, numbers = np.abs(features).max(initial=0), np.finfo(features.dtype)
    is_far = largest > 0 and abs(np.log2(largest)) > numbers.maxexp // 4
    features = features.astype(np.result_type(features, np.float64)) if is_far else features
    return features @ features.conj().T
