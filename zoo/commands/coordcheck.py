"""``nngp-zoo coordcheck``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..choices import CHOICES
from ..spec import check_name
from . import begin
from .app import Data, Model, command
from .manners import CommandError, Common, positive, refusing, writable

if TYPE_CHECKING:
    from ..coordinates import Layer


@command("nngp-zoo coordcheck linen/mlp --parametrisation mup --width 64,256,1024", knobs=True, several=["width"])
def coordcheck(
    common: Common,
    model: Model,
    data: Data = "digits",
    seeds: Annotated[int, typer.Option(min=2, help="Number of networks of each width.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Number of parameter updates.")] = 4,
    learning_rate: Annotated[float, typer.Option("--lr", help="Learning rate.")] = 3e-3,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(CHOICES['optimizer'])}.")] = "adam",
    batch_size: Annotated[int, typer.Option(min=1, help="Number of examples in each update.")] = 128,
    probe: Annotated[int, typer.Option(help="Number of test examples on which kernels are measured.")] = 250,
    out: Annotated[Path | None, typer.Option(help="The .html file of a picture to write.")] = None,
) -> None:
    """Check that the layers of MODEL keep their size, and keep learning, as it grows wider.

    Networks of several widths are trained for a few steps; by default these are 1/4, 1/2, 1, 2 and 4 times that of the
    model. The exit code is 1 if a layer of a wide network grows, shrinks or stops learning.
    """
    begin.check(model, data, probe=probe)
    positive("--lr", learning_rate)
    with refusing("--optimizer"):
        check_name("optimizer", optimizer, CHOICES["optimizer"])
    if len(common.knobs.get("width", (1, 2))) < 2:
        raise CommandError(f"--width {common.knobs['width'][0]}: give several widths, such as --width 64,256,1024.")
    if out is not None:
        writable("--out", out, suffix=".html")
    how: dict[str, Any] = {"seeds": seeds, "steps": steps, "learning_rate": learning_rate, "optimizer": optimizer}
    widths, layers = _measured(common, model, data, probe, **how, batch_size=batch_size)
    wrong = [layer.name for layer in layers if not layer.good]
    common.say(f"{model} on {data}, widths {', '.join(map(str, widths))}, {seeds} seeds, {steps} steps", _table(layers))
    if out is not None:
        _draw(f"{model} on {data} after {steps} steps of {optimizer}", widths, layers, out)
        common.say(f"picture: {out}")
    result = {"model": model, "data": data, "knobs": common.knobs, "widths": widths, **how}
    common.finish({**result, "correct": not wrong, "layers": [_numbers(layer) for layer in layers]})
    if wrong:
        raise CommandError(f"the parametrisation is not correct: see {', '.join(wrong)}", code=1)


def _measured(
    common: Common, name: str, data: str, probe: int, *, seeds: int, **how: Any
) -> tuple[tuple[int, ...], list[Layer]]:
    from .. import registry
    from ..coordinates import coordinates

    widths = common.knobs.pop("width", ())
    net, dataset = begin.load(common, name, data)
    if "width" not in net.knobs:
        raise CommandError(f"MODEL: {name} has no knob 'width'.")
    if not widths:
        widths = tuple(sorted({max(1, int(net.knobs["width"] * factor)) for factor in (0.25, 0.5, 1, 2, 4)}))
    with refusing("--width"):
        models = {width: registry.get(name, dataset.spec, width=width, **common.knobs) for width in widths}
    with refusing("--probe"):
        x, *_ = dataset.probe(probe)
    with common.progress() as progress, refusing("MODEL"):
        task = progress.add_task(name, total=len(widths) * seeds)
        try:
            layers = coordinates(models, dataset, x, seeds=seeds, **how, on_network=lambda: progress.advance(task))
        except FloatingPointError as error:
            raise CommandError(f"diverged: {error}; try a smaller --lr.", code=3) from None
    return widths, layers


def _table(layers: list[Layer]) -> Any:
    from rich.table import Table

    from ..coordinates import QUANTITIES

    table = Table("layer", *(f"slope of {name}" for name in QUANTITIES.values()), "verdict")
    for layer in layers:
        table.add_row(layer.name, *map(str, layer.slopes.values()), layer.verdict, style=None if layer.good else "red")
    return table


def _numbers(layer: Layer) -> dict[str, Any]:
    values = {key: [*map(list, y)] for key, y in layer.values.items()}
    slopes = {key: vars(slope) for key, slope in layer.slopes.items()}
    about = {"name": layer.name, "output": layer.output, "verdict": layer.verdict, "correct": layer.good}
    return {**about, "slopes": slopes, "values": values}


def _draw(title: str, widths: tuple[int, ...], layers: list[Layer], path: Path) -> None:
    from .. import written
    from ..coordinates import QUANTITIES

    def curve(y: np.ndarray) -> written.Curve:
        return widths, y.mean(axis=1), y.std(axis=1, ddof=1) / y.shape[1] ** 0.5

    panels = {text: {layer.name: curve(layer.values[key]) for layer in layers} for key, text in QUANTITIES.items()}
    with refusing("--out", path):
        written.save(written.log_log(title, "width", panels), path)
