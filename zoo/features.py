"""Features of the layers of a model, and files of features from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np

RESERVED = ("ids", "labels", "about")
SUFFIXES = (".npz", ".npy", ".pt", ".pth")


@dataclass(frozen=True)
class Features:
    """Features of one model on named examples.

    Attributes:
        name: what the model or the file was asked for by.
        layers: an array ``(N, D)`` for each layer.
        ids: the name of each example, strings ``(N,)``; None if nobody knows them.
    """

    name: str
    layers: Mapping[str, np.ndarray]
    ids: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(next(iter(self.layers.values())))


def features_of(f: Any, params: Any, state: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the features of each layer ``(N, D)``, float32, divided by √D, so that the kernel is ``phi @ phi.T``.

    Args:
        f: a :class:`nngp_plugins.ModelFn` with layers.
        params: parameters.
        state: the model's state.
        x: inputs ``(N, ...)``, of which 100 at a time go through the model.
    """
    import jax

    run = jax.jit(lambda x: f(params, x, state=state))
    parts = [run(x[i : i + 100]) for i in range(0, len(x), 100)]
    whole = {name: np.concatenate([np.asarray(part[name], np.float32) for part in parts]) for name in parts[0]}
    return {name: a.reshape(len(a), -1) / np.sqrt(a[0].size).astype(np.float32) for name, a in whole.items()}


def read_features(path: Path) -> Features:
    """Reads features: an ``.npz`` or ``.pt`` with an array for each layer and ``ids``, or an ``.npy`` of one layer.

    The ids of ``NAME.npy`` are in ``NAME.ids.npy``. Arrays ``(N, ...)`` are flattened.

    Raises:
        ValueError: the file cannot be read, holds no features, or its arrays have different numbers of rows.
        ModuleNotFoundError: it is a file of PyTorch, which is not installed.
    """
    try:
        arrays = _read(path)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as features: {error}") from error
    ids = arrays.pop("ids", None)
    layers = {name: np.asarray(a) for name, a in arrays.items() if name not in RESERVED}
    if not layers:
        raise ValueError(f"{path} holds no features.")
    sizes = {f"{name} {array.shape}": array.shape[:1] for name, array in layers.items()}
    sizes |= {} if ids is None else {f"ids {np.shape(ids)}": np.shape(ids)}
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(
            f"{path} must hold arrays (N, ...) with the same N, and ids (N,); it holds {', '.join(sizes)}."
        )
    if odd := [f"{name} {array.dtype}" for name, array in layers.items() if array.dtype.kind not in "fiub"]:
        raise ValueError(f"{path} must hold real numbers; it holds {', '.join(odd)}.")
    flat = {name: array.reshape(len(array), -1).astype(np.float32) for name, array in layers.items()}
    return Features(str(path), flat, None if ids is None else np.asarray(ids).astype(str))


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.suffix == ".npy":
        ids = path.with_suffix(".ids.npy")
        found = {path.stem: np.load(path, allow_pickle=False)}
        return found | ({"ids": np.load(ids, allow_pickle=False)} if ids.exists() else {})
    return _read_torch(path)


def _read_torch(path: Path) -> dict[str, Any]:
    """A tensor, or a dict of tensors, in which ids may also be a list of strings or integers."""
    try:
        import torch
    except ImportError:
        raise ModuleNotFoundError(f"{path} is a file of PyTorch; run: pip install torch") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, KeyError, EOFError) as error:
        raise ValueError("it is damaged, or holds other things than tensors; save a dict of tensors and ids") from error
    named = found if isinstance(found, Mapping) else {path.stem: found}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor) and name not in RESERVED:
            raise ValueError(f"its {name!r} is a {type(value).__name__}, not a tensor")
    tensors = {name: a for name, a in named.items() if isinstance(a, torch.Tensor)}
    dense = {name: (a.float() if a.dtype == torch.bfloat16 else a).to_dense() for name, a in tensors.items()}
    return {str(name): dense[name].numpy(force=True) if name in dense else np.asarray(a) for name, a in named.items()}
