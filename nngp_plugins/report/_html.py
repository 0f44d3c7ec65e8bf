"""The report: one self-contained HTML page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._durable import replace_file
from .._require import require
from ..charts import depth_colors
from ..history import History, StoredRun, first_and_last, title_of
from ._figures import curves, heat_maps

_LAYERS_IN_BANNER = 6


def write_report(run: str | Path, *, title: str | None = None) -> Path:
    """Writes ``report.html`` into a run folder: a single page that needs no network.

    It shows every metric of every layer over steps, the scalars logged beside (such as the loss), and each layer's
    kernel before and after training as heat maps ordered by class.

    Args:
        run: the folder that a :class:`KernelTracker` writes.
        title: the heading of the page; None for the name of the folder.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: ``run`` is not a run folder, or holds no snapshot.
        ValueError: a file of the run folder is damaged; the message names it and says why.
        OSError: the disk fails; a report of before stays as it was.
        ModuleNotFoundError: Plotly or Jinja2 is missing; the message names the extra to install.

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
    stored = StoredRun.load(path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=title or path.resolve().name,
        about=stored.about,
        diverged=_diverged(stored.history),
        velocity="kernel_velocity" in stored.history.metrics,
        facts=_facts(stored),
        header=["Layer", *(title_of(name, stored.history.rows) for name in stored.history.metrics)],
        references=_references(stored),
        rows=_summary(stored),
        curves=[(name, _div(figure, f"curve-{i}")) for i, (name, figure) in enumerate(curves(stored))],
        heat_maps=[(name, _div(figure, f"kernel-{i}")) for i, (name, figure) in enumerate(heat_maps(stored))],
        layers=len(stored.layers),
        plotly_js=require("plotly.offline", extra="report").get_plotlyjs(),
        plotly_version=plotly.__version__,
    )
    report = path / "report.html"
    # Names from elsewhere may hold halves of characters, which have no bytes.
    replace_file(report, lambda file: file.write(page.encode(errors="backslashreplace")))
    return report


def _facts(run: StoredRun) -> list[tuple[str, str]]:
    """The numbers under the heading, which a reader looks for first."""
    last = run.history.rows[-1]
    facts = [(name.replace("_", " "), f"{last[name]:.4g}") for name in run.history.scalars if name in last]
    sizes = [("steps", f"{run.history.steps[-1]:,}"), ("snapshots", str(len(run.history)))]
    return [*facts, *sizes, ("layers", str(len(run.layers))), ("probe examples", str(run.about["probe"]["n"]))]


def _summary(run: StoredRun) -> list[tuple[str, str, list[str]]]:
    """The name and the colour of each layer, and each metric at the first and at the last snapshot."""
    rows, metrics = run.history.rows, run.history.metrics
    colors = depth_colors(len(run.layers))
    return [
        (name, color, [first_and_last(rows, name, metric) for metric in metrics])
        for name, color in zip(run.layers, colors, strict=True)
    ]


def _diverged(history: History) -> tuple[int, str] | None:
    """The step at which the run diverged, and a sentence that names the first kernels that are not finite."""
    if (step := history.diverged) is None:
        return None
    layers = [layer for layer, first in history.diverged_layers.items() if first == step]
    if len(layers) == 1:
        return step, f"the kernel of {layers[0]} is not finite"
    return step, f"the kernels of {_listed(layers)} are not finite"


def _references(run: StoredRun) -> list[str]:
    """Sentences that say what each layer is compared with; none if that is the first snapshot for all layers."""
    known, first = run.history.reference_steps, run.history.steps[0]
    layers_at: dict[int | None, list[str]] = {}
    for layer in run.layers:
        layers_at.setdefault(known.get(layer), []).append(layer)
    if list(layers_at) == [first]:
        return []
    since = run.about.get("reference")
    from_then = "" if since is None else f" from step {since:,} on"
    sentences = [f"The reference of a layer is its first kernel{from_then} that is neither zero nor constant."]
    for step, layers in layers_at.items():
        names = "all layers" if layers == run.layers else _listed(layers)
        which = "There is none yet" if step is None else f"It is the kernel of step {step:,}"
        sentences.append(f"{which} for {names}.")
    return sentences


def _listed(layers: Sequence[str]) -> str:
    """The names of layers as they stand in a sentence, as far as a reader reads them."""
    named, more = layers[:_LAYERS_IN_BANNER], len(layers) - _LAYERS_IN_BANNER
    *others, final = [*named, f"{more} more"] if more > 0 else named
    return f"{', '.join(others)} and {final}" if others else final


def _div(figure: Any, name: str) -> str:
    config = {"displayModeBar": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
