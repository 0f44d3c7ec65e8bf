"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ..spec import Spec, check_name
from . import builtin
from .dataset import Dataset, check_probe
from .files import is_path, load_path
from .hub import check_hub, is_hub, load_hub


@dataclass(frozen=True)
class About:
    """What is known of a data set before it is loaded, so that the command line can refuse options at once.

    Attributes:
        make: loads it.
        spec: its inputs.
        train: number of training examples.
        test: number of test examples.
        smallest: test examples of the smallest class.
    """

    make: Callable[[], Dataset]
    spec: Spec
    train: int
    test: int
    smallest: int


DATASETS: dict[str, About] = {
    "digits": About(builtin.digits, Spec((8, 8, 1)), 1258, 539, 48),
    "mnist": About(builtin.mnist, Spec((28, 28, 1)), 4000, 1000, 84),
    "mnist1d": About(builtin.mnist1d, Spec((40, 1)), 4000, 1000, 89),
    "characters": About(builtin.characters, Spec((64,), 10, "int32", 128), 1050, 450, 37),
    "teacher": About(builtin.teacher, Spec((20,), 2), 2800, 1200, 589),
    "moons": About(builtin.moons, Spec((2,), 2), 1400, 600, 294),
}


def check(name: str, *, probe: int | None = None, examples: int | None = None) -> About | None:
    """Refuses a name, or numbers of examples that a data set does not have, without loading it.

    Returns:
        What is known of it; None for the user's files and for data sets of a hub, which must be read first.

    Raises:
        ValueError: there is no such data set, or it is too small.
        ModuleNotFoundError: the library of a hub is not installed.
    """
    if is_hub(name):
        check_hub(name)
        return None
    if is_path(name):
        return None
    check_name("data set", name, DATASETS)
    about = DATASETS[name]
    if probe is not None:
        check_probe(name, probe, about.spec.classes, about.smallest)
    if examples is not None and not 1 <= examples <= about.train:
        raise ValueError(f"{name} has 1 to {about.train} training examples, not {examples}.")
    return about


@cache
def load(name: str) -> Dataset:
    """Returns a data set by its name.

    Args:
        name: one of :data:`DATASETS`; the path of the user's own arrays, see :mod:`zoo.data.files`; or that of a hub,
            such as ``"hf:ylecun/mnist"`` or ``"tfds:mnist"``, see :mod:`zoo.data.hub`.

    Raises:
        ValueError: there is no such data set, and the message names the closest; or a file cannot be read.
        ModuleNotFoundError: the package that ships it is not installed; the message names it.

    Example:
        >>> import zoo
        >>> x, y, ids = zoo.load("digits").probe(20)
        >>> x.shape, ids[:3].tolist()
        ((20, 8, 8, 1), ['357', '1317', '1462'])
    """
    if is_hub(name):
        return load_hub(name)
    if is_path(name):
        return load_path(name)
    check(name)
    return DATASETS[name].make()
