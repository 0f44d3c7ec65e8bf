"""The ``nngp-zoo`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nngp_plugins import (
    History,
    KernelTracker,
    all_but_batch,
    empirical_nngp_fn,
    log_spaced,
    open_kernel,
    write_kernel,
    write_report,
)

from .registry import DATASETS, MODELS, get_dataset, get_model
from .train import train

app = typer.Typer(
    help="Track the NNGP kernels of the zoo's networks during training, or write whole kernels to the disk.",
    no_args_is_help=True,
    add_completion=False,
)
console = Console()

Model = Annotated[str, typer.Argument(help=f"One of {', '.join(MODELS)}.")]
Data = Annotated[str, typer.Option(help=f"One of {', '.join(DATASETS)}.")]


@app.command()
def track(
    model: Model,
    run: Annotated[Path, typer.Option(help="Folder for history, kernels and report. It must not hold a run yet.")],
    data: Data = "digits",
    steps: Annotated[int, typer.Option(min=1, help="Number of parameter updates.")] = 500,
    learning_rate: Annotated[float, typer.Option("--lr", help="Learning rate of Adam.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of examples in each update.")] = 128,
    probe: Annotated[int, typer.Option(help="Number of test examples on which kernels are measured.")] = 250,
    per_decade: Annotated[int, typer.Option(min=1, help="Number of snapshots per factor of ten in steps.")] = 10,
    seed: Annotated[int, typer.Option(help="Random seed of the parameters and of the order of examples.")] = 0,
) -> None:
    """Train MODEL with optax, track the kernel of every layer, and write a report."""
    config = {"model": model, "data": data, "steps": steps, "learning rate": learning_rate}
    config |= {"batch size": batch_size, "seed": seed}
    schedule = log_spaced(per_decade)
    try:
        dataset = get_dataset(data)
        f = get_model(model, dataset)
        probe_x, probe_y = dataset.probe(probe)
        tracker = KernelTracker(
            f.layers(), probe_x, targets=probe_y, schedule=schedule, run=run, resume=False, config=config
        )
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


@app.command()
def kernel(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder to write. The same command resumes an unfinished kernel.")],
    data: Data = "digits",
    examples: Annotated[int | None, typer.Option(min=1, help="Number of training examples; all by default.")] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Pattern of layers, such as 'conv*'. May be repeated.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of examples in a forward pass.")] = 128,
    tile_size: Annotated[int | None, typer.Option(min=1, help="Number of examples along each side of a tile.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the parameters.")] = 0,
) -> None:
    """Write the kernel of MODEL at initialisation, or those of its layers, as a Zarr group."""
    try:
        dataset = get_dataset(data)
        f = get_model(model, dataset)
        x = dataset.train_x[:examples]
        params, state = f.init(jax.random.key(seed), x[:1])
        kernel_fn = empirical_nngp_fn(f.layers(*layer) if layer else f, trace_axes=all_but_batch)
        store = write_kernel(kernel_fn, x, None, params, out, batch_size=batch_size, tile_size=tile_size, state=state)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    for name, array in store.arrays.items():
        console.print(f"{name}: {array.dtype} {array.shape}")
    console.print(f"kernel: {out}", soft_wrap=True)


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="Folder that `nngp-zoo kernel` wrote.")]) -> None:
    """Compare every tile of a stored kernel with its checksum."""
    try:
        store = open_kernel(path)
        store.verify()
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from None
    except ValueError as error:
        Console(stderr=True).print(str(error), soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(f"{path}: {store.fraction:.0%} written, and every written tile matches its checksum", soft_wrap=True)
    if not store.complete:
        console.print("unfinished: run the command that wrote it again to resume", soft_wrap=True)
        raise typer.Exit(1)


def _table(history: History, title: str) -> Table:
    """Returns a table of how far the kernel of each layer moved."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(("layer", "CKA to init", "relative change", "effective rank")):
        table.add_column(name, justify="right" if i else "left")
    cka, change, rank = (history.metric(name) for name in ("cka", "relative_change", "effective_rank"))
    for i, layer in enumerate(history.layers):
        table.add_row(layer, f"{cka[-1, i]:.3f}", f"{change[-1, i]:.3g}", f"{rank[0, i]:.2f} → {rank[-1, i]:.2f}")
    return table
