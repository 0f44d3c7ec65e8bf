"""The Zarr arrays in which a run folder keeps kernels: one for each layer, that of the steps, and that of exponents."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._durable import check_plain, read_plain, replace_file
from .._require import require
from .._tables import free_component
from ._files import KERNELS

# The names of folders of layers begin with no hyphen.
STEP, EXPONENT, ZARR = "step", "-exponent", "zarr.json"
NO_STEP = -(2**63)
"""What the array of steps says of rows that are not whole; those of version 0.1.0 say 0."""


def file_of(folder: Path, i: int, rank: int) -> Path:
    """The file of a row of an array."""
    return folder.joinpath("c", str(i), *["0"] * (rank - 1))


def row_of(folder: Path, array: Any, i: int, of: str) -> np.ndarray | None:
    """A row of an array; None if it has no file.

    Raises:
        ValueError: the file is damaged.
    """
    file = file_of(folder, i, array.rank)
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


def folders_of(root: Path) -> dict[str, Path]:
    """The folder of each layer by the layer's name."""
    if not root.is_dir():
        return {}
    check_plain(root.parent, "a run folder", frozenset({KERNELS}))
    check_plain(root, "a run folder", frozenset(os.listdir(root)))
    found = sorted(
        folder for folder in root.iterdir() if folder.name not in (STEP, EXPONENT) and (folder / ZARR).exists()
    )
    return {str(description(folder)["attributes"]["name"]): folder for folder in found}


def description(folder: Path) -> dict[str, Any]:
    """What ``zarr.json`` says of an array.

    Raises:
        ValueError: it is damaged.
    """
    check_plain(folder, "a run folder", frozenset({ZARR, "c"}))
    try:
        about = json.loads(read_plain(folder / ZARR).decode())
        shape = about["shape"]
        if not (len(shape) in (1, 2, 3) and all(type(size) is int and size >= 0 for size in shape)):
            raise ValueError(f"it has the shape {shape}")
        name, layers = about["attributes"].get("name", ""), about["attributes"].get("layers", [])
        if not isinstance(name, str) or len(layers) != (shape[1] if len(shape) == 2 else 0):
            raise ValueError("it does not say what it is of")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / ZARR} is damaged or missing: {error!r}.") from error
    return about


def open_array(folder: Path) -> Any:
    """An array that is there, if it is one that this file has made.

    Raises:
        ValueError: it is not, or it is damaged.
    """
    about = description(folder)
    metadata = {"shape": about["shape"], "data_type": about.get("data_type"), **_form(about["shape"][1:])}
    try:
        return require("tensorstore", extra="store").open(_spec(folder, metadata), open=True).result()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / ZARR} is damaged: {error}") from error


def open_all(root: Path, kept: Mapping[str, np.ndarray], values: list[np.ndarray]) -> list[Any]:
    """The arrays of the steps and of all layers; they are made if there are none."""
    root.mkdir(exist_ok=True)
    if not (root / ZARR).exists():
        group = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}\n'
        replace_file(root / ZARR, lambda file: file.write(group))
    folders = folders_of(root)
    taken = {ZARR, STEP, *(folder.name.lower() for folder in folders.values())}
    for layer in kept:
        if layer not in folders:
            folders[layer] = root / free_component(layer, taken)
    given = zip([root / STEP, *(folders[layer] for layer in kept)], ["", *kept], values, strict=True)
    return [make_or_open(folder, {"name": name}, value) for folder, name, value in given]


def make_or_open(folder: Path, about: Mapping[str, Any], value: np.ndarray, axes: list[str] | None = None) -> Any:
    """An array, which is made if there is none."""
    if (folder / ZARR).exists():
        return open_array(folder)
    square = value.ndim == 2 and value.shape[0] == value.shape[1]
    axes = axes or ["x1", "x2" if square else f"{folder.name}_feature"][: value.ndim]
    no_number = {"f": "NaN", "c": ["NaN", "NaN"]}.get(value.dtype.kind, 0)
    metadata = {
        "shape": [0, *value.shape],
        "data_type": str(value.dtype),
        "fill_value": no_number if value.ndim else NO_STEP,
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


def resized(arrays: list[Any], rows: int) -> list[Any]:
    return [array.resize(exclusive_max=[rows, *array.shape[1:]]).result() for array in arrays]
