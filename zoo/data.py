"""Data sets that need no download, because the packages that the zoo installs contain them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Dataset:
    """A classification data set, split into training and test examples.

    Attributes:
        name: the name in the registry.
        train_x: training inputs, float32 ``(N, H, W, C)``.
        train_y: training labels, int32 ``(N,)``.
        test_x: test inputs, with the same dtype and axes as ``train_x``.
        test_y: test labels, int32.
        classes: number of classes.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int

    def probe(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first ``n // classes`` test examples of each class, ordered by class.

        Returns:
            ``(x, y)`` with at most n examples.

        Raises:
            ValueError: n gives less than one example per class, or more than the test set has.
        """
        per_class = n // self.classes
        smallest_class = int(np.bincount(self.test_y, minlength=self.classes).min())
        if not 1 <= per_class <= smallest_class:
            raise ValueError(
                f"a probe of {n} takes {per_class} test examples of each of {self.classes} classes; {self.name} allows "
                f"{self.classes} to {smallest_class * self.classes}."
            )
        index = np.concatenate([np.flatnonzero(self.test_y == label)[:per_class] for label in range(self.classes)])
        return self.test_x[index], self.test_y[index]


def digits(test_fraction: float = 0.3, seed: int = 0) -> Dataset:
    """Scikit-learn's handwritten digits: 1,797 grey images of 8×8 in 10 classes, scaled to zero mean and unit variance.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = images.reshape(-1, 8, 8, 1).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = np.split(order, [round(test_fraction * len(x))])
    mean, std = x[train].mean(), x[train].std()
    x, y = (x - mean) / std, labels.astype(np.int32)
    return Dataset("digits", x[train], y[train], x[test], y[test], classes=10)
