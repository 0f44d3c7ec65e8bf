"""MLflow."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Mapping

from ..._require import require


class MLflow:
    """Writes to a run of MLflow; needs ``mlflow-skinny`` or ``mlflow``.

    Characters that MLflow refuses in names, such as ``#``, become ``_``. The databases of MLflow store an infinite
    number as the largest float.

    Args:
        run_id: the run to write to; None for the active one. If there is no active run, or a ``tracking_uri`` is given,
            a new run begins in the experiment that ``mlflow.set_experiment`` chose, or in the default experiment.
        tracking_uri: where runs are kept, such as ``sqlite:///mlflow.db``; None for MLflow's own setting.

    Attributes:
        run_id: the run that is written to.

    Raises:
        ValueError: there is no such run.
        ModuleNotFoundError: ``mlflow`` is not installed.
    """

    def __init__(self, run_id: str | None = None, tracking_uri: str | None = None):
        mlflow = require("mlflow", extra="mlflow")
        self._metric = require("mlflow.entities", extra="mlflow").Metric
        self._client = mlflow.MlflowClient(tracking_uri=tracking_uri)
        self._names: dict[str, str] = {}
        if run_id is None and tracking_uri is None and (active := mlflow.active_run()) is not None:
            run_id = active.info.run_id
        self._is_new = run_id is None
        try:
            run = (
                self._client.create_run(os.environ.get("MLFLOW_EXPERIMENT_ID", "0"))
                if run_id is None
                else self._client.get_run(run_id)
            )
        except mlflow.MlflowException as error:
            raise ValueError(f"MLflow(run_id={run_id!r}, tracking_uri={tracking_uri!r}): {error}") from error
        self.run_id: str = run.info.run_id

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        now = int(1000 * time.time())
        # Names that need no change come first, so that no other name takes theirs.
        for name in sorted(scalars, key=lambda name: _mlflow_name(name) != name):
            self._names.setdefault(name, _unused(_mlflow_name(name), self._names.values()))
        metrics = [self._metric(self._names[name], value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """Ends the run if this writer began it."""
        if self._is_new:
            self._client.set_terminated(self.run_id)

    def __repr__(self) -> str:
        return f"MLflow(run_id={self.run_id!r})"


def _mlflow_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-. :/``, a path in normal form, and not too long.

    Example:
        >>> _mlflow_name("kernel/Dense_0#1/cka"), _mlflow_name("kernel//../cka")
        ('kernel/Dense_0_1/cka', 'kernel/_/__/cka')
    """
    parts = re.sub(r"[^\w.\- :/]", "_", name)[-240:].split("/")
    return "/".join("_" * max(len(part), 1) if part in ("", ".", "..") else part for part in parts)


def _unused(name: str, taken: Iterable[str]) -> str:
    """The name, with a number behind it if it is taken."""
    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken)
