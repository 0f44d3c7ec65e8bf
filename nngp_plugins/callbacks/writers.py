"""Writers of a tracker's numbers, beside the run folder."""

from typing import TYPE_CHECKING, Any

from ._writers import MLflow as MLflow
from ._writers import TensorBoard as TensorBoard

if TYPE_CHECKING:
    from ._console import Console as Console


def __getattr__(name: str) -> Any:
    if name == "Console":  # imports rich
        from ._console import Console

        return Console
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
