"""``nngp-zoo list``."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import command
from .manners import Common, refusing


@command("nngp-zoo list --framework nnx")
def list_(
    common: Common,
    framework: Annotated[str | None, typer.Option(help="Only models of this framework.")] = None,
    family: Annotated[str | None, typer.Option(help="Only models of this architecture.")] = None,
) -> None:
    """List the models: those of the zoo, and those of installed packages (entry points `nngp_plugins.zoo`)."""
    from rich.table import Table

    from ..families import FAMILIES, FRAMEWORKS
    from ..registry import list_models

    with refusing("--framework", framework):
        list_models(framework=framework)
    with refusing("--family", family):
        names = list_models(framework=framework, family=family)
    table = Table("name", "takes", "trained for", "infinite-width limit", box=None)
    result = []
    for name in names:
        a, _, b = name.rpartition("/")
        own = FAMILIES[b] if a in FRAMEWORKS and b in FAMILIES else None
        about = (", ".join(own.takes), own.task, own.limit) if own else ("", "", "")
        table.add_row(name, *about)
        result.append(dict(zip(("name", "takes", "task", "limit"), (name, *about), strict=True)))
    common.say(table)
    common.finish(result)
