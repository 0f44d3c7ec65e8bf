"""Objects as notebooks show them: tables of the terminal as HTML, and a few facts beside a picture."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

_PRE = (
    '<pre style="font-family:ui-monospace,Menlo,Consolas,monospace;line-height:1.25;white-space:pre;overflow-x:auto">'
    "{code}</pre>"
)


def as_html(what: RenderableType) -> str:
    """A table, or anything that ``rich`` shows in a terminal, as HTML; all names in it are text."""
    from rich import get_console
    from rich.console import Console

    console = Console(file=io.StringIO(), record=True, width=max(get_console().width, 80), force_jupyter=False)
    console.print(what)
    return console.export_html(inline_styles=True, code_format=_PRE)


def facts_html(title: str, facts: Mapping[str, object], picture: str | None = None) -> str:
    """A heading, a line for each fact, and a picture, as HTML.

    Args:
        title: the heading.
        facts: values by name; all are shown as text.
        picture: the URL of a picture, as :func:`picture` makes it; None for none.

    Example:
        >>> facts_html("Gram", {"N": 3, "of": "<b>"})
        '<div><strong>Gram</strong><div>N: 3</div><div>of: &lt;b&gt;</div></div>'
    """
    lines = "".join(f"<div>{html.escape(name)}: {html.escape(str(value))}</div>" for name, value in facts.items())
    shown = f"<strong>{html.escape(title)}</strong>{lines}"
    if picture is None:
        return f"<div>{shown}</div>"
    style, about = "image-rendering:pixelated", f"cosines between the examples of a {html.escape(title)}"
    image = f'<img src="{picture}" width="128" height="128" style="{style}" alt="{about}">'
    return f'<div style="display:flex;gap:16px"><div>{image}</div><div>{shown}</div></div>'


def name_of(function: object) -> str:
    """What to call a function, or any object, in a short text.

    Example:
        >>> name_of(name_of), name_of(3)
        ('name_of', '3')
    """
    return getattr(function, "__qualname__", None) or repr(function)
