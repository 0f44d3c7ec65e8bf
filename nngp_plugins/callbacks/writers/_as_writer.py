"""From what users pass as writers to writers."""

from __future__ import annotations

import reprlib
from typing import Any

from ._log import Log
from ._mlflow import MLflow
from ._writer import Writer, is_module, takes_steps


def as_writer(writer: Any) -> Writer:
    """Anything that a tracker takes as a writer, as an object with ``write_scalars(step, {name: number})``.

    Args:
        writer: anything that has this method, such as a clu ``MetricWriter``; anything with ``log(dict, step=)``, such
            as a W&B run or the module ``wandb``; or the module ``mlflow``, which stands for ``MLflow()``.

    Raises:
        TypeError: ``writer`` is none of these.

    Example:
        >>> class Printer:
        ...     def log(self, data, step):
        ...         print(step, data)
        >>> as_writer(Printer()).write_scalars(3, {"loss": 0.5})
        3 {'loss': 0.5}
    """
    if is_module(writer, "mlflow"):
        return MLflow()
    if not isinstance(writer, type):
        if callable(getattr(writer, "write_scalars", None)):
            return writer
        if is_module(writer, "wandb") or takes_steps(getattr(writer, "log", None)):
            return Log(writer)
    raise TypeError(
        f"writers=[{reprlib.repr(writer)}] holds no writer; pass one of nngp.writers, such as "
        "nngp.writers.TensorBoard('logs'), a W&B run, or what has write_scalars(step, dict) or log(dict, step=)."
    )
