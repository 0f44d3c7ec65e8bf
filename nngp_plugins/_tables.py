"""Tables for people."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def human(number: float, unit: str) -> str:
    """A number of bytes (``B``) or operations (``FLOP``) with the prefix that suits it."""
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:,.3g} T{unit}"


def as_text(table: Table, width: int = 120) -> str:
    """A table as ``print`` shows it."""
    from rich.console import Console  # here, for it takes as long to import as all of this package

    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]
