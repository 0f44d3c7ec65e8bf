"""From rows to what charts and tables show of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np

from ..charts import INK, Chart, Line, depth_colors, number, printable, spaced, sparkline
from ..metrics import entry_of
from ._rows import Row, diverged_layers_of, key_of, layers_of, metrics_of, reference_steps_of, scalars_of


def history_chart(rows: Sequence[Row], name: str, layers: str | Sequence[str] | None = None, x: str = "step") -> Chart:
    """A metric with a line for each layer, or a scalar with a single line.

    Args:
        rows: the snapshots.
        name: the name of a metric or of a scalar.
        layers: patterns of the layers to draw; None for all of them.
        x: what the lines are drawn over: ``step``, ``seconds``, or a scalar.

    Raises:
        KeyError: ``name`` or ``x`` was not measured.
        ValueError: a pattern of ``layers`` matches no layer, or is given for a scalar.
    """
    metrics = metrics_of(rows)
    check_known(metrics, scalars_of(rows), name, x)
    if name in metrics:
        chosen = _matching(layers_of(rows), layers)
        colors = depth_colors(len(chosen))
        lines = [line(rows, layer, key_of(layer, name), x, c) for layer, c in zip(chosen, colors, strict=True)]
    elif layers is None:
        lines = [line(rows, name, name, x, INK)]
    else:
        raise ValueError(f"layers={layers!r} is given, but {name!r} is a scalar of the whole run; leave layers out.")
    diverged = min(diverged_layers_of(rows).values(), default=None)
    ends = [row[x] for row in rows if row["step"] == diverged and x in row]
    return Chart(title_of(name, rows), x, lines, is_log(name, lines), ends[0] if ends else None)


def check_known(metrics: Iterable[str], scalars: Iterable[str], name: str, x: str) -> None:
    """Refuses a name, to draw or to draw over, that was not measured.

    Raises:
        KeyError: says which names there are.
    """
    beside = ["seconds", *scalars]
    if name not in (known := [*metrics, *beside]):
        raise KeyError(f"{name!r} was not measured; there is {', '.join(known)}")
    if x not in (known := ["step", *beside]):
        raise KeyError(f"x={x!r} was not logged; there is {', '.join(known)}")


def line(rows: Sequence[Row], label: str, key: str, x: str, color: str) -> Line:
    """The snapshots that have both ``x`` and ``key``, as a line."""
    both = [row for row in rows if key in row and x in row]
    y = np.array([row[key] for row in both], dtype=float)
    return Line(label, np.array([row[x] for row in both]), np.where(np.isfinite(y), y, np.nan), color)


def title_of(name: str, *runs: Sequence[Row]) -> str:
    """The title of a metric, from its catalogue entry, or of a scalar.

    Titles speak of "init", which would be wrong for the rows of runs where some reference is of a later snapshot.
    """
    entry = entry_of(name)
    if entry is None:
        return (name[:1].upper() + name[1:]).replace("_", " ")
    is_later = any(step > rows[0]["step"] for rows in runs for step in reference_steps_of(rows).values())
    return entry.title.replace(" init", " reference") if is_later else entry.title


def is_log(name: str, lines: Sequence[Line]) -> bool:
    """Whether the y axis is logarithmic, as a metric's entry says; for a loss, if all of it is positive."""
    known = np.concatenate([line.y[~np.isnan(line.y)] for line in lines] or [np.zeros(0)])
    entry = entry_of(name)
    if entry is not None and entry.log_axis:
        return bool((known > 0).any())
    return name == "loss" and bool(known.size and (known > 0).all())


def first_and_last(rows: Sequence[Row], layer: str, metric: str) -> str:
    """The first and the last value of a metric; the last one alone if the first one says nothing."""
    key, entry = key_of(layer, metric), entry_of(metric)
    values = [row[key] for row in rows if key in row]
    if not values:
        return "–"
    if math.isnan(values[0]) or (entry is not None and entry.relative_to_reference):
        return number(values[-1])
    return f"{number(values[0])} → {number(values[-1])}"


def last(rows: Sequence[Row], key: str) -> str:
    """The last value under the full name ``key``."""
    values = [row[key] for row in rows if key in row]
    return number(values[-1]) if values else "–"


def so_far(rows: Iterable[Row], most: int = 1) -> dict[str, str]:
    """How far a run is, in short texts: its last step, and the last numbers with a sparkline of those before.

    Args:
        rows: the snapshots; a tracker may add others at any moment.
        most: of how many layers to say the first metric; of one, it is the last layer.
    """
    rows = list(rows)
    facts = {"snapshots": str(len(rows))} | ({"step": f"{rows[-1]['step']:,}"} if rows else {})
    keys = {name: name for name in scalars_of(rows)[:2]}
    for metric in metrics_of(rows)[:1]:
        shown = spaced(layers_of(rows)[::-1], most)[::-1]
        keys |= {f"{metric.replace('_', ' ')} of {layer}": key_of(layer, metric) for layer in shown}
    for name, key in keys.items():
        values = [row[key] for row in rows if key in row]
        facts[printable(name)] = f"{number(values[-1])} {sparkline(values, 12)}".rstrip()
    return facts


def _matching(layers: Sequence[str], patterns: str | Sequence[str] | None) -> list[str]:
    """The layers that match any of the patterns, in forward order."""
    if patterns is None:
        return list(layers)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not any(_matches(layer, pattern) for layer in layers):
            raise ValueError(f"layers={pattern!r} matches no layer; there is {printable(', '.join(layers))}.")
    return [layer for layer in layers if any(_matches(layer, pattern) for pattern in patterns)]


def _matches(layer: str, pattern: str) -> bool:
    return layer == pattern or fnmatchcase(layer, pattern)
