"""The user's own arrays: a ``.npz`` file, a ``.npy`` file with labels beside it, or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import Dataset, Rows

FORMS = (
    "an .npz file with x and y, an .npy file with labels in y.npy or NAME.labels.npy beside it, a folder with x.npy "
    "and y.npy, or a folder with one folder of .npy files a class"
)
_NAMES = {
    "x": ("x", "x_train", "train_x", "images", "inputs"),
    "y": ("y", "y_train", "train_y", "labels", "targets"),
    "ids": ("ids", "train_ids"),
    "test_x": ("test_x", "x_test"),
    "test_y": ("test_y", "y_test"),
    "test_ids": ("test_ids",),
}


def is_path(name: str) -> bool:
    """Returns whether the name of a data set is that of a file or a folder."""
    return name.endswith((".npz", ".npy")) or "/" in name or Path(name).is_dir()


def load_path(name: str) -> Dataset:
    """Returns the user's data, with a fifth of it for tests unless the test examples are named.

    Integers of 8 bits become float32 between 0 and 1; tokens are integers of more bits; all else stays as it is. Labels
    may be any values, and classes are numbered in their order. The ids are those given, or the places in the array.

    Raises:
        ValueError: the file cannot be read, holds no labels, or its arrays do not fit one another.
    """
    path = Path(name)
    if not path.exists():
        raise ValueError(f"there is no file or folder {name!r}.")
    try:
        arrays = _read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be read as {FORMS}: {error}") from error
    found = {key: next((arrays[n] for n in names if n in arrays), None) for key, names in _NAMES.items()}
    for key in ("x", "y"):
        if found[key] is None:
            raise ValueError(f"{name!r} holds no {key}, only {', '.join(arrays)}; it must be {FORMS}.")
    return assemble(name, found)


def _read(path: Path) -> Mapping[str, Any]:
    """The arrays of a path, by name."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    if path.is_file():
        beside = (path.with_suffix(".labels.npy"), path.with_name("y.npy"), path.with_name("labels.npy"))
        labels = next((other for other in beside if other.exists() and other != path), None)
        return {"x": _mapped(path)} | ({} if labels is None else {"y": _mapped(labels)})
    if arrays := {file.stem: _mapped(file) for file in sorted(path.glob("*.npy"))}:
        return arrays
    files = sorted(path.glob("*/*.npy"))
    if not files:
        raise ValueError("there are no .npy files in it")
    ids = [file.relative_to(path).with_suffix("").as_posix() for file in files]
    x = np.stack([np.load(file, allow_pickle=False) for file in files])
    return {"x": x, "y": np.array([file.parent.name for file in files]), "ids": np.array(ids)}


def _mapped(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def assemble(name: str, found: Mapping[str, Any]) -> Dataset:
    """Returns a data set of arrays that may stay on the disk.

    Args:
        name: what it was asked for by.
        found: ``x``, ``y``, and perhaps ``ids``, ``test_x``, ``test_y`` and ``test_ids``; None if missing.

    Raises:
        ValueError: the arrays do not fit one another.
    """
    x, y = found["x"], found["y"]
    test_x: Any = found.get("test_x")
    test_y: Any = found.get("test_y")
    if (test_x is None) != (test_y is None):
        raise ValueError(f"{name!r} must hold test_x and test_y, or none of them.")
    _check(name, x, y)
    ids = _ids(name, found.get("ids"), len(x))
    if test_x is None:
        test, train = _split(np.asarray(y).ravel())
        parts = (x, y, ids, train), (x, y, ids, test)
    else:
        _check(name, test_x, test_y)
        if (test_x.shape[1:], test_x.dtype) != (x.shape[1:], x.dtype):
            raise ValueError(f"{name!r} has x {x.dtype} {x.shape} and test_x {test_x.dtype} {test_x.shape}.")
        test_ids = np.array([f"test/{i}" for i in range(len(test_x))])
        test_ids = test_ids if found.get("test_ids") is None else _ids(name, found.get("test_ids"), len(test_x))
        parts = (x, y, ids, np.arange(len(x))), (test_x, test_y, test_ids, np.arange(len(test_x)))
    labels = np.unique(np.concatenate([np.asarray(y).ravel(), np.asarray(parts[1][1]).ravel()]))
    of = [
        (Rows(x, rows), np.searchsorted(labels, np.asarray(y).ravel()[rows]).astype(np.int32), ids[rows])
        for x, y, ids, rows in parts
    ]
    (train_x, train_y, train_ids), (rest_x, rest_y, rest_ids) = of
    vocabulary = int(np.max(x)) + 1 if x.ndim == 2 and np.issubdtype(train_x.dtype, np.integer) else None
    return Dataset(name, train_x, train_y, rest_x, rest_y, len(labels), train_ids, rest_ids, vocabulary)


def _split(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A fifth of each class for tests, chosen at random."""
    rng = np.random.default_rng(0)
    classes = [rng.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
    test = np.concatenate([rows[: max(1, len(rows) // 5)] for rows in classes])
    return test, rng.permutation(np.setdiff1d(np.arange(len(y)), test))


def _check(name: str, x: Any, y: Any) -> None:
    if x.dtype.kind not in "fiub" or x.dtype == np.float64 or x.ndim < 2:
        raise ValueError(f"{name!r} has inputs {x.dtype} {x.shape}; they must be float32, integers or uint8 (N, ...).")
    if np.asarray(y).size != len(x):
        raise ValueError(f"{name!r} has {len(x)} examples and labels of shape {y.shape}; labels must be (N,).")


def _ids(name: str, ids: Any, n: int) -> np.ndarray:
    ids = np.arange(n).astype(str) if ids is None else np.asarray(ids).astype(str)
    if ids.shape != (n,) or len(np.unique(ids)) != n:
        raise ValueError(f"{name!r} has ids of shape {ids.shape} for {n} examples; each needs one of its own.")
    return ids
