"""A chart: lines over steps or over a scalar, whichever library draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

INIT = 0.5
"""Where step 0, the initialisation, stands on a log axis."""
INK, GRID, ALARM = "#334155", "#e5e7eb", "#dc2626"
_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
_DISTINCT = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#0891b2", "#ca8a04", "#be185d", "#64748b")


class Line(NamedTuple):
    """Points ``x`` and ``y``, each ``(S,)``, in the order of steps; nan stands for numbers that are not finite."""

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str


@dataclass(frozen=True)
class Chart:
    """Lines over ``x``. Steps stand on a log axis, on which step 0 is called "init".

    Attributes:
        title: the heading.
        x: the name of what the lines are drawn over.
        lines: the lines.
        log_y: whether the y axis is logarithmic.
        diverged: where on the x axis the run diverged; None if it did not.
    """

    title: str
    x: str
    lines: Sequence[Line]
    log_y: bool
    diverged: float | None = None

    @property
    def log_x(self) -> bool:
        """Whether the x axis is that of steps, which is logarithmic."""
        return self.x == "step"

    def points(self, line: Line) -> tuple[np.ndarray, np.ndarray]:
        """Where a line is drawn, its ``x`` and ``y``, each ``(S,)``: steps on a log axis begin at "init"."""
        y = np.where(line.y > 0, line.y, np.nan) if self.log_y else line.y
        return (np.maximum(line.x, INIT) if self.log_x else line.x), y

    def ticks(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ticks of both axes as Plotly takes them; empty for an axis whose default ticks are good."""
        x, y = (np.concatenate([line[i] for line in self.lines] or [np.zeros(0)]) for i in (1, 2))
        return (_step_ticks(x) if self.log_x else {}), (log_ticks(y) if self.log_y else {})


def depth_colors(count: int, *, dark: bool = False) -> list[str]:
    """A colour for each of ``count`` layers that shows its depth: Viridis, without the end that is like the page."""
    table = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in _VIRIDIS.split()])
    first, last = (0.3, 1) if dark else (0, 0.88)
    places = np.linspace(first, last, count) * (len(table) - 1)
    channels = [np.interp(places, range(len(table)), table[:, i]).round().astype(int) for i in range(3)]
    return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in zip(*channels, strict=True)]


def distinct_colors(count: int) -> list[str]:
    """A colour for each of ``count`` runs; if they are too many to tell apart, the colours of depth."""
    return list(_DISTINCT[:count]) if count <= len(_DISTINCT) else depth_colors(count)


def log_ticks(values: np.ndarray) -> dict[str, Any]:
    """Ticks at powers of ten, and at twice and five times them if there are few."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return {}
    low, high = int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max())))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**k for k in range(low, high + 1) for step in steps]
    if sum(positive.min() <= tick <= positive.max() for tick in ticks) < 2:
        return {}
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _step_ticks(steps: np.ndarray) -> dict[str, Any]:
    after = steps[steps > 0]
    places, texts = ([INIT], ["init"]) if after.size < steps.size else ([], [])
    ticks = log_ticks(after).get("tickvals")
    if not ticks:
        ticks = sorted({after.min(), after.max()}) if after.size else []
    return {"tickvals": [*places, *ticks], "ticktext": [*texts, *(f"{tick:,.0f}" for tick in ticks)]}
