"""Writers: where a tracker's numbers go, beside the run folder."""

from typing import TYPE_CHECKING, Any

from ._as_writer import as_writer as as_writer
from ._mlflow import MLflow as MLflow
from ._tensorboard import TensorBoard as TensorBoard
from ._writer import Guarded as Guarded, Writer as Writer

if TYPE_CHECKING:
    from ._console import Console as Console


def __getattr__(name: str) -> Any:
    # The console needs rich, which takes long to import.
    if name == "Console":
        from ._console import Console

        return Console
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
