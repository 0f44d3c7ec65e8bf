"""What the file of a framework provides."""

from __future__ import annotations

import reprlib
from typing import Any, Protocol

from .._show import name_of
from .._static import Static
from .._typing import PyTree


class Adapter(Protocol):
    """What the file of a framework provides. It is frozen and hashable, so that compiled functions are reused."""

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the model."""

    def tagged(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the same outputs; what each layer returns is tagged, by :func:`_tag.mark`."""

    def owners(self, params: PyTree) -> list[str]:
        """Returns the paths of the modules that own parameters."""

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """Returns new parameters and state."""

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Returns parameters and state of an object that holds both in this framework; None for other objects."""


def facts_of(model_fn: Any) -> dict[str, str]:
    """What differs in a :class:`ModelFn` from its model alone, in short texts."""
    facts = {"model": _short_name(model_fn.adapter)}
    if model_fn.patterns is not None:
        facts["layers"] = repr(list(model_fn.patterns))
    facts |= {"functions": "True"} if model_fn.functions else {}
    facts |= {"batch_axis": str(model_fn.batch_axis)} if model_fn.batch_axis else {}
    return facts | ({"pool": name_of(model_fn.pooling.how)} if model_fn.pooling is not None else {})


def _short_name(adapter: Any) -> str:
    """The framework and the name of the model, such as ``Linen Sequential``."""
    framework = type(adapter).__name__.removesuffix("Adapter")
    for field in ("name", "module", "function"):
        model = getattr(adapter, field, None)
        if model is not None:
            model = model.value if isinstance(model, Static) else model
            is_function = hasattr(model, "__qualname__") or isinstance(model, str)
            name = (model if isinstance(model, str) else name_of(model)) if is_function else type(model).__name__
            return f"{framework} {reprlib.repr(name)[1:-1]}"
    return framework
