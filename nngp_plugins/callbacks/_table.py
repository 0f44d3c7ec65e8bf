"""Tables of histories, as wide as the console."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._history import DIVERGED, PREFIX

if TYPE_CHECKING:
    from rich.table import Table

    from ._history import History

# against the first snapshot or the one before: what they say at the first one is known
_RELATIVE = ("cka", "relative_change", "kernel_distance", "kernel_velocity")


def change(history: History, layer: str, metric: str) -> str:
    """First and last value of a metric; the last alone where the first says nothing."""
    values = [row[key] for row in history.rows if (key := f"{PREFIX}{layer}/{metric}") in row]
    if not values:
        return "–"
    silent = metric in _RELATIVE or math.isnan(values[0])
    return number(values[-1]) if silent else f"{number(values[0])} → {number(values[-1])}"


def last(history: History, key: str) -> str:
    """The last value under the full name ``key``."""
    values = [row[key] for row in history.rows if key in row]
    return number(values[-1]) if values else "–"


def number(value: float) -> str:
    """Three digits of it, such as 0.0123, 12.3 and 12,300."""
    if 999.5 <= abs(value) < 999_500:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")


def stacked(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table with a column for each of ``heads``; of more than fit on the console, the others stand below.

    Args:
        title: stands above.
        heads: of the first column, which every table repeats, and of the others. Under ``DIVERGED``, what a cell says
            is red, and so is the name of its row.
        rows: cells, one for each head.
    """
    from rich import get_console  # here, for it takes as long to import as all of this package
    from rich.table import Table
    from rich.text import Text

    widths = [2 + max(map(len, [*head.split(), *(row[i] for row in rows)])) for i, head in enumerate(heads)]
    parts: list[list[int]] = [[]]
    for i in range(1, len(heads)):
        if parts[-1] and sum(1 + widths[j] for j in (0, *parts[-1], i)) > get_console().width:
            parts.append([])
        parts[-1].append(i)
    tables = [_one(heads, rows, [0, *part]) for part in parts]
    table = tables[0]
    if len(tables) > 1:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(1, 0, 0, 0))
        for part in tables:
            table.add_row(part)
    table.title, table.title_justify, table.title_style = Text(f"{title}\n"), "left", "bold"
    table.min_width = min(len(title), get_console().width)
    return table


def _one(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for i in columns:
        # a word a line: what is left to rich, it breaks within words
        head = Text("\n".join(heads[i].split()))
        table.add_column(head, justify="right" if i else "left", vertical="bottom", no_wrap=True)
    alarm = heads.index(DIVERGED) if DIVERGED in heads else 0
    for cells in rows:
        red = (0, alarm) if alarm and cells[alarm] else ()
        styles = ["bold red" if i in red else "bold" if i == 0 else "" for i in columns]
        table.add_row(*(Text(cells[i], style=style) for i, style in zip(columns, styles, strict=True)))
    return table
