"""``nngp-zoo show``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import begin
from .app import Data, Model, command
from .manners import Common


@command("nngp-zoo show haiku/resnet18 --width 32", knobs=True)
def show(
    common: Common,
    model: Model,
    data: Data = "digits",
    examples: Annotated[int, typer.Option(min=1, help="Number of examples of the kernels whose cost is shown.")] = 1000,
) -> None:
    """Show the layers of MODEL, their shapes, its parameters, and the cost of their kernels. Nothing is computed."""
    begin.check(model, data)
    net, _ = begin.load(common, model, data)
    params, state = net.shapes
    summary = net.f.summary(params, net.inputs(examples), state=state)
    knobs = ", ".join(f"{name}={value}" for name, value in net.knobs.items() if value is not None)
    common.say(
        f"{model} ({net.framework}) on {data}, {net.spec}",
        f"parameters: {net.parameters:,}",
        f"knobs: {knobs}",
        f"infinite-width limit: {net.limit or 'unknown'}",
        summary,
    )
    flops, sizes = summary.flops, summary.output_bytes
    layers = [
        {"name": name, "shape": y.shape, "dtype": str(y.dtype), "bytes": sizes[name], "kernel_flops": flops[name]}
        for name, y in summary.shapes.items()
    ]
    about = {"name": model, "framework": net.framework, "family": net.family, "task": net.task, "limit": net.limit}
    common.finish({**about, "knobs": net.knobs, "parameters": net.parameters, "examples": examples, "layers": layers})
