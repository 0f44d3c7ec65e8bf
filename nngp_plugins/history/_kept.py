"""Kernels of every snapshot, which a run folder keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._durable import free_component
from .._require import require
from ..metrics import undivided

KERNELS = "kernels"
# The names of folders of layers begin with no hyphen.
EXPONENT = "-exponent"


class KeptKernels:
    """A Zarr v3 group ``kernels`` with an array for each layer, ``(snapshots, N, N)``.

    A layer with D < N features keeps its features, ``(snapshots, N, D)``, in place of the kernel, which is their
    product with themselves. Row i belongs to line i of ``metrics.jsonl``; the array ``step`` holds its step.

    If a kernel leaves the range of its dtype, there is the array ``-exponent``, ``(snapshots, L)``. A kernel is what is
    held times 4 to this power. No layer has this name.
    """

    def __init__(self, run: Path):
        require("tensorstore", extra="store")
        self._root = run / KERNELS
        self._arrays: list[Any] = []

    def append(self, i: int, step: int, kept: Mapping[str, np.ndarray], exponents: np.ndarray) -> None:
        """Writes row ``i``: the kernel, divided by a power of 4, or the features of each layer."""
        values = [np.asarray(step), *kept.values()]
        if not self._arrays:
            self._root.mkdir(exist_ok=True)
            (self._root / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}\n')
            taken = {"zarr.json", "step"}
            folders = ["step", *(free_component(name, taken) for name in kept)]
            given = zip(folders, ["", *kept], values, strict=True)
            self._arrays = [_open(self._root / folder, {"name": name}, value) for folder, name, value in given]
        if len(self._arrays) == len(values) and (exponents.any() or (self._root / EXPONENT).exists()):
            about = {"name": "", "layers": list(kept)}
            self._arrays.append(_open(self._root / EXPONENT, about, exponents, ["layer"]))
        values += [exponents] * (len(self._arrays) - len(values))
        # Rows of a process that was killed before their line was whole are cut off.
        sizes = ([i + 1, *value.shape] for value in values)
        self._arrays = [
            array.resize(exclusive_max=size).result() for array, size in zip(self._arrays, sizes, strict=True)
        ]
        for write in [array[i].write(value) for array, value in zip(self._arrays, values, strict=True)]:
            write.result()


def _open(path: Path, about: dict[str, Any], value: np.ndarray, axes: list[str] | None = None) -> Any:
    square = value.ndim == 2 and value.shape[0] == value.shape[1]
    axes = axes or ["x1", "x2" if square else f"{path.name}_feature"][: value.ndim]
    metadata = {
        "shape": [0, *value.shape],
        "data_type": str(value.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *value.shape]}},
        "fill_value": "NaN" if value.dtype.kind == "f" else 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "dimension_names": ["step", *axes],
        "attributes": about,
    }
    if (path / "zarr.json").exists():
        return _opened(path)
    return require("tensorstore", extra="store").open({**_spec(path), "metadata": metadata}, create=True).result()


def _opened(path: Path) -> Any:
    return require("tensorstore", extra="store").open(_spec(path), open=True).result()


def _spec(path: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path.resolve()}/"}}


def kept_kernel(run: Path | None, layer: str, i: int) -> np.ndarray:
    """The kernel ``(N, N)`` of a layer in row ``i``, made from its features if these are kept.

    It is in float64 if it leaves the range of float32.

    Raises:
        FileNotFoundError: the run keeps no kernel of this layer.
    """
    for file in (run / KERNELS).glob("*/zarr.json") if run is not None else ():
        if json.loads(file.read_text())["attributes"]["name"] == layer and file.parent.name not in ("step", EXPONENT):
            value = _opened(file.parent)[i].read().result()
            if value.shape[0] == value.shape[1]:
                return undivided(value, _exponent(file.parents[1] / EXPONENT, layer, i))
            return _kernel_of(value)
    raise FileNotFoundError(f"run={str(run)!r} keeps no kernels; pass keep_kernels=True to KernelTracker.")


def _exponent(path: Path, layer: str, i: int) -> int:
    if not path.exists():
        return 0
    layers = json.loads((path / "zarr.json").read_text())["attributes"]["layers"]
    exponents = _opened(path)
    # Rows before the first kernel that left the range may have none.
    return int(exponents[i, layers.index(layer)].read().result()) if i < exponents.shape[0] else 0


def _kernel_of(features: np.ndarray) -> np.ndarray:
    largest, numbers = np.abs(features).max(initial=0), np.finfo(features.dtype)
    is_far = largest > 0 and abs(np.log2(largest)) > numbers.maxexp // 4
    features = features.astype(np.float64) if is_far else features
    return features @ features.T
