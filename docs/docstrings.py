"""How docstrings become pages: a griffe extension, which turns Sphinx's roles into links and doctests into code."""

import re
from pathlib import Path

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
REFERENCE = "".join(page.read_text() for page in sorted(Path(__file__).parent.glob("reference/*.md")))
ENTRIES = {entry.rpartition(".")[2]: entry for entry in re.findall(r"^::: (.*)$", REFERENCE, flags=re.MULTILINE)}


def link(role: re.Match[str]) -> str:
    """A link to the entry of the reference that a role names; just code if there is none."""
    name = role[1]
    entry = ENTRIES.get(name.rpartition(".")[2])
    return f"[`{name}`][{entry}]" if entry and entry.endswith(name) else f"`{name}`"


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Gives ``:func:`name``` as a link, and ``Example:`` as the section of doctests that griffe knows."""
        if obj.docstring:
            text = ROLE.sub(link, obj.docstring.value)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
