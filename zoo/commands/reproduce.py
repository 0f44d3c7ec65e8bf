"""``nngp-zoo reproduce``."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import command
from .manners import Common, refusing


@command("nngp-zoo reproduce silent-alignment")
def reproduce(
    common: Common,
    name: Annotated[str | None, typer.Argument(help="A finding; none lists them.", metavar="[NAME]")] = None,
) -> None:
    """Measure again what was published, in less than five minutes. The exit code is 1 if something else comes out."""
    from ..findings import FINDINGS, reproduce
    from ..spec import check_name

    if name is None:
        from rich.table import Table

        table = Table("name", "claim", "source", box=None)
        for key, finding in FINDINGS.items():
            table.add_row(key, *finding)
        common.say(table)
        common.finish([{"name": key, **finding._asdict()} for key, finding in FINDINGS.items()])
        return
    with refusing("NAME"):
        check_name("finding", name, FINDINGS)
    common.say(f"{name}: {FINDINGS[name].claim}", FINDINGS[name].source)
    with refusing("NAME", name):
        holds, lines, numbers = reproduce(name)
    common.say(*lines, f"verdict: {'reproduced' if holds else 'not reproduced'}")
    common.finish({"name": name, **FINDINGS[name]._asdict(), "reproduced": holds, "numbers": numbers})
    if not holds:
        raise typer.Exit(1)
