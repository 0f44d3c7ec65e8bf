"""Charts as Plotly figures."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from .._require import require
from ._chart import ALARM, GRID, INIT, INK, Chart
from ._matplotlib import picture_of
from ._text import for_plotly, for_template

MIME = "application/vnd.plotly.v1+json"
FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


def plotly_figure(chart: Chart) -> Any:
    """The chart as a Plotly figure, which a notebook shows, also when it is exported."""
    figure = require("plotly.graph_objects", extra="report").Figure()
    number = "%{customdata:,d}" if chart.log_x else "%{customdata:.4g}"
    for drawn in chart.lines:
        x, y = chart.points(drawn)
        figure.add_scatter(
            x=x,
            y=y,
            name=for_plotly(drawn.name),
            mode="lines+markers",
            line={"color": drawn.color, "width": 2},
            marker={"size": 4},
            customdata=drawn.x,
            hovertemplate=f"{for_template(chart.x)} {number}: %{{y:.4g}}<extra>{for_template(drawn.name)}</extra>",
        )
    x_ticks, y_ticks = chart.ticks()
    x_type, y_type = ("log" if log else "linear" for log in (chart.log_x, chart.log_y))
    figure.update_xaxes(type=x_type, title=for_plotly(chart.x), gridcolor=GRID, zeroline=False, **x_ticks)
    figure.update_yaxes(type=y_type, gridcolor=GRID, zeroline=False, **y_ticks)
    if chart.diverged is not None:
        _mark_divergence(figure, chart.diverged, log_x=chart.log_x)
    heading = {"text": for_plotly(chart.title), "x": 0, "xref": "paper", "font": {"size": 15}}
    many = len(chart.lines) > 1
    styled(figure, height=420, title=heading, showlegend=many).update_layout(margin_t=48)
    # IPython asks the figure itself, and copies and files of the figure do not take this along.
    figure._ipython_display_ = _Shown(figure, chart)
    return figure


class _Shown:
    """Shows a figure in a notebook with a picture beside it, for pages and viewers that do not run Plotly."""

    def __init__(self, figure: Any, chart: Chart):
        self._figure, self._chart = figure, chart

    def __call__(self) -> None:
        """Shows it, in the way that ``plotly.io.renderers.default`` says."""
        figure = self._figure
        shown = figure._repr_mimebundle_()
        if [*shown] != [MIME]:
            type(figure)._ipython_display_(figure)
            return
        # A plot that is never shown needs no JSON, so the chart is drawn again here.
        is_as_drawn = figure.to_json() == plotly_figure(self._chart).to_json()
        picture = picture_of(self._chart) if is_as_drawn else None
        if picture is None:
            # The user changed the figure, or there is no matplotlib.
            shown["text/html"] = figure.to_html(full_html=False, include_plotlyjs=True)
        else:
            shown["image/png"] = picture
        about = {"image/png": {"width": 720, "alt": self._chart.title}}
        import_module("IPython.display").display(shown, raw=True, metadata=about)


def styled(figure: Any, **layout: Any) -> Any:
    """The looks that all figures share."""
    return figure.update_layout(
        template="plotly_white",
        margin={"l": 48, "r": 12, "t": 24, "b": 36},
        font={"family": FONT, "size": 12, "color": INK},
        hovermode="closest",
        **layout,
    )


def _mark_divergence(figure: Any, x: float, *, log_x: bool) -> None:
    x = max(x, INIT) if log_x else x
    figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line={"color": ALARM, "dash": "dot"})
    # On a log axis an annotation is placed by the logarithm of x, and a shape by x itself.
    place = float(np.log10(x)) if log_x else x
    text = {"text": "diverged", "font": {"color": ALARM, "size": 11}, "showarrow": False}
    figure.add_annotation(x=place, y=1, yref="paper", xanchor="center", yanchor="bottom", **text)
