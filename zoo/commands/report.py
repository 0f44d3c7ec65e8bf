"""``nngp-zoo report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import command
from .manners import Common, refusing


@command("nngp-zoo report runs/cnn", again="the same command starts anew")
def report(
    common: Common,
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; several are laid over each other.", metavar="RUN...")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; report.html in RUN, or in what holds all of several.")
    ] = None,
) -> None:
    """Write the report of a run, or of several, also of one that goes on or was interrupted."""
    from nngp_plugins import History, write_report
    from nngp_plugins.report import findings

    with refusing("RUN", runs[0] if len(runs) == 1 else None):
        page = write_report(runs[0] if len(runs) == 1 else runs, path=out)
        found = {str(run): findings(History.load(run)) for run in runs}
    for name, sentences in found.items():
        common.say(*([name] if len(runs) > 1 else []), *sentences)
    common.say(f"report: {page}")
    common.finish({"report": str(page), "findings": found})
