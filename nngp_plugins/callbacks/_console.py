"""A live table of a tracker's numbers in the terminal."""

from __future__ import annotations

import math
import re
import reprlib
import weakref
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import rich
from rich import box
from rich.console import Console as RichConsole
from rich.console import Group
from rich.errors import LiveError
from rich.live import Live
from rich.table import Table
from rich.text import Text

METRICS = ("cka", "relative_change", "effective_rank", "scale")
ROWS = 20
_NAME = re.compile(r"(.*?/)?kernel/(.+)/([^/]+)")
_BARS = "▁▂▃▄▅▆▇█"


class Console:
    """Shows a table with a row for each layer: metrics, their change since the first snapshot, and a sparkline.

    In a terminal it is live. Elsewhere, as in a log file, each snapshot is a line with the lowest and the highest value
    of the layers, and the table comes once, at the end. Of more than 20 layers it shows 20, evenly spaced.

    Args:
        layers: patterns of the layers to show, such as ``["block*"]``; None shows all.
        metrics: names of the metrics to show, those of them that are measured; the sparkline is of the first.
        console: where to print, a ``rich.console.Console``; None is the one that rich prints to, and so do its progress
            bars, unless they were given one: pass that, ``progress.console``. Beside a bar of tqdm, which knows nothing
            of a live table, pass ``rich.console.Console(force_terminal=False)``, for lines.

    Raises:
        TypeError: an argument is something else.

    Example:
        >>> console = Console(metrics=["cka"])
        >>> for step, cka in enumerate([1.0, 0.9, 0.4]):
        ...     console.write_scalars(step, {"loss": 2.0, "kernel/dense/cka": cka})
        step 0  loss 2.00  cka 1.00
        step 1  loss 2.00  cka 0.900
        step 2  loss 2.00  cka 0.400
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
        self._live: Live | None = None
        self._stop: Any = None
        self._shown = True
        self._first: int | None = None
        self._step, self._scalars = 0, dict[str, float]()
        self._seen: dict[str, dict[str, list[float]]] = {}
        """For each layer and metric, the values so far."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the numbers of a step.

        Raises:
            ValueError: none of them is of the layers to show.
        """
        self._step, self._scalars, kernels = step, {}, []
        self._first = step if self._first is None else self._first
        for name, value in scalars.items():
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
        if not (console.is_terminal and self._show_live(console)):
            console.print(self._line(), soft_wrap=True)

    def close(self) -> None:
        """Leaves the last table."""
        if self._live is not None:
            self._stop()
            self._live = None
        elif not self._shown and self._console is not None:
            self._console.print(self._view())
        self._shown = True

    def _show_live(self, console: RichConsole) -> bool:
        if self._live is None:
            live = Live(console=console, auto_refresh=False)
            try:
                live.start()
            except LiveError:  # rich before 14.1 has only one at a time, and that may be a progress bar
                return False
            # it hid the cursor, also of a program that ends before close()
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
        """The snapshot in a line."""
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
        """Whether a number is not finite, and was before."""
        series = [values[metric] for metric in self._shown_metrics() if metric in values]
        return any(not math.isfinite(s[-1]) and any(map(math.isfinite, s)) for s in series)

    def _view(self) -> Group:
        """The title, the fullest table that the console has room for, and what is to be said of it."""
        console, metrics = self._console or rich.get_console(), self._shown_metrics()
        full = [(metrics, True, width) for width in (24, 16, 8)] + [(metrics, False, width) for width in (16, 8)]
        for choice in [*full, *((metrics[:n], False, 8) for n in range(len(metrics) - 1, 0, -1))]:
            table, notes = self._table(console, *choice)
            if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
                break
        return Group(Text(self._title(), "bold"), table, *[Text(", ".join(notes), "dim italic")] * bool(notes))

    def _table(
        self, console: RichConsole, metrics: Sequence[str], changes: bool, width: int
    ) -> tuple[Table, list[str]]:
        # a live table that is higher than the terminal would be cut
        rows = spaced(list(self._seen), min(ROWS, max(console.height - 8, 3)) if console.is_terminal else ROWS)
        diverged = [layer for layer, values in self._seen.items() if self._diverged(values)]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        columns = [("layer", [Text(layer) for layer in rows])]
        for metric in metrics:
            cells, changed = _cells([self._seen[layer].get(metric, []) for layer in rows], changes)
            columns.append((metric.replace("_", "\n") + " Δ" * changed, cells))
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
        notes = [
            f"{len(rows)} of {len(self._seen)} layers" * (len(rows) < len(self._seen)),
            f"{hidden} more diverged" * (hidden > 0),
            f"Δ since step {self._first}" * any(header.endswith("Δ") for header, _ in columns),
        ]
        return table, [note for note in notes if note]


def _cells(histories: Sequence[Sequence[float]], changes: bool) -> tuple[list[Text], bool]:
    """The last value of each, its change since the first beside it, and whether there is any."""
    last = [short(values[-1]) if values else "" for values in histories]
    since = [""] * len(last)
    if changes:  # from zero, it is the value
        differences = [values[-1] - values[0] if values and values[0] else math.nan for values in histories]
        since = [short(change, "+", 2) if math.isfinite(change) and change else "" for change in differences]
    left, right = max(map(len, last), default=0), max(map(len, since), default=0)
    cells = []
    for value, change in zip(last, since, strict=True):
        text = Text(value.rjust(left), "" if value[-1:].isdigit() else "red")
        cells.append(text.append(" " + change.ljust(right), "dim") if right else text)
    return cells, right > 0


def short(value: float, sign: str = "-", digits: int = 3) -> str:
    """A number in few characters.

    Example:
        >>> short(0.5), short(123.0), short(1234.5), short(0.5, "+", 2), short(3.2e-7)
        ('0.500', '123', '1234', '+0.50', '3.20e-7')
    """
    text = f"{value:{sign}.0f}" if 10**digits <= abs(value) < 1e5 else f"{value:{sign}#.{digits}g}".rstrip(".")
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), text)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The values as bars from the lowest to the highest; a gap is one that is not finite.

    Args:
        values: the values, any number of them.
        width: the most bars to draw; of more values, so many are drawn, evenly spaced, the first and the last included.

    Example:
        >>> sparkline([0, 1, 2, 3, float("nan"), 7])
        '▁▂▃▄ █'
    """
    values = spaced(values, width)
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # rounding is no history
        low, high = low - 1, low + 1
    return "".join(_BARS[min(int(8 * (v - low) / (high - low)), 7)] if math.isfinite(v) else " " for v in values)


def spaced(items: Sequence[Any], n: int) -> list[Any]:
    """The items, or ``n`` of them from the first to the last, evenly spaced.

    Example:
        >>> spaced("abcdefg", 3)
        ['a', 'd', 'g']
    """
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(n - 1, 1))] for i in range(n)]


def _names(argument: str, value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}={reprlib.repr(value)} takes names, such as {argument}=['...'].")
    return list(names)
