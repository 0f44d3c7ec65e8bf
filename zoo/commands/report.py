"""``nngp-zoo report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import command
from .manners import CommandError, Common, refusing


@command("nngp-zoo report runs/narrow runs/wide")
def report(
    common: Common,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, of any KernelTracker.")],
) -> None:
    """Write the page report.html into each RUN, also while it trains."""
    for run in runs:
        if not (run / "metrics.jsonl").is_file():
            raise CommandError(f"RUN {run}: it is no run folder.")
    from nngp_plugins import write_report

    pages = []
    for run in runs:
        with refusing("RUN", run):
            pages.append(str(write_report(run)))
    common.say(*(f"report: {page}" for page in pages))
    common.finish({"reports": pages})
