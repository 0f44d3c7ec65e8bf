"""Pictures of histories: what to draw, as a chart, and a chart as a Plotly figure or on matplotlib axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._require import require
from ._history import PREFIX

if TYPE_CHECKING:
    from ._history import History

TITLES = {
    "cka": "CKA to init",
    "relative_change": "Relative change since init",
    "kernel_distance": "Kernel distance to init",
    "kernel_velocity": "Kernel velocity, per step",
    "scale": "Scale  tr K / N",
    "effective_rank": "Effective rank",
    "participation_ratio": "Participation ratio",
    "stable_rank": "Stable rank",
    "power_law_exponent": "Power-law exponent",
    "target_alignment": "Target alignment",
    "class_separation": "Class separation  NC1",
    "regression_accuracy": "Kernel regression, accuracy",
    "log_marginal_likelihood": "Log marginal likelihood",
}
# span decades; a change of zero, at the first snapshot, is left out
_LOG = ("relative_change", "kernel_distance", "kernel_velocity", "scale", "class_separation")
_INIT = 0.5  # where step 0 stands on a log axis
_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"
_INK, _GRID, _ALARM = "#334155", "#e5e7eb", "#dc2626"
_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
_DISTINCT = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#0891b2", "#ca8a04", "#be185d", "#64748b")


class Line(NamedTuple):
    """Points ``x`` and ``y``, each ``(S,)``, in the order of steps; nan where a number is not finite."""

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str


@dataclass(frozen=True)
class Chart:
    """Lines over ``x``, whichever library draws them; steps stand on a log axis, with step 0 as "init".

    Attributes:
        diverged: where on the x axis the run diverged.
    """

    title: str
    x: str
    lines: Sequence[Line]
    log_y: bool
    diverged: float | None = None

    @property
    def log_x(self) -> bool:
        """Whether the x axis is that of steps."""
        return self.x == "step"

    def points(self, line: Line) -> tuple[np.ndarray, np.ndarray]:
        """Where a line is drawn, its ``x`` and ``y``, each ``(S,)``: on a log axis, steps begin at "init"."""
        y = np.where(line.y > 0, line.y, np.nan) if self.log_y else line.y
        return (np.maximum(line.x, _INIT) if self.log_x else line.x), y


def history_chart(history: History, name: str, layers: str | Sequence[str] | None = None, x: str = "step") -> Chart:
    """A metric with a line for each layer, or a scalar with a single line.

    Raises:
        KeyError: ``name`` or ``x`` was not measured.
        ValueError: a pattern of ``layers`` matches no layer, or is given for a scalar.
    """
    check_known(history.metrics, history.scalars, name, x)
    if name in history.metrics:
        chosen = matching(history.layers, layers)
        colors = depth_colors(len(chosen))
        lines = [line(history, layer, f"{PREFIX}{layer}/{name}", x, c) for layer, c in zip(chosen, colors, strict=True)]
    elif layers is None:
        lines = [line(history, name, name, x, _INK)]
    else:
        raise ValueError(f"layers={layers!r} is given, but {name!r} is a scalar of the whole run; leave layers out.")
    ends = [row[x] for row in history.rows if row["step"] == history.diverged and x in row]
    return Chart(title(name), x, lines, log_scale(name, lines), ends[0] if ends else None)


def check_known(metrics: Iterable[str], scalars: Iterable[str], name: str, x: str) -> None:
    """Raises a KeyError for a name, to draw or to draw over, that was not measured."""
    beside = ["seconds", *scalars]
    if name not in (known := [*metrics, *beside]):
        raise KeyError(f"{name!r} was not measured; there is {', '.join(known)}")
    if x not in (known := ["step", *beside]):
        raise KeyError(f"x={x!r} was not logged; there is {', '.join(known)}")


def matching(layers: Sequence[str], patterns: str | Sequence[str] | None) -> list[str]:
    """The layers that any of the patterns names, in forward order."""
    patterns = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not any(_matches(layer, pattern) for layer in layers):
            raise ValueError(f"layers={pattern!r} matches no layer; there is {', '.join(layers)}.")
    return [layer for layer in layers if any(_matches(layer, pattern) for pattern in patterns)]


def line(history: History, label: str, key: str, x: str, color: str) -> Line:
    """The snapshots that hold both ``x`` and ``key``."""
    rows = [row for row in history.rows if key in row and x in row]
    y = np.array([row[key] for row in rows], dtype=float)
    return Line(label, np.array([row[x] for row in rows]), np.where(np.isfinite(y), y, np.nan), color)


def title(name: str) -> str:
    """The title of a metric or scalar."""
    return TITLES.get(name) or (name[:1].upper() + name[1:]).replace("_", " ")


def log_scale(name: str, lines: Sequence[Line]) -> bool:
    """Whether a metric or scalar spans decades: of a loss, where all of it is positive."""
    known = np.concatenate([line.y[~np.isnan(line.y)] for line in lines] or [np.zeros(0)])
    return bool((known > 0).any()) if name in _LOG else name == "loss" and bool(known.size and (known > 0).all())


def depth_colors(count: int) -> list[str]:
    """A colour for each of so many layers that tells its depth: Viridis, without its palest end."""
    table = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in _VIRIDIS.split()])
    places = np.linspace(0, 0.88, count) * (len(table) - 1)
    channels = [np.interp(places, range(len(table)), table[:, i]).round().astype(int) for i in range(3)]
    return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in zip(*channels, strict=True)]


def distinct_colors(count: int) -> list[str]:
    """A colour for each of so many runs; those of depth where there are too many to tell apart."""
    return list(_DISTINCT[:count]) if count <= len(_DISTINCT) else depth_colors(count)


def plotly_figure(chart: Chart) -> Any:
    """The chart as a Plotly figure, which a notebook shows."""
    figure = require("plotly.graph_objects", extra="report").Figure()
    number = "%{customdata:,d}" if chart.log_x else "%{customdata:.4g}"
    for drawn in chart.lines:
        x, y = chart.points(drawn)
        figure.add_scatter(
            x=x,
            y=y,
            name=drawn.name,
            mode="lines+markers",
            line={"color": drawn.color, "width": 2},
            marker={"size": 4},
            customdata=drawn.x,
            hovertemplate=f"{chart.x} {number}: %{{y:.4g}}<extra>{drawn.name}</extra>",
        )
    x_ticks, y_ticks = _ticks(chart)
    x_type, y_type = ("log" if log else "linear" for log in (chart.log_x, chart.log_y))
    figure.update_xaxes(type=x_type, title=chart.x, gridcolor=_GRID, zeroline=False, **x_ticks)
    figure.update_yaxes(type=y_type, gridcolor=_GRID, zeroline=False, **y_ticks)
    if chart.diverged is not None:
        _mark_divergence(figure, chart.diverged, log_x=chart.log_x)
    heading = {"text": chart.title, "x": 0, "xref": "paper", "font": {"size": 15}}
    many = len(chart.lines) > 1
    return styled(figure, height=420, title=heading, showlegend=many).update_layout(margin_t=48)


def styled(figure: Any, **layout: Any) -> Any:
    """The looks that all figures share."""
    return figure.update_layout(
        template="plotly_white",
        margin={"l": 48, "r": 12, "t": 24, "b": 36},
        font={"family": _FONT, "size": 12, "color": _INK},
        hovermode="closest",
        **layout,
    )


def draw(chart: Chart, ax: Any) -> Any:
    """Draws the chart on matplotlib axes, and returns them."""
    for drawn in chart.lines:
        ax.plot(*chart.points(drawn), label=drawn.name, color=drawn.color, marker="o", markersize=3)
    if chart.diverged is not None:
        ax.axvline(max(chart.diverged, _INIT) if chart.log_x else chart.diverged, color=_ALARM, linestyle=":")
    x_ticks, y_ticks = _ticks(chart)
    ax.set(title=chart.title, xlabel=chart.x)
    for axis, log, ticks in (("x", chart.log_x, x_ticks), ("y", chart.log_y, y_ticks)):
        if log:
            ax.set(**{f"{axis}scale": "log"})
        if ticks:
            low, high = getattr(ax, f"get_{axis}lim")()  # a tick outside would widen the view
            inside = [tick for tick in zip(*ticks.values(), strict=True) if low <= tick[0] <= high]
            getattr(ax, f"set_{axis}ticks")(*zip(*inside, strict=True))
            getattr(ax, f"set_{axis}ticks")([], minor=True)
    ax.grid(color=_GRID)
    if len(chart.lines) > 1:
        ax.legend(fontsize="small", ncols=-(-len(chart.lines) // 12))
    return ax


def _matches(layer: str, pattern: str) -> bool:
    return layer == pattern or fnmatchcase(layer, pattern)


def _mark_divergence(figure: Any, x: float, *, log_x: bool) -> None:
    x = max(x, _INIT) if log_x else x
    figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line={"color": _ALARM, "dash": "dot"})
    # of the two, only annotations take the logarithm of a place on a log axis
    place = float(np.log10(x)) if log_x else x
    said = {"text": "diverged", "font": {"color": _ALARM, "size": 11}, "showarrow": False}
    figure.add_annotation(x=place, y=1, yref="paper", xanchor="center", yanchor="bottom", **said)


def _ticks(chart: Chart) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ticks of both axes, as Plotly takes them; empty where the library's own are good."""
    x, y = (np.concatenate([drawn[i] for drawn in chart.lines] or [np.zeros(0)]) for i in (1, 2))
    return (_step_ticks(x) if chart.log_x else {}), (_log_ticks(y) if chart.log_y else {})


def _step_ticks(steps: np.ndarray) -> dict[str, Any]:
    after = steps[steps > 0]
    init = [_INIT] if after.size < steps.size else []
    ticks = _log_ticks(after).get("tickvals") or (sorted({after.min(), after.max()}) if after.size else [])
    return {"tickvals": [*init, *ticks], "ticktext": [*(["init"] * len(init)), *(f"{tick:,.0f}" for tick in ticks)]}


def _log_ticks(values: np.ndarray) -> dict[str, Any]:
    """Ticks at powers of ten, and at twice and five times them where there are few."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return {}
    low, high = int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max())))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**k for k in range(low, high + 1) for step in steps]
    if sum(positive.min() <= tick <= positive.max() for tick in ticks) < 2:
        return {}
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
