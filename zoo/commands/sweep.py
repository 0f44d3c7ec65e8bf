"""``nngp-zoo sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..choices import CHOICES
from ..spec import check_name
from . import begin
from .app import Data, Model, command
from .manners import CommandError, Common, listed, positive, refusing, writable

if TYPE_CHECKING:
    from ..sweeps import Cell, Curve

SEVERAL = ("width", "depth", "parametrisation")


@command(
    "nngp-zoo sweep linen/mlp --width 32,64,128 --lr 1e-3,3e-3,1e-2 --seed 0,1 --steps 100 --out sweep",
    knobs=True,
    several=SEVERAL,
    again="every run is saved, and the same command finishes what is left",
)
def sweep(
    common: Common,
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the runs, sweep.csv, sweep.html and report.html.")],
    data: Data = "digits",
    learning_rates: Annotated[str, typer.Option("--lr", help="Learning rates, separated by commas.")] = "3e-3",
    optimizers: Annotated[str, typer.Option("--optimizer", help=f"Of {', '.join(CHOICES['optimizer'])}.")] = "adam",
    seeds: Annotated[str, typer.Option("--seed", help="Random seeds, separated by commas.")] = "0",
    steps: Annotated[int, typer.Option(min=1, help="Number of parameter updates.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of examples in each update.")] = 128,
    probe: Annotated[int, typer.Option(help="Number of test examples on which kernels are measured.")] = 250,
    jobs: Annotated[int, typer.Option(min=1, help="Number of trainings at the same time, each in a process.")] = 2,
) -> None:
    """Train MODEL for every combination of options that have several values, and see what moves its kernels.

    Every combination is a run as `track` writes it. The drift is the relative change of the kernel since
    initialisation, the median over layers.
    """
    begin.check(model, data, probe=probe)
    axes = {name: common.knobs.pop(name) for name in SEVERAL if name in common.knobs}
    axes |= _axes(learning_rates, optimizers, seeds)
    writable("--out", out)
    _check_models(common, model, data, axes)
    from .. import sweeps

    same = ["--data", data, "--steps", steps, "--batch-size", batch_size, "--probe", probe]
    same += [word for knob, value in common.knobs.items() for word in ("--set", f"{knob}={value}")]
    cells = [_cell(model, same, values, out) for values in sweeps.grid(axes)]
    with refusing("--out", out):
        ended = sum(cell.code() is not None for cell in cells)
    with common.progress() as progress:
        task = progress.add_task(model, total=len(cells), completed=ended)
        try:
            sweeps.run_cells(cells, jobs, lambda: progress.advance(task))
        except RuntimeError as error:
            raise CommandError(f"--out {out}: {error}") from None
    rows = [sweeps.result(cell) for cell in cells]
    curves = sweeps.curves(rows, axes)
    title = f"{model} on {data}, {steps} steps"
    with refusing("--out", out):
        page = sweeps.report(cells, title, out / "report.html")
    _finish(common, title, rows, axes, curves, out)
    common.say(*([] if page is None else [f"report: {page}"]))
    common.finish({"cells": rows, "slopes": [curve.numbers for curve in curves]})


def _axes(learning_rates: str, optimizers: str, seeds: str) -> dict[str, tuple[Any, ...]]:
    axes = {
        "optimizer": listed("--optimizer", optimizers, str),
        "lr": listed("--lr", learning_rates, float),
        "seed": listed("--seed", seeds, int),
    }
    for rate in axes["lr"]:
        positive("--lr", rate)
    with refusing("--optimizer"):
        for name in axes["optimizer"]:
            check_name("optimizer", name, CHOICES["optimizer"])
    if min(axes["seed"]) < 0:
        raise CommandError(f"--seed {seeds}: seeds must not be negative.")
    return axes


def _check_models(common: Common, model: str, data: str, axes: dict[str, tuple[Any, ...]]) -> None:
    """Refuses values of knobs that the model does not have, before anything is trained."""
    from .. import data as datasets, registry
    from ..sweeps import grid

    with refusing("--data"):
        dataset = datasets.load(data)
    with refusing("MODEL"):
        for knobs in grid({name: axes[name] for name in SEVERAL if name in axes}):
            registry.get(model, dataset.spec, **common.knobs, **knobs)


def _cell(model: str, same: list[Any], values: dict[str, Any], out: Path) -> Cell:
    from ..sweeps import Cell

    run = out / "_".join(f"{name}-{value}" for name, value in values.items())
    own = [
        word
        for name, value in values.items()
        for word in (("--set", f"{name}={value}") if name in SEVERAL else (f"--{name}", value))
    ]
    return Cell(values, run, [str(word) for word in ("track", model, *same, *own, "--run", run, "--quiet")])


def _finish(
    common: Common, title: str, rows: list[dict[str, Any]], axes: dict[str, Any], curves: list[Curve], out: Path
) -> None:
    from rich.table import Table

    from .. import written

    keys = dict.fromkeys(key for row in rows for key in row)
    numbers = [key for key in keys if key not in (*axes, "run", "diverged") and not key.startswith("drift/")]
    table = Table(*axes, *(key.replace("_", " ") for key in numbers), title=title)
    for row in rows:
        cells = ["diverged"] if row["diverged"] else [f"{row[key]:.4g}" for key in numbers]
        table.add_row(*(str(row[name]) for name in axes), *cells, style="red" if row["diverged"] else None)
    common.say(table)
    if curves:
        table = Table("drift against", "at", "log-log slope")
        for curve in curves:
            table.add_row(curve.axis, curve.name, str(curve.slope))
        common.say(table)
    with refusing("--out", out):
        written.write_csv(out / "sweep.csv", rows)
        if curves:
            written.save(written.log_log(f"drift of {title}", "", _panels(curves)), out / "sweep.html")
            common.say(f"picture: {out / 'sweep.html'}")
    common.say(f"table: {out / 'sweep.csv'}")


def _panels(curves: list[Curve]) -> dict[str, Any]:
    panels: dict[str, Any] = {}
    for curve in curves:
        seeds = curve.drift.shape[1]
        errors = curve.drift.std(axis=1, ddof=min(1, seeds - 1)) / seeds**0.5
        name = f"{curve.name}: slope {curve.slope}"
        panels.setdefault(f"against {curve.axis}", {})[name] = curve.x, curve.drift.mean(axis=1), errors
    return panels
