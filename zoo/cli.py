"""The ``nngp-zoo`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nngp_plugins import History, KernelTracker, log_spaced, write_report

from .registry import DATASETS, MODELS, get_dataset, get_model
from .train import train

app = typer.Typer(
    help="Train networks of the zoo and watch their NNGP kernels move.", no_args_is_help=True, add_completion=False
)
console = Console()


@app.callback()
def _app() -> None:
    """Keeps ``track`` a subcommand."""


@app.command()
def track(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(MODELS)}.")],
    run: Annotated[Path, typer.Option(help="Folder to write: history, kernels, report. Must not hold a run yet.")],
    data: Annotated[str, typer.Option(help=f"One of {', '.join(DATASETS)}.")] = "digits",
    steps: Annotated[int, typer.Option(min=1, help="Updates of the parameters.")] = 500,
    learning_rate: Annotated[float, typer.Option("--lr", help="Learning rate of Adam.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in an update.")] = 128,
    probe: Annotated[int, typer.Option(help="Test examples on which kernels are measured.")] = 250,
    per_decade: Annotated[int, typer.Option(min=1, help="Snapshots for each factor of ten in steps.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the parameters and of the order of examples.")] = 0,
) -> None:
    """Train MODEL with optax, track the kernel of every layer, and write a report."""
    config = {"model": model, "data": data, "steps": steps, "learning rate": learning_rate}
    config |= {"batch size": batch_size, "seed": seed}
    schedule = log_spaced(per_decade)
    try:
        dataset = get_dataset(data)
        f = get_model(model, dataset)
        probe_x, probe_y = dataset.probe(probe)
        tracker = KernelTracker(f.layers(), probe_x, targets=probe_y, schedule=schedule, run=run, config=config)
    except (ValueError, FileExistsError) as error:
        raise typer.BadParameter(str(error)) from None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"training {model} on {data}", total=steps)
        accuracy = train(
            f,
            dataset,
            tracker,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            on_step=lambda: progress.advance(task),
        )
    console.print(_table(tracker.history, f"{model} on {data}, {steps} steps: test accuracy {accuracy:.1%}"))
    console.print(f"report: {write_report(run, title=f'{model} on {data}')}", soft_wrap=True)


def _table(history: History, title: str) -> Table:
    """What became of each layer."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(("layer", "CKA to init", "relative change", "effective rank")):
        table.add_column(name, justify="right" if i else "left")
    cka, change, rank = (history.metric(name) for name in ("cka", "relative_change", "effective_rank"))
    for i, layer in enumerate(history.layers):
        table.add_row(layer, f"{cka[-1, i]:.3f}", f"{change[-1, i]:.3g}", f"{rank[0, i]:.2f} → {rank[-1, i]:.2f}")
    return table
