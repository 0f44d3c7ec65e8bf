"""Models in each framework, data sets, and the ``nngp-zoo`` command.

``zoo.get("haiku/resnet18", width=64)`` gives a model, ``zoo.list()`` names them all, ``zoo.load("digits")`` gives data.
"""

from .data import Dataset as Dataset, load as load
from .registry import get as get, list_models as list
from .spec import Spec as Spec

__all__ = ["Dataset", "Spec", "get", "list", "load"]
