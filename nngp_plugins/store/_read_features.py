"""Features on the disk, with the ids of their examples and the structure of the outputs of ``f``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .._durable import read_plain
from .._typing import PyTree
from ._layout import FEATURES
from ._read import Store, StoredArray
from ._resume import fingerprints

IDS = "ids.json"


class StoredFeatures(StoredArray):
    """The features ``(N, D)`` of one output, read as NumPy reads."""


class FeatureStore(Store[StoredFeatures]):
    """Features on the disk, as :func:`open_features` and :func:`write_features` return them.

    ``store[:100]`` reads the features of some examples; where ``f`` has several outputs, ``store["name"][:100]``.
    :func:`gram` makes Grams of them, which read block by block.

    Attributes:
        path: the folder of the store.
        arrays: the features by name.
    """

    _kind, _array = FEATURES, StoredFeatures

    @property
    def n(self) -> int:
        """The number of examples."""
        return self._layouts[0].shape[0]

    @property
    def ids(self) -> np.ndarray:
        """The ids of the examples, ``(N,)``; their numbers if none were given.

        Raises:
            ValueError: the ids are damaged or missing.
        """
        said = self._job["made_of"].get("ids")
        if said is None:
            return np.arange(self.n)
        file = self.path / IDS
        try:
            ids = as_ids(json.loads(read_plain(file)), self.n)
            if fingerprints({"ids": ids})["ids"] != said:
                raise ValueError("they are others than those that were written")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            again = "delete it and run write_features again"
            raise ValueError(f"{file} is damaged or missing: {error}; {again}.") from error
        return ids

    def as_outputs(self) -> PyTree:
        """The PyTree of the outputs of ``f`` with the stored features in place of each.

        Containers that are neither dicts, lists nor tuples are not kept; the features are then a dict by name.

        Raises:
            ValueError: the description is damaged.
        """
        arrays = list(self.arrays.values())
        try:
            outputs = _rebuilt(self._job["outputs"], arrays)
            if len(jax.tree.leaves(outputs)) != len(arrays):
                raise ValueError("an output is missing")
        except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
            raise ValueError(f"{self.path}/job.json is damaged: {error!r}.") from error
        return outputs


def open_features(path: str | os.PathLike[str]) -> FeatureStore:
    """Opens features that :func:`write_features` wrote, finished or not.

    Args:
        path: the folder of the store.

    Returns:
        A :class:`FeatureStore`, read by slicing. Nothing is unpickled.

    Raises:
        FileNotFoundError: there are no features.
        ValueError: the store is damaged, or reaches outside its folder.
    """
    return FeatureStore(path)


def as_ids(ids: Any, n: int) -> np.ndarray:
    """Ids as they are kept: whole numbers or strings, ``(N,)``.

    Raises:
        ValueError: they are something else.
    """
    array = np.asarray(ids)
    if array.dtype.kind == "O" and all(isinstance(one, str) for one in array.ravel()):
        array = array.astype(str)
    if array.shape != (n,) or array.dtype.kind not in "iuU":
        raise ValueError(
            f"ids of shape {array.shape} and dtype {array.dtype} must be an id for each of the N={n} examples: whole "
            "numbers, or strings."
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def described(structure: Any, names: list[str]) -> Any:
    """The structure of outputs as JSON; the numbers of the leaves stand in place of them."""
    try:
        return _described(structure.unflatten(range(len(names))))
    except TypeError:
        return {"dict": {name: number for number, name in enumerate(names)}}


def _described(node: Any) -> Any:
    if node is None or type(node) is int:
        return node
    if type(node) in (list, tuple):
        return {type(node).__name__: [_described(part) for part in node]}
    if isinstance(node, Mapping) and all(isinstance(key, str) for key in node):
        return {"dict": {key: _described(part) for key, part in node.items()}}
    raise TypeError(f"{type(node)} is not kept")


def _rebuilt(said: Any, arrays: list[StoredFeatures]) -> PyTree:
    if said is None:
        return None
    if isinstance(said, int):
        return arrays[said]
    ((kind, parts),) = said.items()
    if kind == "dict":
        return {key: _rebuilt(part, arrays) for key, part in parts.items()}
    return {"list": list, "tuple": tuple}[kind](_rebuilt(part, arrays) for part in parts)
