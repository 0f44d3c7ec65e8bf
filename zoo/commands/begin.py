"""What commands do first: refuse what they can at once, then load data and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import data as datasets, registry
from .manners import Common, refusing

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model import Model


# The options of a run that are no knobs of its model.
OPTIONS = (
    "model",
    "data",
    "steps",
    "lr",
    "optimizer",
    "schedule",
    "batch_size",
    "probe",
    "per_decade",
    "keep_kernels",
    "seed",
)


def knobs_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the knobs of the model of a run, whose run folder keeps them beside its other options."""
    return {name: value for name, value in config.items() if name not in OPTIONS}


def check(
    model: str, data: str, *, probe: int | None = None, examples: int | None = None, argument: str = "MODEL"
) -> None:
    """Refuses names, numbers of examples, and a model that does not fit the data, before anything slow is imported."""
    with refusing(argument):
        family = registry.check(model)
    with refusing("--data"):
        about = datasets.check(data)
    if about is not None:
        with refusing("--probe"):
            datasets.check(data, probe=probe)
        with refusing("--examples"):
            datasets.check(data, examples=examples)
        if family is not None:
            with refusing(argument):
                family.check(model, about.spec)


def load(common: Common, model: str, data: str) -> tuple[Model, Dataset]:
    """Returns the model for the data, and the data."""
    with refusing("--data"):
        dataset = datasets.load(data)
    with refusing("MODEL"):
        return registry.get(model, dataset.spec, **common.knobs), dataset
