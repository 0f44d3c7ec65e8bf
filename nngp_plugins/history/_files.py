"""The files of a run folder, read without trust in whoever wrote them."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from .._durable import LOCK, NEW, check_plain, open_plain, read_plain

RUN, METRICS, REFERENCE, LAST, NEXT = "run.json", "metrics.jsonl", "reference.npz", "last.npz", "next.npz"
KERNELS = "kernels"
FIRST_CHECKED = "first_line_with_checksum"
"""What ``run.json`` calls the number of the first line of ``metrics.jsonl`` that has a checksum."""

_WRITTEN = (RUN, METRICS, REFERENCE, LAST, NEXT)
_LOOKED_AT = frozenset({*_WRITTEN, *(f"{name}{NEW}" for name in _WRITTEN), LOCK, KERNELS})
# By layer along axis 0.
_EXPONENTS = ("exponents", "first_exponents")
_STACKED = ("kernels", "centered", "first", "steps", *_EXPONENTS)


def write_npz(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as ``numpy.savez`` does, and closes the archive if the disk fails, which NumPy 2.1 does not."""
    with ZipFile(file, "w", ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


def check_links(folder: Path) -> None:
    """Refuses links, pipes and devices among the files of a run folder.

    Raises:
        ValueError: there is one; the message names it.
    """
    check_plain(folder, "a run folder", _LOOKED_AT)


def refuse_others(folder: Path, argument: str) -> None:
    """Refuses a folder whose files a tracker would overwrite although no tracker wrote them.

    Raises:
        FileExistsError: there are such files.
        ValueError: there is a link, or ``run.json`` is damaged.
    """
    if not folder.is_dir():
        return
    check_links(folder)
    there = [name for name in (*_WRITTEN, f"{KERNELS}/zarr.json") if (folder / name).exists()]
    if not there:
        return
    if there[0] != RUN:
        raise FileExistsError(
            f"{argument} holds {there[0]} without {RUN}, so no tracker wrote it; name another folder."
        )
    about = read_about(folder)
    versions = about.get("versions")
    if not (isinstance(versions, dict) and "nngp-plugins" in versions and "probe" in about):
        raise FileExistsError(f"{argument} holds a {RUN} that no tracker wrote; name another folder.")


def read_about(folder: Path) -> dict[str, Any]:
    """The contents of ``run.json``.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / RUN
    try:
        about = json.loads(read_plain(file).decode())
        if not isinstance(about, dict):
            raise ValueError("it is not an object")
        if not isinstance(about.get(FIRST_CHECKED, 1), int):
            raise ValueError(f"{FIRST_CHECKED} is not a number")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged or missing: {_why(error)}.") from error
    return about


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of kernels, which cannot be larger than the file itself.

    Raises:
        ValueError: the file is damaged or missing, or its arrays do not belong together; the message says why.
    """
    try:
        with open(open_plain(file, os.O_RDONLY), "rb") as opened, ZipFile(opened) as members:
            size = os.fstat(opened.fileno()).st_size
            # Arrays that share bytes of the file could be larger together.
            if sum(member.file_size for member in members.infolist()) > size:
                raise ValueError("its arrays are larger than the file")
            arrays = {
                member.filename.removesuffix(".npy"): _array(members, member.filename) for member in members.infolist()
            }
        _check_arrays(arrays)
    except Exception as error:  # What a damaged file does is not known beforehand.
        raise ValueError(f"{file} is damaged or missing: {_why(error)}.") from error
    return arrays


def in_order(saved: Mapping[str, np.ndarray], layers: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a file of kernels, whose layers are in this order.

    Raises:
        ValueError: they are of other layers; the message names the first one.
    """
    there = [str(name) for name in saved["layers"]]
    if other := sorted({*there} ^ {*layers}):
        where = "saved kernels" if other[0] in there else "model"
        raise ValueError(f"layer {other[0]!r} is in the {where} alone")
    places = [there.index(name) for name in layers]
    return {name: array[places] if name in ("layers", *_STACKED) else array for name, array in saved.items()}


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError) else repr(error)


def _array(members: ZipFile, name: str) -> np.ndarray:
    """An array of a file that NumPy has saved, without compression."""
    member = members.getinfo(name)
    if member.compress_type != ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"{name} is compressed or encrypted")
    data = members.read(member)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has the format {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject or any(size < 0 for size in shape):
        raise ValueError(f"{name} holds objects, or no array")
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"{name} is not of the size that it says")
    return np.ndarray(shape, dtype, data, stream.tell(), order="F" if is_fortran else "C")


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses arrays that are not kernels ``(L, N, N)`` of as many layers, with a step."""
    layers, kernels, step = arrays["layers"], arrays["kernels"], arrays["step"]
    if layers.ndim != 1 or layers.dtype.kind != "U" or len(set(layers.tolist())) != len(layers):
        raise ValueError("layers are not names, or one is there twice")
    if kernels.ndim != 3 or kernels.shape[1] != kernels.shape[2] or not kernels.size:
        raise ValueError(f"kernels have the shape {kernels.shape}")
    if step.ndim or step.dtype.kind not in "iu":
        raise ValueError("step is not a whole number")
    if len(kernels) != len(layers):
        raise ValueError(f"there are {len(kernels)} kernels of {len(layers)} layers")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("kernels", "centered", "first"), kernels.shape)
    shapes |= dict.fromkeys(("steps", *_EXPONENTS), layers.shape)
    for name, shape in shapes.items():
        array, kinds = arrays.get(name), "i" if name in _EXPONENTS else "fc"
        if array is not None and (array.shape != shape or array.dtype.kind not in kinds):
            raise ValueError(f"{name} have the shape {array.shape} and the dtype {array.dtype}")
    targets = arrays["targets"]
    if "centered" not in arrays or targets.ndim not in (1, 2) or len(targets) not in (0, kernels.shape[1]):
        raise ValueError("centered or targets do not fit the kernels")
