"""Charts on matplotlib axes."""

from __future__ import annotations

import io
from typing import Any

from ._chart import ALARM, GRID, INIT, Chart
from ._text import for_matplotlib


def draw(chart: Chart, ax: Any) -> Any:
    """Draws the chart on matplotlib axes, and returns them."""
    lines = []
    for drawn in chart.lines:
        looks = {"label": for_matplotlib(drawn.name), "color": drawn.color, "marker": "o", "markersize": 3}
        lines += ax.plot(*chart.points(drawn), **looks)
    if chart.diverged is not None:
        ax.axvline(max(chart.diverged, INIT) if chart.log_x else chart.diverged, color=ALARM, linestyle=":")
    x_ticks, y_ticks = chart.ticks()
    ax.set(title=for_matplotlib(chart.title), xlabel=for_matplotlib(chart.x))
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
        _legend(ax, lines)
    return ax


def picture_of(chart: Chart) -> bytes | None:
    """The chart as a PNG; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    draw(chart, figure.subplots()).spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144)
    return file.getvalue()


def _legend(ax: Any, drawn: list[Any]) -> None:
    """A legend of all lines; matplotlib by itself leaves out those whose names begin with an underscore."""
    handles = [*(handle for handle in ax.get_legend_handles_labels()[0] if handle not in drawn), *drawn]
    legend = ax.legend(handles, ["line"] * len(handles), fontsize="small", ncols=-(-len(handles) // 12))
    for text, handle in zip(legend.get_texts(), handles, strict=True):
        text.set_text(handle.get_label())
