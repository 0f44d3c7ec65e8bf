"""Models and data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from importlib import import_module

from nngp_plugins import ModelFn

from .data import Dataset, digits

MODELS = tuple(f"{framework}/{network}" for framework in ("linen", "nnx", "haiku") for network in ("mlp", "cnn"))
DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits}


def get_model(name: str, dataset: Dataset) -> ModelFn:
    """Returns the model of that name, sized for a data set. Only the framework of the model is imported.

    Raises:
        ValueError: there is no such model; the message names the closest.
    """
    _check_name("model", name, MODELS)
    framework, network = name.split("/")
    models = import_module(f"zoo.models.{framework}")
    return getattr(models, network)(dataset.train_x.shape[1:], dataset.classes)


def get_dataset(name: str) -> Dataset:
    """Returns the data set of that name.

    Raises:
        ValueError: there is no such data set; the message names the closest.
    """
    _check_name("data set", name, DATASETS)
    return DATASETS[name]()


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        closest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known
        raise ValueError(f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, closest))}?")
