"""What the page holds as JSON: the numbers of its runs, and how to read their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..charts import depth_colors
from ..history import Comparison, History, StoredRun, title_of
from ..metrics import entry_of
from ._gaps import reasons
from ._kernels import Kernels

_DIGITS = 5


def page_data(runs: Mapping[str, StoredRun]) -> dict[str, Any]:
    """The contents of the page: numbers have five digits, and what is not finite is null."""
    histories = {name: run.history for name, run in runs.items()}
    every = Comparison(histories)
    data = {
        "runs": [_run(name, history) for name, history in histories.items()],
        "differs": every.config,
        "metrics": {name: _about(name, list(histories.values())) for name in every.metrics},
        "scalars": every.scalars,
        "layers": every.layers,
        "colors": [depth_colors(len(every.layers), dark=dark) for dark in (False, True)],
    }
    if len(runs) == 1:
        data |= _kernels(next(iter(runs.values())))
    return rounded(data)


def _run(name: str, history: History) -> dict[str, Any]:
    return {
        "name": name,
        "config": history.config,
        "steps": history.steps.tolist(),
        "layers": history.layers,
        "diverged": history.diverged,
        "metrics": {metric: history.metric(metric).T.tolist() for metric in history.metrics},
        "scalars": {scalar: history.scalar(scalar).tolist() for scalar in history.scalars},
        "nan": _gaps(history),
    }


def _gaps(history: History) -> dict[str, dict[str, str]]:
    """Why a metric of a layer is nan, for those that are somewhere."""
    found: dict[str, dict[str, str]] = {}
    for (metric, layer), causes in reasons(history).items():
        found.setdefault(metric, {})[layer] = "; or ".join(causes)
    return found


def _about(name: str, histories: Sequence[History]) -> dict[str, Any]:
    title, entry = title_of(name, *(history.rows for history in histories)), entry_of(name)
    if entry is None:
        return {"title": title, "tells": "", "misleads": "", "formula": "", "log": False, "compares": False}
    return {
        "title": title,
        "tells": entry.tells,
        "misleads": entry.misleads,
        "formula": entry.formula,
        "log": entry.log_axis,
        "compares": entry.relative_to_reference,
    }


def _kernels(run: StoredRun) -> dict[str, Any]:
    kernels = Kernels(run)
    return {
        "kernels": {"layers": kernels.layers, "classes": kernels.classes(), "frames": kernels.pictures()},
        "spectra": kernels.spectra(),
        "ckaLayers": {"layers": run.layers, "each": kernels.cka_of_layers()},
        "ckaSteps": kernels.cka_of_steps(),
    }


def rounded(value: Any) -> Any:
    """The same value with numbers of five digits, and None for those that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
