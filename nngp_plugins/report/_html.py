"""The report: one self-contained HTML page of a run, or of several."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .._durable import replace_file
from .._require import require
from ..history import StoredRun, compare
from ._data import page_data
from ._findings import findings
from ._run import listed, quoted


def write_report(
    run: str | Path | Iterable[str | Path] | Mapping[Any, str | Path],
    *,
    title: str | None = None,
    path: str | Path | None = None,
) -> Path:
    """Writes ``report.html``: a single page of a run, or of several, that needs no network.

    It begins with the :func:`report.findings` in words. A page of one run has curves and maps of every metric, kernels
    ordered by class with a slider for the step, spectra, and CKA between layers and, with ``keep_kernels=True``,
    between steps. A page of several runs lays them over each other, with bands over those that differ by ``seed``
    alone, and shows the configuration that differs. Each table can be saved as CSV. A run may go on, or have been
    killed.

    Args:
        run: the folder that a :class:`KernelTracker` writes; or several, as :func:`compare` takes them.
        title: the heading of the page; None for the name of the folder.
        path: the file to write; None for ``report.html`` in the run folder, or in the folder that holds all of several.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: ``run`` is not a run folder, or holds no snapshot.
        ValueError: a file of the run folder is damaged; the message names it and says why. There is no run, or one is
            given twice.
        OSError: the disk fails; a report of before stays as it was.
        ModuleNotFoundError: Jinja2 is missing; the message names the extra to install.

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
    if isinstance(run, str | Path):
        runs, home = {Path(run).resolve().name: StoredRun.load(run)}, Path(run)
    else:
        # The names are those of compare(), and every folder is read as a run folder, too.
        named = compare(run).runs
        folders = {name: history.run for name, history in named.items() if history.run is not None}
        runs = {name: StoredRun.load(folder) for name, folder in folders.items()}
        home = Path(os.path.commonpath([folder.parent for folder in folders.values()]))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # The order of metrics and of scalars is that of the tracker.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    environment.filters["code"] = lambda text: jinja2.utils.markupsafe.Markup(
        re.sub("`([^`]*)`", r"<code>\1</code>", str(jinja2.utils.markupsafe.escape(text)))
    )
    page = environment.get_template("page.html.j2").render(
        title=title or (next(iter(runs)) if len(runs) == 1 else home.resolve().name),
        runs=[
            {"name": name, "findings": findings(stored.history), "about": stored.about, "facts": _facts(stored)}
            for name, stored in runs.items()
        ],
        compared=findings(compare({name: stored.history for name, stored in runs.items()})) if len(runs) > 1 else [],
        references=_references(next(iter(runs.values()))) if len(runs) == 1 else [],
        data=page_data(runs),
    )
    report = home / "report.html" if path is None else Path(path)
    # Names from elsewhere may hold halves of characters, which have no bytes.
    replace_file(report, lambda file: file.write(page.encode(errors="backslashreplace")))
    return report


def _facts(run: StoredRun) -> list[tuple[str, str]]:
    """The numbers under the heading, which a reader looks for first."""
    last = run.history.rows[-1]
    facts = [(name.replace("_", " "), f"{last[name]:.4g}") for name in run.history.scalars if name in last]
    sizes = [("steps", f"{run.history.steps[-1]:,}"), ("snapshots", str(len(run.history)))]
    return [*facts, *sizes, ("layers", str(len(run.layers))), ("probe examples", str(run.about["probe"]["n"]))]


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
        names = "all layers" if layers == run.layers else listed([quoted(layer) for layer in layers], 6)
        which = "There is none yet" if step is None else f"It is the kernel of step {step:,}"
        sentences.append(f"{which} for {names}.")
    return sentences
