"""A live table in the terminal."""

from __future__ import annotations

import math
import re
import reprlib
import time
import weakref
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import rich
from rich import box
from rich.console import Console as RichConsole, Group
from rich.errors import LiveError
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..._live import SECONDS_BETWEEN_LINES, InNotebook
from ...charts import printable, short, spaced, sparkline

METRICS = ("cka", "relative_change", "effective_rank", "scale")
ROWS = 20
_NAME = re.compile(r"(.*?/)?kernel/(.+)/([^/]+)")


class Console:
    """Shows a table with a row for each layer: metrics, their change since the first snapshot, and a sparkline.

    In a terminal and in a notebook the table changes in its place. In a log file there is a line a minute, with the
    lowest and the highest value of the layers, and one where a layer diverges; the table comes at the end. Of more than
    20 layers it shows 20, evenly spaced.

    Args:
        layers: patterns of the layers to show, such as ``["block*"]``; None shows all.
        metrics: the names of the metrics to show, as far as they are measured; the sparkline is that of the first one.
        console: the ``rich.console.Console`` to print to; None for rich's global one, which its progress bars use too.
            If a progress bar was given a console, pass that one, ``progress.console``. Beside a bar of tqdm, which does
            not work with a live table, pass ``rich.console.Console(force_terminal=False)``, which prints lines.

    Attributes:
        seconds_between_lines: how long a log file has no other line.

    Raises:
        TypeError: an argument has another type.

    Example:
        >>> console = Console(metrics=["cka"])
        >>> for step, cka in enumerate([1.0, 0.9, 0.4]):
        ...     console.write_scalars(step, {"loss": 2.0, "kernel/dense/cka": cka})
        step 0  loss 2.00  cka 1.00
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        metrics: str | Sequence[str] = METRICS,
        *,
        console: RichConsole | None = None,
    ):
        if console is not None and not isinstance(console, RichConsole):
            raise TypeError(f"console={reprlib.repr(console)} is no rich.console.Console.")
        self._layers = None if layers is None else _names("layers", layers)
        self._metrics = _names("metrics", metrics)
        self._console = console
        self.seconds_between_lines = SECONDS_BETWEEN_LINES
        self._line_at, self._said_of = -math.inf, set[str]()
        self._notebook = InNotebook()
        self._live: Live | None = None
        self._stop: Any = None
        self._shown = True
        self._first: int | None = None
        self._step, self._scalars = 0, dict[str, float]()
        self._seen: dict[str, dict[str, list[float]]] = {}
        """The values so far, by layer and metric."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the numbers of a step.

        Raises:
            ValueError: none of the numbers belongs to the layers to show.
        """
        self._step, self._scalars, kernels = step, {}, []
        self._first = step if self._first is None else self._first
        for name, value in scalars.items():
            # A terminal would obey the control characters of a name.
            name = printable(name)
            if (match := _NAME.fullmatch(name)) is None:
                self._scalars[name] = value
                continue
            tracker, layer, metric = match.groups(default="")
            kernels.append(layer)
            if self._layers is None or any(fnmatchcase(layer, pattern) for pattern in self._layers):
                self._seen.setdefault(tracker + layer, {}).setdefault(metric, []).append(value)
        if kernels and not self._seen:
            there = reprlib.repr(list(dict.fromkeys(kernels)))
            raise ValueError(f"Console(layers={self._layers}) matches none of the layers {there}.")
        self._shown = False
        console = self._console = self._console or rich.get_console()
        if console.is_jupyter:
            self._notebook.show(self._view())
            self._shown = True
        elif not (console.is_terminal and self._show_live(console)):
            self._show_line(console)

    def close(self) -> None:
        """Leaves the last table on the screen."""
        if self._live is not None:
            self._stop()
            self._live = None
        elif not self._shown and self._console is not None:
            self._console.print(self._view())
        self._shown = True

    def _show_line(self, console: RichConsole) -> None:
        diverged = {layer for layer, values in self._seen.items() if self._diverged(values)}
        if time.monotonic() - self._line_at >= self.seconds_between_lines or diverged - self._said_of:
            self._line_at, self._said_of = time.monotonic(), diverged
            console.print(self._line(), soft_wrap=True)

    def _show_live(self, console: RichConsole) -> bool:
        if self._live is None:
            live = Live(console=console, auto_refresh=False)
            try:
                live.start()
            except LiveError:
                # Versions of rich before 14.1 allow one live display at a time, which may be a progress bar.
                return False
            # The display hides the cursor, which must come back even if the program ends before close().
            self._live, self._stop = live, weakref.finalize(self, live.stop)
        self._live.update(self._view(), refresh=True)
        return True

    def _shown_metrics(self) -> list[str]:
        there = list(dict.fromkeys(metric for values in self._seen.values() for metric in values))
        return [metric for metric in self._metrics if metric in there] or there[:4]

    def _title(self) -> str:
        scalars = dict(self._scalars)
        seconds = scalars.pop("seconds", None)
        parts = [f"step {self._step}", *(f"{name} {short(value)}" for name, value in scalars.items())]
        return "  ".join(parts + ([] if seconds is None else [f"{seconds:.0f} s"]))

    def _line(self) -> Text:
        """The snapshot as one line."""
        parts = [self._title()]
        for metric in self._shown_metrics():
            last = [values[metric][-1] for values in self._seen.values() if metric in values]
            finite = [value for value in last if math.isfinite(value)] or [math.nan]
            low, high = short(min(finite)), short(max(finite))
            parts.append(f"{metric} {low}" if low == high else f"{metric} {low}…{high}")
        diverged = [layer for layer, values in self._seen.items() if self._diverged(values)]
        line = Text("  ".join(parts))
        return line.append(f"  diverged: {', '.join(diverged)}", "bold red") if diverged else line

    def _diverged(self, values: Mapping[str, list[float]]) -> bool:
        """Whether a metric is not finite now, and was finite before."""
        series = [values[metric] for metric in self._shown_metrics() if metric in values]
        return any(not math.isfinite(s[-1]) and any(map(math.isfinite, s)) for s in series)

    def _view(self) -> Group:
        """The title, the fullest table that fits on the console, and notes below it."""
        console, metrics = self._console or rich.get_console(), self._shown_metrics()
        full = [(metrics, True, width) for width in (24, 16, 8)] + [(metrics, False, width) for width in (16, 8)]
        for choice in [*full, *((metrics[:n], False, 8) for n in range(len(metrics) - 1, 0, -1))]:
            table, notes = self._table(console, *choice)
            if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
                break
        below = [Text(", ".join(notes), "dim italic")] if notes else []
        return Group(Text(self._title(), "bold"), table, *below)

    def _table(
        self, console: RichConsole, metrics: Sequence[str], changes: bool, width: int
    ) -> tuple[Table, list[str]]:
        # A live table that is higher than the terminal would be cut.
        most = min(ROWS, max(console.height - 8, 3)) if console.is_terminal else ROWS
        rows = spaced(list(self._seen), most)
        diverged = [layer for layer, values in self._seen.items() if self._diverged(values)]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        columns = [("layer", [Text(layer) for layer in rows])]
        for metric in metrics:
            cells, changed = _cells([self._seen[layer].get(metric, []) for layer in rows], changes)
            columns.append((metric.replace("_", "\n") + (" Δ" if changed else ""), cells))
        if metrics:
            bars = [Text(sparkline(self._seen[layer].get(metrics[0], []), width), "cyan") for layer in rows]
            columns.append((f"{metrics[0].replace('_', ' ')}\nso far", bars))
        if not set(diverged).isdisjoint(rows):
            columns.append(("", [Text("diverged" if layer in diverged else "", "bold red") for layer in rows]))
        for i, (header, _) in enumerate(columns):
            is_plain = 0 < i <= len(metrics) and not header.endswith("Δ")
            table.add_column(Text(header), no_wrap=True, justify="right" if is_plain else "left")
        for row in zip(*(cells for _, cells in columns), strict=True):
            table.add_row(*row)
        hidden = len(set(diverged).difference(rows))
        notes = []
        if len(rows) < len(self._seen):
            notes.append(f"{len(rows)} of {len(self._seen)} layers")
        if hidden:
            notes.append(f"{hidden} more diverged")
        if any(header.endswith("Δ") for header, _ in columns):
            notes.append(f"Δ since step {self._first}")
        return table, notes


def _cells(histories: Sequence[Sequence[float]], changes: bool) -> tuple[list[Text], bool]:
    """The last value of each, its change since the first beside it, and whether there is any."""
    last = [short(values[-1]) if values else "" for values in histories]
    since = [""] * len(last)
    if changes:
        # A change from zero is the value itself, and is not shown twice.
        differences = [values[-1] - values[0] if values and values[0] else math.nan for values in histories]
        since = [short(change, "+", 2) if math.isfinite(change) and change else "" for change in differences]
    left, right = max(map(len, last), default=0), max(map(len, since), default=0)
    cells = []
    for value, change in zip(last, since, strict=True):
        text = Text(value.rjust(left), "" if value[-1:].isdigit() else "red")
        cells.append(text.append(" " + change.ljust(right), "dim") if right else text)
    return cells, right > 0


def _names(argument: str, value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}={reprlib.repr(value)} takes names, such as {argument}=['...'].")
    return list(names)
