"""``nngp-zoo track``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..choices import CHOICES
from ..spec import check_name
from . import begin
from .app import Data, Model, Seed, command
from .manners import CommandError, Common, positive, refusing, writable

if TYPE_CHECKING:
    from rich.table import Table

    from nngp_plugins import History


@command(
    "nngp-zoo track linen/cnn --data digits --steps 500 --run runs/cnn",
    knobs=True,
    again="the run is saved, and the same command finishes it",
)
def track(
    common: Common,
    model: Model,
    run: Annotated[Path, typer.Option(help="Folder for history, kernels and report. The same command finishes it.")],
    data: Data = "digits",
    steps: Annotated[int, typer.Option(min=1, help="Number of parameter updates.")] = 500,
    learning_rate: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = 3e-3,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(CHOICES['optimizer'])}.")] = "adam",
    schedule: Annotated[str, typer.Option(help=f"One of {', '.join(CHOICES['schedule'])}.")] = "constant",
    batch_size: Annotated[int, typer.Option(min=1, help="Number of examples in each update.")] = 128,
    probe: Annotated[int, typer.Option(help="Number of test examples on which kernels are measured.")] = 250,
    per_decade: Annotated[int, typer.Option(min=1, help="Number of snapshots per factor of ten in steps.")] = 10,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs, in RUN/seed-0, RUN/seed-1, ... if many.")] = 1,
    keep_kernels: Annotated[bool, typer.Option(help="Keep the kernels of all snapshots.")] = False,
) -> None:
    """Train MODEL with optax, track the kernel of every layer, and write a report."""
    begin.check(model, data, probe=probe)
    positive("--lr", learning_rate)
    for option, value in (("optimizer", optimizer), ("schedule", schedule)):
        with refusing(f"--{option}"):
            check_name(option, value, CHOICES[option])
    config = {"model": model, "data": data, "steps": steps, "lr": learning_rate, "optimizer": optimizer}
    config |= {"schedule": schedule, "batch_size": batch_size, "probe": probe, "per_decade": per_decade}
    config |= {"keep_kernels": keep_kernels, **common.knobs}
    every = range(seed, seed + seeds)
    folders = {one: run if seeds == 1 else run / f"seed-{one}" for one in every}
    for one, folder in folders.items():
        check_folder(folder, config | {"seed": one})
    writable("--run", run)
    net, dataset = begin.load(common, model, data)
    from ..tasks import TASKS
    from ..tracking import run_tracked, training_of

    training, results, last = training_of(net, dataset, config), [], None
    for one, folder in folders.items():
        last, scores = run_tracked(common, training, folder, config | {"seed": one})
        title = f"{model} on {data}, {steps} steps, seed {one}: test {TASKS[net.task].name} {scores['score']:.1%}"
        common.say(title, table(last), *_findings(last), f"report: {folder / 'report.html'}")
        results.append({"run": str(folder), "seed": one, **scores, **_result(last)})
    common.finish({"runs": results})


def check_folder(folder: Path, config: dict[str, Any]) -> None:
    """Refuses a folder that holds a run of another command."""
    try:
        there = json.loads((folder / "run.json").read_text())["config"]
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"--run {folder}: it holds a damaged run.json: {error}") from None
    differing = [key for key in dict.fromkeys([*config, *there]) if there.get(key) != config.get(key)]
    if differing:
        key = differing[0]
        raise CommandError(
            f"--run {folder}: it already holds a run with {key.replace('_', '-')} {there.get(key)}, not "
            f"{config.get(key)}; name another folder, or give the same options to finish it."
        )


def _result(history: History) -> dict[str, Any]:
    return {"layers": numbers(history), "findings": _findings(history)}


def _findings(history: History) -> list[str]:
    from nngp_plugins.report import findings

    return findings(history)


def numbers(history: History) -> dict[str, dict[str, float]]:
    """Returns how far the kernel of each layer moved, for scripts."""
    names = ("cka", "relative_change", "effective_rank", "target_alignment")
    last = {name: history.metric(name)[-1] for name in names}
    return {layer: {name: float(last[name][i]) for name in names} for i, layer in enumerate(history.layers)}


def table(history: History) -> Table:
    """Returns a table of how far the kernel of each layer moved."""
    from rich.table import Table

    table = Table()
    for i, name in enumerate(("layer", "CKA to init", "relative change", "effective rank")):
        table.add_column(name, justify="right" if i else "left")
    cka, change, rank = (history.metric(name) for name in ("cka", "relative_change", "effective_rank"))
    for i, layer in enumerate(history.layers):
        table.add_row(layer, f"{cka[-1, i]:.3f}", f"{change[-1, i]:.3g}", f"{rank[0, i]:.2f} → {rank[-1, i]:.2f}")
    return table
