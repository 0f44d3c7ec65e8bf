"""Tables and numbers as text for people."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def human(number: float, unit: str) -> str:
    """Returns a number of bytes (``B``) or operations (``FLOP``) with a fitting prefix, such as ``1.5 MB``."""
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:,.3g} T{unit}"


def as_text(table: Table, width: int = 120) -> str:
    """Returns a table as the text that ``print`` shows."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue().rstrip()
