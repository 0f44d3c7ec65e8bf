"""How arrays lie on the disk: a Zarr v3 group with an array for each output and a chunk for each tile or block."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .._durable import check_plain, read_plain
from .._require import require

JOB, GROUP = "job.json", "zarr.json"
COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Kind:
    """What a store holds, in the words of its messages.

    Attributes:
        name: as ``job.json`` has it.
        one: what it holds, with an article.
        none: that it holds none.
        unit: what a chunk is.
        writer: the function that writes such a store.
        opener: the function that opens it.
    """

    name: str
    one: str
    none: str
    unit: str
    writer: str
    opener: str


KERNEL = Kind("kernel", "a kernel", "no kernel", "tile", "write_kernel", "open_kernel")
FEATURES = Kind("features", "features", "no features", "block", "write_features", "open_features")


@dataclass(frozen=True)
class Layout:
    """One array of a store, as ``job.json`` lists it.

    Attributes:
        name: the name of the output; ``kernel`` or ``features`` if ``f`` has a single one.
        component: the folder of the array in the store.
        shape: the shape of the array.
        dtype: the dtype of the array.
        chunk: the shape of a tile of a kernel, or of a block of features.
        dimensions: the names of the axes.
    """

    name: str
    component: str
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    dimensions: tuple[str, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of tiles along each axis."""
        return tuple(-(-size // tile) for size, tile in zip(self.shape, self.chunk, strict=True))

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return math.prod(self.grid)

    @property
    def chunk_bytes(self) -> int:
        """The bytes of a tile's file; the last tile of an axis takes as many as the others."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize + 4

    def zarr(self) -> dict[str, Any]:
        """The Zarr v3 metadata: a chunk holds the numbers as they are, then a CRC-32C."""
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
        """The file of a tile."""
        return root.joinpath(self.component, "c", *map(str, chunk))

    def open(self, root: Path, kind: Kind, *, create: bool = False) -> Any:
        """The array as TensorStore reads and writes it; a missing tile is an error, not a fill value.

        Raises:
            ValueError: the metadata on the disk are damaged or missing.
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
            # Versions of TensorStore report an error of the disk in one of two ways.
            if "os_error_code" in why or "[OS error" in why:
                raise OSError(f"{file} could not be opened: {why}") from error
            again = f"delete it and run {kind.writer} again"
            raise ValueError(f"{file} is damaged or missing: {why}; {again}") from error


def load_job(path: Path, kind: Kind) -> dict[str, Any]:
    """The contents of ``job.json``.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: the file is damaged, or the store holds something else.
    """
    if not (path / JOB).is_file():
        them = "one" if kind == KERNEL else "them"
        raise FileNotFoundError(f"{path} holds {kind.none} (no {JOB}); write {them} with nngp.{kind.writer}.")
    try:
        job = json.loads(read_plain(path / JOB))
        if not (job["made_of"].keys() and all(array.keys() for array in job["arrays"]) and job["arrays"]):
            raise ValueError("it says too little")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path / JOB} is damaged: {error!r}.") from error
    # Kernels of version 0.1.0 do not say what they are.
    if job.get("holds", KERNEL.name) != kind.name:
        other = FEATURES if kind == KERNEL else KERNEL
        raise ValueError(f"{path} holds {other.one}, and {kind.none}; open it with nngp.{other.opener}.")
    return job


def load_layouts(path: Path, job: Mapping[str, Any]) -> list[Layout]:
    """The arrays of a store, after their description is checked.

    Raises:
        ValueError: the description is damaged, or names a folder outside the store.
    """
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


def place(layout: Layout, chunk: Sequence[int]) -> tuple[slice, ...]:
    """The place of a chunk in its array."""
    return tuple(
        slice(i * size, min((i + 1) * size, n)) for i, size, n in zip(chunk, layout.chunk, layout.shape, strict=True)
    )


def chunks_of(layout: Layout, keys: Sequence[Any]) -> Iterable[tuple[int, ...]]:
    """The chunks that an index reads.

    Args:
        layout: the array.
        keys: for each axis an int, a slice with a start and a stop, or an array of ints; arrays go together.
    """
    axes = list(zip(keys, layout.chunk, strict=True))
    alone = product(*(_places(key, size) for key, size in axes if not isinstance(key, np.ndarray)))
    if not (arrays := [key // size for key, size in axes if isinstance(key, np.ndarray)]):
        return alone
    together = set(zip(*(array.ravel().tolist() for array in np.broadcast_arrays(*arrays)), strict=True))
    chunks = []
    for one, other in product(alone, together):
        ones, others = iter(one), iter(other)
        chunks.append(tuple(next(others if isinstance(key, np.ndarray) else ones) for key in keys))
    return chunks


def _places(key: Any, size: int) -> Iterable[int]:
    if not isinstance(key, slice):
        return (key // size,)
    rows = range(key.start, key.stop, key.step)
    if not rows or abs(rows.step) <= size:
        ends = sorted((rows[0] // size, rows[-1] // size)) if rows else (0, -1)
        return range(ends[0], ends[1] + 1)
    return dict.fromkeys(row // size for row in rows)


def reason(error: Exception) -> str:
    """What TensorStore says of an error, without the description of the array that it adds."""
    return re.sub(r" \[tensorstore_spec='.*?'\](?= \[|$)", "", str(error))


def checksum_of(file: str | Path, size: int) -> str:
    """The CRC-32C at the end of a tile's file; a file of another size gives a different text."""
    opened = os.open(file, os.O_RDONLY)
    try:
        # One byte more, because a longer file is another one.
        return os.pread(opened, 5, size - 4).hex()
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        os.close(opened)


def checked(path: Path) -> Path:
    """The folder of a store, after a check that it holds no link out of it, and no file that one would wait for.

    Raises:
        ValueError: it does.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link; pass the folder that it leads to, {path.resolve()}.")
    if path.is_dir():
        check_plain(path, "a store")
    # TensorStore does not take a path with "..".
    return path.resolve()


def group_of(layouts: Sequence[Layout]) -> dict[str, Any]:
    """The metadata of the group; zarr and xarray first look for those of all arrays there."""
    arrays = {layout.component: layout.zarr() for layout in layouts}
    inline = {"kind": "inline", "must_understand": False, "metadata": arrays}
    return json.loads(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}, "consolidated_metadata": inline})
    )


def check_group(path: Path, layouts: Sequence[Layout], kind: Kind) -> None:
    """Compares the metadata of the group with the arrays; a job that was killed early has none yet.

    Raises:
        ValueError: they are damaged, or of other arrays.
    """
    file = path / GROUP
    if not file.exists():
        return
    try:
        group = json.loads(read_plain(file))
        is_right = {**group, "attributes": {}} == group_of(layouts)
    except (ValueError, TypeError, RecursionError):
        is_right = False
    if not is_right:
        raise ValueError(f"{file} is damaged or of other arrays; delete it and run {kind.writer} again.")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
