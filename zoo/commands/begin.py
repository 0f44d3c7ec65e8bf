"""What commands do first: refuse what they can at once, then load data and model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import data as datasets, registry
from .manners import Common, refusing

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model import Model


def check(model: str, data: str, *, probe: int | None = None, examples: int | None = None) -> None:
    """Refuses names, numbers of examples, and a model that does not fit the data, before anything slow is imported."""
    with refusing("MODEL"):
        family = registry.check(model)
    with refusing("--data"):
        about = datasets.check(data)
    if about is not None:
        with refusing("--probe"):
            datasets.check(data, probe=probe)
        with refusing("--examples"):
            datasets.check(data, examples=examples)
        if family is not None:
            with refusing("MODEL"):
                family.check(model, about.spec)


def load(common: Common, model: str, data: str) -> tuple[Model, Dataset]:
    """Returns the model for the data, and the data."""
    with refusing("--data"):
        dataset = datasets.load(data)
    with refusing("MODEL"):
        return registry.get(model, dataset.spec, **common.knobs), dataset
