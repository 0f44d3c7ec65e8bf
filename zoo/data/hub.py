"""Data sets of the Hugging Face Hub and of TensorFlow Datasets, and folders that Hugging Face ``datasets`` reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from .dataset import Dataset
from .files import assemble

FORMS = "hf:NAME, hf:./FOLDER or tfds:NAME, and after it ,config=NAME ,x=COLUMN or ,y=COLUMN if they are needed"
_LIBRARIES = {"hf": "datasets", "tfds": "tensorflow-datasets"}
# How the libraries call columns that can be inputs and labels; images come before other arrays.
_IMAGES, _ARRAYS = ("Image",), ("Array2D", "Array3D", "Array4D", "Array5D", "List", "LargeList", "Sequence", "Tensor")
_LABELS, _NAMED = ("ClassLabel",), ("label", "labels", "target", "y")
_TESTS = ("test", "validation", "valid", "dev")
_SECONDS = 5.0
_NO_NETWORK = "it is not on this machine, and there is no network to download it."


@dataclass(frozen=True)
class _Split:
    """A split of a data set: the kind of each column, and what reads two of them."""

    kinds: Mapping[str, str]
    read: Callable[[str, str], tuple[Any, Any]]


def is_hub(name: str) -> bool:
    """Returns whether the name of a data set begins with ``hf:`` or ``tfds:``."""
    return name.startswith(tuple(f"{library}:" for library in _LIBRARIES))


def check_hub(name: str) -> tuple[str, str, dict[str, str]]:
    """Returns the library, the name there, and the options, without loading anything.

    Raises:
        ValueError: the name has another form than :data:`FORMS`, or there is no such folder.
        ModuleNotFoundError: the library is missing; the message says what to install.
    """
    library, _, rest = name.partition(":")
    there, *words = rest.split(",")
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if not there or len(options) < len(words) or not {*options} <= {"config", "x", "y"}:
        raise ValueError(f"{name!r} must have the form {FORMS}.")
    if library == "hf" and there.startswith((".", "/")) and not Path(there).is_dir():
        raise ValueError(f"{name!r}: there is no folder {there!r}.")
    package = _LIBRARIES[library]
    if find_spec(package.replace("-", "_")) is None:
        raise ModuleNotFoundError(f"{name!r} needs the package {package}; run: pip install {package}")
    return library, there, options


def load_hub(name: str) -> Dataset:
    """Returns a data set; all its examples are held in memory.

    The test examples are the split ``test`` or else ``validation``, if it has labels, or else a fifth of ``train``.
    The inputs are the one column of images, or else of arrays, and the labels are the one column of class labels,
    unless ``x=`` and ``y=`` name others. The id of an example is its split and its place there, such as ``test/7``.

    Raises:
        ValueError: it cannot be loaded, it is not clear which columns are meant, or its arrays do not fit one another.
        ModuleNotFoundError: a library is missing.
    """
    library, there, options = check_hub(name)
    try:
        splits = {"hf": _hugging_face, "tfds": _tensorflow}[library](there, options.get("config"))
        train = "train" if "train" in splits else next(iter(splits))
        columns = _columns(splits[train].kinds, options)
        found = _arrays(splits, train, columns)
        for test in _TESTS:
            if test in splits and test != train:
                arrays = _arrays(splits, test, columns)
                if arrays["y"].dtype.kind not in "if" or (arrays["y"] >= 0).any():
                    found |= {f"test_{key}": array for key, array in arrays.items()}
                    break
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{name!r} cannot be loaded: {error}") from error
    return assemble(name, found)


def _columns(kinds: Mapping[str, str], options: Mapping[str, str]) -> tuple[str, str]:
    """The columns of the inputs and of the labels."""
    inputs, labels = ([k for k, kind in kinds.items() if kind in of] for of in (_IMAGES, _LABELS))
    inputs = inputs or [k for k, kind in kinds.items() if kind in _ARRAYS]
    labels = labels or [k for k in _NAMED if k in kinds]
    there = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    chosen = []
    for key, what, candidates in (("x", "inputs", inputs), ("y", "labels", labels)):
        if key in options and options[key] not in kinds:
            raise ValueError(f"it has no column {options[key]!r}; its columns are {there}.")
        if key not in options and len(candidates) != 1:
            raise ValueError(f"add ,{key}=COLUMN to its name to say which column has the {what}; there are {there}.")
        chosen.append(options.get(key) or candidates[0])
    return chosen[0], chosen[1]


def _arrays(splits: Mapping[str, _Split], split: str, columns: tuple[str, str]) -> dict[str, np.ndarray]:
    """Inputs, labels and ids of a split; grey images get an axis of channels, and numbers have 32 bits at most."""
    x, y = splits[split].read(*columns)
    try:
        x = np.asarray(x)
    except ValueError:
        x = np.empty(0, object)
    if x.dtype == object:
        raise ValueError(f"the inputs in its column {columns[0]!r} have different shapes; give them one shape first.")
    if splits[split].kinds[columns[0]] in _IMAGES and x.ndim == 3:
        x = x[..., None]
    x = x.astype({"i8": np.int32, "f8": np.float32}.get(x.dtype.str[1:], x.dtype))
    return {"x": x, "y": np.asarray(y), "ids": np.array([f"{split}/{i}" for i in range(len(x))])}


def _hugging_face(name: str, config: str | None) -> dict[str, _Split]:
    folder = Path(name)
    if not folder.is_dir() and not _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        # It would try for half a minute. Now it takes what it has downloaded before, or refuses.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config)
    except ConnectionError as error:
        raise ValueError(_NO_NETWORK) from error
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(str(error)) from error
    tables = found if isinstance(found, Mapping) else {"train": found}

    def split(table: Any) -> _Split:
        def read(x: str, y: str) -> tuple[Any, Any]:
            rows = table.select_columns([x, y]).with_format("numpy")[:]
            return rows[x], rows[y]

        return _Split({column: type(feature).__name__ for column, feature in table.features.items()}, read)

    return {str(key): split(table) for key, table in tables.items()}


def _tensorflow(name: str, config: str | None) -> dict[str, _Split]:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, config=config)
    except tfds.core.DatasetNotFoundError:  # whose message lists all data sets
        raise ValueError(f"TensorFlow Datasets has no {name!r}.") from None
    if not builder.is_prepared():
        if not _answers("https://storage.googleapis.com"):
            raise ValueError(_NO_NETWORK)
        builder = tfds.builder(name, config=config, file_format="array_record")
        builder.download_and_prepare()
    kinds = {column: type(feature).__name__ for column, feature in builder.info.features.items()}

    def split(source: Any) -> _Split:
        def read(x: str, y: str) -> tuple[Any, Any]:
            rows = [(row[x], row[y]) for row in source]
            return [row[0] for row in rows], [row[1] for row in rows]

        return _Split(kinds, read)

    return {key: split(source) for key, source in builder.as_data_source().items()}


def _answers(url: str) -> bool:
    """Whether a server can be reached, also through a proxy."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=_SECONDS).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True
