"""Kernels of every snapshot, which a run folder keeps."""

from __future__ import annotations

import errno
import json
import math
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._durable import check_plain, free_component, read_plain, replace_file
from .._require import require
from ..metrics import undivided
from ._files import KERNELS

# The names of folders of layers begin with no hyphen.
_STEP, _EXPONENT, _ZARR = "step", "-exponent", "zarr.json"
_NO_STEP = -(2**63)
"""What the array of steps says of rows that are not whole; those of version 0.1.0 say 0."""


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
                self._arrays = _opened(self._root, kept, values)
            if len(self._arrays) == len(values) and (exponents.any() or (self._root / _EXPONENT).exists()):
                about = {"name": "", "layers": list(kept), "first_row": i}
                self._arrays.append(_made(self._root / _EXPONENT, about, exponents, ["layer"]))
            if len(self._arrays) > len(values):
                order = _about(self._root / _EXPONENT)["attributes"]["layers"]
                values.append(
                    exponents[[list(kept).index(layer) for layer in order]].astype(self._arrays[-1].dtype.numpy_dtype)
                )
            self._rows = max(self._rows, i + 1)
            self._arrays = _resized(self._arrays, self._rows)
            for write in [array[i].write(value) for array, value in zip(self._arrays[1:], values[1:], strict=True)]:
                write.result()
            self._arrays[0][i].write(values[0]).result()
        except (ValueError, RuntimeError) as error:
            # TensorStore reports errors of the disk as either of these.
            raise OSError(f"{self._root} can't be written: {error}") from error


def cut_off(run: Path, rows: int) -> None:
    """Makes the rows not count that a process wrote which was killed before their line was whole.

    Raises:
        ValueError: the array of steps is damaged.
        OSError: the disk fails.
    """
    if (run / KERNELS / _STEP).exists():
        steps = _open(run / KERNELS / _STEP)
        if steps.shape[0] > rows:
            try:
                _resized([steps], rows)
            except (ValueError, RuntimeError) as error:
                raise OSError(errno.EIO, f"its kernels can't be cut: {error}", str(run / KERNELS)) from error


def kept_kernel(run: Path | None, layer: str, i: int, step: int, *, diverged: bool) -> np.ndarray:
    """The kernel ``(N, N)`` of a layer in row ``i``, made from its features if these are kept.

    It is in float64 if it leaves the range of float32.

    Args:
        run: the run folder.
        layer: the name of the layer.
        i: the row.
        step: the step of the row.
        diverged: whether the kernel is not finite.

    Raises:
        FileNotFoundError: the run keeps no kernel of this layer.
        ValueError: the disk did not take this kernel, or its file is damaged.
    """
    folder = None if run is None else _folders(run / KERNELS).get(layer)
    if run is None or folder is None:
        raise FileNotFoundError(f"run={str(run)!r} keeps no kernels; pass keep_kernels=True to KernelTracker.")
    of = f"the kernel of layer {layer!r} at step {step}"
    steps, array = _open(run / KERNELS / _STEP), _open(folder)
    file = run / KERNELS / _STEP / "c" / str(i)
    missing = f"{folder} lacks {of}, which the disk did not take, or {file}, which would say so, is damaged."
    says = _row(run / KERNELS / _STEP, steps, i, of) if i < min(steps.shape[0], array.shape[0]) else _NO_STEP
    # Version 0.1.0 did not write the step 0.
    if (steps.fill_value if says is None else says) != step:
        raise ValueError(missing)
    value = _row(folder, array, i, of)
    if value is None:
        # Version 0.1.0 did not write a kernel of which all is nan.
        if diverged and steps.fill_value != _NO_STEP:
            return np.full(array.shape[1:], np.nan, array.dtype.numpy_dtype)
        raise ValueError(missing)
    if value.shape[0] == value.shape[1]:
        return undivided(value, _exponent(run / KERNELS / _EXPONENT, layer, i, of))
    return _kernel_of(value)


def _row(folder: Path, array: Any, i: int, of: str) -> np.ndarray | None:
    """A row of an array; None if it has no file.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder.joinpath("c", str(i), *["0"] * (array.rank - 1))
    if not os.path.lexists(file):
        return None
    if any(path.is_symlink() for path in (file, *file.parents[: array.rank])) or not file.is_file():
        raise ValueError(f"{file} is not a regular file, and a run folder has no others.")
    if file.stat().st_size != math.prod(array.shape[1:]) * array.dtype.numpy_dtype.itemsize + 4:
        raise ValueError(f"{file} is damaged, so that {of} is lost: it has another size.")
    try:
        return array[i].read().result()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged, so that {of} is lost: {error}") from error


def _exponent(folder: Path, layer: str, i: int, of: str) -> int:
    if not folder.exists():
        return 0
    about, array = _about(folder)["attributes"], _open(folder)
    exponents = _row(folder, array, i, of) if i < array.shape[0] else None
    # Rows before the first kernel that left the range have none.
    if exponents is None and i >= about.get("first_row", math.inf):
        raise ValueError(f"{folder} lacks a row, so that {of} is lost.")
    if layer not in about.get("layers", ()):
        raise ValueError(f"{folder / _ZARR} is damaged: it does not name layer {layer!r}.")
    return 0 if exponents is None else int(exponents[about["layers"].index(layer)])


def _kernel_of(features: np.ndarray) -> np.ndarray:
    largest, numbers = np.abs(features).max(initial=0), np.finfo(features.dtype)
    is_far = largest > 0 and abs(np.log2(largest)) > numbers.maxexp // 4
    features = features.astype(np.result_type(features, np.float64)) if is_far else features
    return features @ features.conj().T


def _folders(root: Path) -> dict[str, Path]:
    """The folder of each layer by the layer's name."""
    if not root.is_dir():
        return {}
    check_plain(root.parent, "a run folder", frozenset({KERNELS}))
    check_plain(root, "a run folder", frozenset(os.listdir(root)))
    found = sorted(
        folder for folder in root.iterdir() if folder.name not in (_STEP, _EXPONENT) and (folder / _ZARR).exists()
    )
    return {str(_about(folder)["attributes"]["name"]): folder for folder in found}


def _about(folder: Path) -> dict[str, Any]:
    """What ``zarr.json`` says of an array.

    Raises:
        ValueError: it is damaged.
    """
    check_plain(folder, "a run folder", frozenset({_ZARR, "c"}))
    try:
        about = json.loads(read_plain(folder / _ZARR).decode())
        shape = about["shape"]
        if not (len(shape) in (1, 2, 3) and all(type(size) is int and size >= 0 for size in shape)):
            raise ValueError(f"it has the shape {shape}")
        name, layers = about["attributes"].get("name", ""), about["attributes"].get("layers", [])
        if not isinstance(name, str) or len(layers) != (shape[1] if len(shape) == 2 else 0):
            raise ValueError("it does not say what it is of")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / _ZARR} is damaged or missing: {error!r}.") from error
    return about


def _open(folder: Path) -> Any:
    """An array that is there, if it is one that this file has made.

    Raises:
        ValueError: it is not, or it is damaged.
    """
    about = _about(folder)
    metadata = {"shape": about["shape"], "data_type": about.get("data_type"), **_form(about["shape"][1:])}
    try:
        return require("tensorstore", extra="store").open(_spec(folder, metadata), open=True).result()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / _ZARR} is damaged: {error}") from error


def _opened(root: Path, kept: Mapping[str, np.ndarray], values: list[np.ndarray]) -> list[Any]:
    """The arrays of the steps and of all layers; they are made if there are none."""
    root.mkdir(exist_ok=True)
    if not (root / _ZARR).exists():
        group = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}\n'
        replace_file(root / _ZARR, lambda file: file.write(group))
    folders = _folders(root)
    taken = {_ZARR, _STEP, *(folder.name.lower() for folder in folders.values())}
    for layer in kept:
        if layer not in folders:
            folders[layer] = root / free_component(layer, taken)
    given = zip([root / _STEP, *(folders[layer] for layer in kept)], ["", *kept], values, strict=True)
    return [_made(folder, {"name": name}, value) for folder, name, value in given]


def _made(folder: Path, about: Mapping[str, Any], value: np.ndarray, axes: list[str] | None = None) -> Any:
    """An array, which is made if there is none."""
    if (folder / _ZARR).exists():
        return _open(folder)
    square = value.ndim == 2 and value.shape[0] == value.shape[1]
    axes = axes or ["x1", "x2" if square else f"{folder.name}_feature"][: value.ndim]
    no_number = {"f": "NaN", "c": ["NaN", "NaN"]}.get(value.dtype.kind, 0)
    metadata = {
        "shape": [0, *value.shape],
        "data_type": str(value.dtype),
        "fill_value": no_number if value.ndim else _NO_STEP,
        "dimension_names": ["step", *axes],
        "attributes": about,
        **_form(value.shape),
    }
    return require("tensorstore", extra="store").open(_spec(folder, metadata), create=True).result()


def _form(row: tuple[int, ...] | list[int]) -> dict[str, Any]:
    """How all arrays lie on the disk: a row is a chunk, as its numbers are, with a checksum."""
    return {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *row]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }


def _spec(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder.resolve()}/"}, "metadata": metadata}
    # A kernel of which all is nan is written, so that what is missing is missing.
    return {**spec, "store_data_equal_to_fill_value": True}


def _resized(arrays: list[Any], rows: int) -> list[Any]:
    return [array.resize(exclusive_max=[rows, *array.shape[1:]]).result() for array in arrays]
