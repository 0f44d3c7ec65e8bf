"""Charts on matplotlib axes."""

from __future__ import annotations

from typing import Any

from ._chart import ALARM, GRID, INIT, Chart


def draw(chart: Chart, ax: Any) -> Any:
    """Draws the chart on matplotlib axes, and returns them."""
    for drawn in chart.lines:
        ax.plot(*chart.points(drawn), label=drawn.name, color=drawn.color, marker="o", markersize=3)
    if chart.diverged is not None:
        ax.axvline(max(chart.diverged, INIT) if chart.log_x else chart.diverged, color=ALARM, linestyle=":")
    x_ticks, y_ticks = chart.ticks()
    ax.set(title=chart.title, xlabel=chart.x)
    for axis, log, ticks in (("x", chart.log_x, x_ticks), ("y", chart.log_y, y_ticks)):
        if log:
            ax.set(**{f"{axis}scale": "log"})
        if ticks:
            # A tick outside the limits would widen the view.
            low, high = getattr(ax, f"get_{axis}lim")()
            inside = [tick for tick in zip(*ticks.values(), strict=True) if low <= tick[0] <= high]
            getattr(ax, f"set_{axis}ticks")(*zip(*inside, strict=True))
            getattr(ax, f"set_{axis}ticks")([], minor=True)
    ax.grid(color=GRID)
    if len(chart.lines) > 1:
        ax.legend(fontsize="small", ncols=-(-len(chart.lines) // 12))
    return ax
