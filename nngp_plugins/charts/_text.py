"""Names from models and run folders as text: no library that shows them may take them for markup."""

from __future__ import annotations

# Plotly knows some tags of HTML, entities, and formulas between dollars; in templates it also knows %{names}.
_PLOTLY = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"})


def printable(text: str) -> str:
    r"""The text with control characters as Python writes them, so that a terminal shows them and does not obey.

    Example:
        >>> printable("block\x1b[2J/ü")
        'block\\x1b[2J/ü'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def for_plotly(text: str) -> str:
    """The text as Plotly takes it."""
    return printable(text).translate(_PLOTLY)


def for_template(text: str) -> str:
    """The text as Plotly takes it in a template."""
    return for_plotly(text).replace("{", "&#123;")


def for_matplotlib(text: str) -> str:
    """The text as matplotlib takes it, which knows formulas between dollars."""
    return printable(text).replace("$", r"\$")
