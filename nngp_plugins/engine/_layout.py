"""How kernels lie on the disk: a Zarr v3 group of one array a kernel, a chunk a tile."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._require import require

JOB, LEDGER, GROUP = "job.json", "ledger.jsonl", "zarr.json"
COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def free_component(name: str, taken: set[str]) -> str:
    """A folder named after a kernel, and added to those that are taken."""
    component = re.sub(r"[^A-Za-z0-9_-]+", ".", name).strip(".-") or "kernel"
    component = component.replace(".__lock", ".lock")  # TensorStore has that name for itself
    while component.lower() in taken:  # of two names that differ in other characters
        component = f"{component}-{len(taken)}"
    taken.add(component.lower())
    return component


@dataclass(frozen=True)
class Layout:
    """One array of a store, as ``job.json`` lists it.

    Attributes:
        name: of the kernel, as its output is called; ``kernel`` for an ``f`` with a single one.
        component: its folder in the store.
        shape: of the kernel.
        dtype: of the kernel.
        chunk: shape of a tile.
        dimensions: names of the axes.
    """

    name: str
    component: str
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    dimensions: tuple[str, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tiles along each axis."""
        return tuple(-(-size // tile) for size, tile in zip(self.shape, self.chunk, strict=True))

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return math.prod(self.grid)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the file of a tile: the last ones of an axis are as large as the others."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize + 4

    def zarr(self) -> dict[str, Any]:
        """The Zarr v3 metadata: numbers as they are, then a CRC-32C."""
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": ["NaN", "NaN"] if self.dtype.startswith("complex") else "NaN",
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "dimension_names": self.dimensions,
            "attributes": {"name": self.name},
        }

    def file(self, root: Path, chunk: Sequence[int]) -> Path:
        """Where a tile lies."""
        return root.joinpath(self.component, "c", *map(str, chunk))

    def open(self, root: Path, *, create: bool = False) -> Any:
        """The array as TensorStore reads and writes it; a tile that is missing is an error, not a fill value.

        Raises:
            ValueError: its description is damaged or missing.
            OSError: the disk fails.
        """
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{root / self.component}/"},
            "metadata": self.zarr(),
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }
        try:
            return require("tensorstore", extra="store").open(spec, open=True, create=create).result()
        except ValueError as error:
            file, why = root / self.component / GROUP, reason(error)
            if "os_error_code" in why or "[OS error" in why:  # by versions of TensorStore
                raise OSError(f"{file} could not be opened: {why}") from error
            raise ValueError(f"{file} is damaged or missing: {why}; delete it and run write_kernel again") from error


def load_job(path: Path) -> dict[str, Any]:
    """What ``job.json`` says.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is damaged.
    """
    if not (path / JOB).is_file():
        raise FileNotFoundError(f"{path} holds no kernel (no {JOB}); write one with nngp.write_kernel.")
    try:
        job = json.loads((path / JOB).read_text())
        if not (job["made_of"].keys() and all(array.keys() for array in job["arrays"]) and job["arrays"]):
            raise ValueError("it says too little")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path / JOB} is damaged: {error!r}.") from error
    return job


def load_layouts(path: Path) -> list[Layout]:
    """The arrays of a store, checked.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: its description is damaged, or names a folder outside.
    """
    job = load_job(path)
    try:
        layouts = [Layout(**{k: _tuple(v) for k, v in array.items()}) for array in job["arrays"]]
        if not all(layout.tiles and np.dtype(layout.dtype) for layout in layouts):
            raise ValueError("an array has no tiles")
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{path / JOB} is damaged: {error!r}.") from error
    for layout in layouts:
        if not isinstance(layout.component, str) or not COMPONENT.fullmatch(layout.component):
            raise ValueError(f"{path / JOB} names the folder {layout.component!r}, which is not one of this store.")
    return layouts


def describe_layouts(layouts: Sequence[Layout]) -> list[dict[str, Any]]:
    """The arrays of a store, as ``job.json`` lists them."""
    return json.loads(json.dumps([asdict(layout) for layout in layouts]))


def part(layout: Layout, chunk: Sequence[int]) -> tuple[slice, ...]:
    """The part of an array that a chunk holds."""
    return tuple(
        slice(i * size, min((i + 1) * size, n)) for i, size, n in zip(chunk, layout.chunk, layout.shape, strict=True)
    )


def reason(error: Exception) -> str:
    """What TensorStore says, without the whole description of the array that it adds."""
    return re.sub(r" \[tensorstore_spec='.*?'\](?= \[|$)", "", str(error))


def checksum_of(file: Path, size: int) -> str:
    """The CRC-32C that a tile's file ends with, which is another text where its size is another one."""
    with file.open("rb") as opened:
        opened.seek(size - 4)
        return opened.read().hex()


def checked(path: Path) -> Path:
    """A store's folder, without links that would lead out of it."""
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link; pass the folder that it leads to, {path.resolve()}.")
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(folder, name)):
                raise ValueError(f"{os.path.join(folder, name)} is a symbolic link, which a store has none of.")
    return path.resolve()  # TensorStore takes no ".."


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
