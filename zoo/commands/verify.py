"""``nngp-zoo verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import command
from .manners import CommandError, Common, refusing


@command("nngp-zoo verify k.zarr")
def verify(common: Common, path: Annotated[Path, typer.Argument(help="Folder that `nngp-zoo kernel` wrote.")]) -> None:
    """Compare every tile of a stored kernel with its checksum. The exit code is 1 if tiles are damaged or missing."""
    if not path.exists():
        raise CommandError(f"PATH {path}: it does not exist.")
    from nngp_plugins import open_kernel

    with refusing("PATH", path):
        store = open_kernel(path)
    try:
        store.verify()
    except ValueError as error:
        raise CommandError(str(error), code=1) from None
    common.say(f"{path}: {store.fraction:.0%} written, and every written tile matches its checksum")
    common.finish({"kernel": str(path), "fraction": store.fraction, "complete": store.complete})
    if not store.complete:
        raise CommandError("unfinished: run the command that wrote it again to resume", code=1)
