"""What commands write: files that are whole, tables as CSV, and pictures as HTML pages that need no network."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nngp_plugins.charts import depth_colors, distinct_colors, styled

Curve = tuple[Sequence[float], Sequence[float], Sequence[float]]
"""Places, values and standard errors."""


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of ``path`` once all of it is safe on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def log_log(title: str, x: str, panels: Mapping[str, Mapping[str, Curve]]) -> Any:
    """Returns panels side by side, both axes logarithmic, with error bars and the same colour for a name everywhere.

    Args:
        title: the heading.
        x: the name of the horizontal axes.
        panels: the curves of each panel by their names.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=len(panels), subplot_titles=list(panels), horizontal_spacing=0.06)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colors = dict(zip(names, depth_colors(len(names)), strict=True))
    shown: set[str] = set()
    for column, curves in enumerate(panels.values(), 1):
        for name, (places, values, errors) in curves.items():
            looks = {"color": colors[name]}
            figure.add_scatter(
                x=list(places),
                y=_positive(values),
                error_y={"array": _positive(errors)},
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                mode="lines+markers",
                line=looks,
                row=1,
                col=column,
            )
            shown.add(name)
    figure.update_xaxes(type="log", title=x)
    figure.update_yaxes(type="log", exponentformat="power")
    return styled(figure, height=420, title={"text": title, "x": 0, "xref": "paper"}).update_layout(margin_t=72)


def scatter(
    title: str, axes: tuple[str, str], points: Mapping[str, Mapping[str, tuple[float, float, float]]], *, log_x: bool
) -> Any:
    """Returns points with error bars and their names.

    Args:
        title: the heading.
        axes: the names of the axes.
        points: for each colour, ``(x, y, standard error of y)`` of each point by its name.
        log_x: whether the horizontal axis is logarithmic.
    """
    from plotly.graph_objects import Figure

    figure = Figure()
    for (color_name, named), color in zip(points.items(), distinct_colors(len(points)), strict=True):
        x, y, errors = (list(column) for column in zip(*named.values(), strict=True))
        figure.add_scatter(
            x=x,
            y=y,
            error_y={"array": _positive(errors)},
            text=list(named),
            name=color_name,
            mode="markers",
            marker={"color": color, "size": 9},
        )
    figure.update_xaxes(type="log" if log_x else "linear", title=axes[0])
    figure.update_yaxes(title=axes[1])
    return styled(figure, height=520, title={"text": title, "x": 0, "xref": "paper"}).update_layout(margin_t=72)


def save(figure: Any, path: Path) -> None:
    """Writes a figure as one page that needs no network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, full_html=True)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table with a column for each key, in the order in which they first occur."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def _positive(values: Sequence[float]) -> list[float | None]:
    """What a logarithmic axis can show."""
    return [float(value) if np.isfinite(value) and value > 0 else None for value in values]
