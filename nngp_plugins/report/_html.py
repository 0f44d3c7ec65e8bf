"""The report: one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._require import require
from ..callbacks import History
from ..callbacks._plot import TITLES
from ..callbacks._table import change
from ._figures import curves, heat_maps, layer_colors
from ._run import Run

_NAMED = 6  # layers that the banner of a run that diverged names


def write_report(run: str | Path, *, title: str | None = None) -> Path:
    """Writes ``report.html`` into a run folder: a single page that needs no network.

    It shows every metric of every layer over steps, the scalars logged beside (such as the loss), and each layer's
    kernel before and after training as heat maps ordered by class.

    Args:
        run: the folder that a :class:`KernelTracker` writes; the kernels after training are there once it is closed.
        title: heading of the page; by default the name of the folder.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: not a run folder, or one without a snapshot.
        ModuleNotFoundError: Plotly or Jinja2 is missing; names the extra to install.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> run = tempfile.mkdtemp()
        >>> with nngp.KernelTracker(lambda w, x: x @ w, jnp.eye(8), run=run) as tracker:
        ...     for step in range(3):
        ...         _ = tracker(step, jnp.eye(8) + step, loss=1 / (1 + step))
        >>> nngp.write_report(run).name
        'report.html'
    """
    jinja2 = require("jinja2", extra="report")
    plotly = require("plotly", extra="report")
    path = Path(run)
    loaded = Run.load(path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=title or path.resolve().name,
        about=loaded.about,
        diverged=_diverged(loaded.history),
        velocity="kernel_velocity" in loaded.history.metrics,
        facts=_facts(loaded),
        header=["Layer", *(TITLES.get(name, name) for name in loaded.history.metrics)],
        rows=_summary(loaded),
        curves=[(name, _div(figure, f"curve-{i}")) for i, (name, figure) in enumerate(curves(loaded))],
        heat_maps=[(name, _div(figure, f"kernel-{i}")) for i, (name, figure) in enumerate(heat_maps(loaded))],
        layers=len(loaded.layers),
        plotly_js=require("plotly.offline", extra="report").get_plotlyjs(),
        plotly_version=plotly.__version__,
    )
    report = path / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _facts(run: Run) -> list[tuple[str, str]]:
    """What stands under the heading: the numbers that a reader looks for first."""
    last = run.history.rows[-1]
    facts = [(name.replace("_", " "), f"{last[name]:.4g}") for name in run.history.scalars if name in last]
    sizes = [("steps", f"{run.history.steps[-1]:,}"), ("snapshots", str(len(run.history)))]
    return [*facts, *sizes, ("layers", str(len(run.layers))), ("probe examples", str(run.about["probe"]["n"]))]


def _summary(run: Run) -> list[tuple[str, str, list[str]]]:
    """Name and colour of each layer, and what became of each metric from the first to the last snapshot."""
    colors, metrics = layer_colors(run.layers), run.history.metrics
    return [(name, colors[name], [change(run.history, name, metric) for metric in metrics]) for name in run.layers]


def _diverged(history: History) -> tuple[int, str] | None:
    """Where the run diverged, and which kernels were the first that are not finite."""
    if (step := history.diverged) is None:
        return None
    layers = [layer for layer, first in history.diverged_layers.items() if first == step]
    if len(layers) == 1:
        return step, f"the kernel of {layers[0]} is not finite"
    named, more = layers[:_NAMED], len(layers) - _NAMED
    names = f"{', '.join(named)} and {more} more" if more > 0 else f"{', '.join(named[:-1])} and {named[-1]}"
    return step, f"the kernels of {names} are not finite"


def _div(figure: Any, name: str) -> str:
    config = {"displayModeBar": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
