"""Tables, numbers and names as text, for people and for disks."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

# Bytes of a file name that common disks take.
_LONGEST_NAME = 255


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


def free_component(name: str, taken: set[str]) -> str:
    """A folder name made of ``[A-Za-z0-9._-]`` for a kernel or a layer; it is added to the names that are taken."""
    component = re.sub(r"[^A-Za-z0-9_-]+", ".", name).strip(".-") or "kernel"
    # TensorStore keeps the ending ".__lock" for itself.
    component = component.replace(".__lock", ".lock")
    if len(component) > _LONGEST_NAME - len(f"-{len(taken)}"):
        component = f"{component[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    while component.lower() in taken:
        # Two names may differ in other characters alone, or in upper and lower case, which some disks ignore.
        component = f"{component}-{len(taken)}"
    taken.add(component.lower())
    return component
