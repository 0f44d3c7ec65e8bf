"""Anything with ``log(dict, step=)``, such as a run of W&B."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from ._writer import is_module


class Log:
    """Writes to an object with ``log(dict, step=)``, such as a W&B run.

    The steps of a W&B run never go back. Training logs to the same run, and is ahead of the tracker's numbers when they
    arrive. W&B would drop such late numbers, so they join the current step of the run, without the scalars, which would
    replace newer ones. ``kernel_step`` beside them is the step that they belong to, and W&B draws them over it.

    Args:
        target: the run, or the module ``wandb``, for the run that is active when numbers come.
    """

    def __init__(self, target: Any):
        self._target = target
        self._run: Any = None
        self._axes: set[str] = set()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""
        run = self._target
        if is_module(run, "wandb"):
            run = run.run or run
        row, now = dict(scalars), step
        if hasattr(run, "define_metric") and not isinstance(run, ModuleType):
            row |= dict.fromkeys(self._define_axes(run, scalars), step)
            now = max(step, run.step)
        if now > step:
            row = {name: value for name, value in row.items() if "kernel" in name.split("/") or name in self._axes}
        run.log(row, step=now)

    def _define_axes(self, run: Any, names: Iterable[str]) -> set[str]:
        if run is not self._run:
            self._run, self._axes = run, set()
        prefixes = {name.partition("kernel/")[0] for name in names if "kernel" in name.split("/")}
        for prefix in prefixes:
            if f"{prefix}kernel_step" not in self._axes:
                run.define_metric(f"{prefix}kernel/*", step_metric=f"{prefix}kernel_step")
        axes = {f"{prefix}kernel_step" for prefix in prefixes}
        self._axes |= axes
        return axes

    def __repr__(self) -> str:
        return f"{getattr(self._target, '__name__', type(self._target).__name__)}.log"
