"""Kernels of every snapshot, which a run folder keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._durable import free_component
from .._require import require

KERNELS = "kernels"


class KeptKernels:
    """A Zarr v3 group ``kernels`` with an array for each layer, ``(snapshots, N, N)``.

    A layer with D < N features keeps its features, ``(snapshots, N, D)``, in place of the kernel, which is their
    product with themselves. Row i belongs to line i of ``metrics.jsonl``; the array ``step`` holds its step.
    """

    def __init__(self, run: Path):
        require("tensorstore", extra="store")
        self._root = run / KERNELS
        self._arrays: list[Any] = []

    def append(self, i: int, step: int, kept: Mapping[str, np.ndarray]) -> None:
        """Writes row ``i``: the kernel or the features of each layer."""
        values = [np.asarray(step), *kept.values()]
        if not self._arrays:
            self._root.mkdir(exist_ok=True)
            (self._root / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}\n')
            taken = {"zarr.json", "step"}
            folders = ["step", *(free_component(name, taken) for name in kept)]
            given = zip(folders, ["", *kept], values, strict=True)
            self._arrays = [_open(self._root / folder, name, value) for folder, name, value in given]
        # Rows of a process that was killed before their line was whole are cut off.
        sizes = ([i + 1, *value.shape] for value in values)
        self._arrays = [
            array.resize(exclusive_max=size).result() for array, size in zip(self._arrays, sizes, strict=True)
        ]
        for write in [array[i].write(value) for array, value in zip(self._arrays, values, strict=True)]:
            write.result()


def _open(path: Path, name: str, value: np.ndarray) -> Any:
    square = value.ndim == 2 and value.shape[0] == value.shape[1]
    axes = ["x1", "x2" if square else f"{path.name}_feature"][: value.ndim]
    metadata = {
        "shape": [0, *value.shape],
        "data_type": str(value.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *value.shape]}},
        "fill_value": "NaN" if value.dtype.kind == "f" else 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "dimension_names": ["step", *axes],
        "attributes": {"name": name},
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path.resolve()}/"}}
    tensorstore = require("tensorstore", extra="store")
    if (path / "zarr.json").exists():
        return tensorstore.open(spec, open=True).result()
    return tensorstore.open({**spec, "metadata": metadata}, create=True).result()


def kept_kernel(run: Path | None, layer: str, i: int) -> np.ndarray:
    """The kernel ``(N, N)`` of a layer in row ``i``, made from its features if these are kept.

    Raises:
        FileNotFoundError: the run keeps no kernel of this layer.
    """
    for file in (run / KERNELS).glob("*/zarr.json") if run is not None else ():
        if json.loads(file.read_text())["attributes"]["name"] == layer and file.parent.name != "step":
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{file.parent.resolve()}/"}}
            value = require("tensorstore", extra="store").open(spec, open=True).result()[i].read().result()
            return value if value.shape[0] == value.shape[1] else value @ value.T
    raise FileNotFoundError(f"run={str(run)!r} keeps no kernels; pass keep_kernels=True to KernelTracker.")
