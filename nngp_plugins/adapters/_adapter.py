"""What the file of a framework provides."""

from __future__ import annotations

from typing import Any, Protocol

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
