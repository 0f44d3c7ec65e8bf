"""A data set with names for its examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..spec import Spec


class Rows:
    """Some rows of an array, in some order, which are read when they are needed: of a memmap, nothing is copied.

    Args:
        array: the array, with examples along axis 0.
        index: the rows.

    Attributes:
        shape: shape of the rows.
        dtype: dtype of the rows; integers of 8 bits become float32 between 0 and 1.
    """

    def __init__(self, array: Any, index: np.ndarray):
        self._array, self._index = array, index
        self.shape = (len(index), *array.shape[1:])
        self.dtype = np.dtype(np.float32) if array.dtype == np.uint8 else array.dtype

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.asarray(self._array[self._index[key]])
        return rows.astype(np.float32) / np.float32(255) if rows.dtype == np.uint8 else rows


@dataclass(frozen=True)
class Dataset:
    """A data set with labels, split into training and test examples.

    Attributes:
        name: what it was asked for by.
        train_x: training inputs ``(N, ...)``, an array or :class:`Rows`.
        train_y: training labels, int32 ``(N,)``.
        test_x: test inputs, with the same dtype and axes as ``train_x``.
        test_y: test labels.
        classes: number of classes.
        train_ids: the name of each training example, strings.
        test_ids: the name of each test example.
        vocabulary: how many different tokens there are; None if the inputs are no tokens.
    """

    name: str
    train_x: Any
    train_y: np.ndarray
    test_x: Any
    test_y: np.ndarray
    classes: int
    train_ids: np.ndarray
    test_ids: np.ndarray
    vocabulary: int | None = None

    @property
    def spec(self) -> Spec:
        """What a model of these data takes."""
        return Spec(tuple(self.train_x.shape[1:]), self.classes, str(self.train_x.dtype), self.vocabulary)

    def probe(self, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws equally many test examples of each class, without looking at the model.

        Args:
            n: number of examples; what is over, when the classes do not divide it, is left out.
            seed: random seed of the choice. With seed 0, a smaller probe is part of a larger one.

        Returns:
            ``(x, y, ids)``, ordered by class.

        Raises:
            ValueError: n gives less than one example per class, or more than the test set has.
        """
        labels = np.unique(self.test_y)
        smallest = int(min(np.count_nonzero(self.test_y == label) for label in labels))
        check_probe(self.name, n, len(labels), smallest)
        per_class = n // len(labels)
        rng = np.random.default_rng(seed)
        index = np.concatenate([rng.permutation(np.flatnonzero(self.test_y == k))[:per_class] for k in labels])
        return self.test_x[index], self.test_y[index], self.test_ids[index]


def check_probe(name: str, n: int, classes: int, smallest: int) -> None:
    """Refuses a size of a probe.

    Args:
        name: name of the data set.
        n: number of examples.
        classes: number of classes.
        smallest: test examples of the smallest class.

    Raises:
        ValueError: n gives less than one example per class, or more than the smallest class has.
    """
    if not 1 <= n // classes <= smallest:
        raise ValueError(
            f"a probe of {n} takes {n // classes} test examples of each of {classes} classes; {name} allows {classes} "
            f"to {smallest * classes}."
        )


def split(
    name: str,
    x: Any,
    y: np.ndarray,
    *,
    seed: int,
    test_fraction: float = 0.3,
    ids: np.ndarray | None = None,
    vocabulary: int | None = None,
) -> Dataset:
    """Returns a data set of examples that are split at random; the id of an example is its place in ``x``."""
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = np.split(order, [round(test_fraction * len(y))])
    y, ids = y.astype(np.int32), np.arange(len(y)).astype(str) if ids is None else ids
    classes = int(y.max()) + 1
    return Dataset(name, x[train], y[train], x[test], y[test], classes, ids[train], ids[test], vocabulary)
