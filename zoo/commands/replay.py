"""``nngp-zoo replay``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from . import begin
from .app import Data, Model, command
from .manners import CommandError, Common, refusing, writable
from .track import check_folder, numbers, table


@command(
    "nngp-zoo replay mymodels.py:build checkpoints/ --data mydata.npz --run runs/replayed",
    knobs=True,
    again="the same command measures the checkpoints that are left",
)
def replay(
    common: Common,
    model: Model,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINTS...",
            help="Folders of an Orbax CheckpointManager, Orbax checkpoints, Flax msgpack files, .npz, .safetensors. "
            "The last number in a name is the step.",
        ),
    ],
    run: Annotated[Path, typer.Option(help="Folder for history and report. The same command finishes it.")],
    data: Data = "digits",
    probe: Annotated[int, typer.Option(help="Number of test examples on which kernels are measured.")] = 250,
    keep_kernels: Annotated[bool, typer.Option(help="Keep the kernels of all checkpoints.")] = False,
) -> None:
    """Measure the kernels of MODEL at saved checkpoints, as a tracker would have done in the training.

    Checkpoints that cannot be read, or are of another model, are named and left out, and the exit code is 1.
    """
    begin.check(model, data, probe=probe)
    from ..restore import find

    with refusing("CHECKPOINTS"):
        found = find(checkpoints)
    config = {"model": model, "data": data, "probe": probe, "keep_kernels": keep_kernels, **common.knobs}
    check_folder(run, config)
    writable("--run", run)
    history, left_out = _replayed(common, found, run, config)
    for path, why in left_out.items():
        common.warn(f"{path} is left out: {why}")
    if not len(history):
        raise CommandError("no checkpoint could be read.", code=1)
    from nngp_plugins import write_report

    write_report(run, title=f"{model} on {data}, from checkpoints")
    steps = f"{len(history)} checkpoints, steps {history.steps[0]} to {history.steps[-1]}"
    common.say(steps, table(history), f"report: {run / 'report.html'}")
    common.finish({"run": str(run), "steps": history.steps.tolist(), "left_out": left_out, "layers": numbers(history)})
    if left_out:
        raise typer.Exit(1)


def _replayed(
    common: Common, found: Mapping[int, Path], run: Path, config: Mapping[str, Any]
) -> tuple[Any, dict[str, str]]:
    """The history of all checkpoints, and why some are not in it."""
    import jax

    from nngp_plugins import KernelTracker, every

    from ..restore import restore

    net, dataset = begin.load(common, config["model"], config["data"])
    with refusing("--probe"):
        x, y, _ = dataset.probe(config["probe"])
    like = net.init(jax.random.key(0), dataset.train_x[:2])
    with refusing("--run", run):
        tracker = KernelTracker(
            net.f.layers(),
            x,
            targets=y,
            schedule=every(1),
            run=run,
            keep_kernels=config["keep_kernels"],
            config=config,
        )
    left_out: dict[str, str] = {}
    with tracker, common.progress() as progress:
        there = tracker.history.steps.tolist()
        for step, path in progress.track(found.items(), description=f"{net.name} from checkpoints"):
            if step in there:
                continue
            try:
                if there and step < there[-1]:
                    raise ValueError(f"the run is past step {step}; replay it into another folder.")
                params, state = restore(path, like)
            except ValueError as error:
                left_out[str(path)] = str(error)
                continue
            except ModuleNotFoundError as error:
                raise CommandError(f"CHECKPOINTS {error}") from None
            tracker(step, params, state=state)
    return tracker.history, left_out
