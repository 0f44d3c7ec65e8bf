"""Tables and numbers for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._text import printable

if TYPE_CHECKING:
    from rich.table import Table

_BARS = "▁▂▃▄▅▆▇█"


def number(value: float) -> str:
    """A number with three digits, such as 0.0123, 12.3 and 12,300."""
    if 999.5 <= abs(value) < 999_500:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")


def stacked_table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, alarm: str | None = None
) -> Table:
    """A table with a column for each of ``heads``; columns that do not fit on the console stand in a table below.

    Args:
        title: the text above the table.
        heads: the heads of the columns. Every table repeats the first column.
        rows: the cells of each row, one for each head.
        alarm: the head of a column whose texts are red, together with the first cell of their row; None for no column.
    """
    from rich import get_console
    from rich.table import Table
    from rich.text import Text

    title, heads = printable(title), [printable(head) for head in heads]
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [2 + max(map(len, [*head.split(), *(row[i] for row in rows)])) for i, head in enumerate(heads)]
    parts: list[list[int]] = [[]]
    for i in range(1, len(heads)):
        if parts[-1] and sum(1 + widths[j] for j in (0, *parts[-1], i)) > get_console().width:
            parts.append([])
        parts[-1].append(i)
    tables = [_one_table(heads, rows, [0, *part], alarm) for part in parts]
    table = tables[0]
    if len(tables) > 1:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(1, 0, 0, 0))
        for part in tables:
            table.add_row(part)
    table.title, table.title_justify, table.title_style = Text(f"{title}\n"), "left", "bold"
    table.min_width = min(len(title), get_console().width)
    return table


def _one_table(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int], alarm: str | None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for i in columns:
        # Each word stands on a line of its own, because rich would break lines within words.
        head = Text("\n".join(heads[i].split()))
        table.add_column(head, justify="right" if i else "left", vertical="bottom", no_wrap=True)
    place = heads.index(alarm) if alarm in heads else None
    for cells in rows:
        table.add_row(*(Text(cells[i], style=_style(i, cells, place)) for i in columns))
    return table


def _style(column: int, cells: Sequence[str], alarm: int | None) -> str:
    if alarm is not None and cells[alarm] and column in (0, alarm):
        return "bold red"
    return "bold" if column == 0 else ""


def short(value: float, sign: str = "-", digits: int = 3) -> str:
    """A number in few characters, such as in a live table.

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
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        # A difference of rounding errors is drawn as no difference.
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
