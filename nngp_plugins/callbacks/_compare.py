"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._require import require
from ._history import DIVERGED, PREFIX, History

if TYPE_CHECKING:
    from rich.table import Table

Run = str | Path | History


def compare(runs: Mapping[Any, Run] | Iterable[Run]) -> Comparison:
    """Several runs side by side: as curves, as a table, or as numbers.

    Args:
        runs: run folders or histories. Keys of a mapping name them; else folders do, with as many of the folders that
            they are in as tell them apart, and a history in memory is ``run i``.

    Raises:
        TypeError: ``runs`` is a single run, or one of them is something else.
        ValueError: there is no run, or a run is there twice.
        FileNotFoundError: a folder is not a run folder.

    Example:
        >>> import jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> probe = jax.random.normal(jax.random.key(0), (16, 3))
        >>> def train(rate):
        ...     with nngp.KernelTracker(lambda w, x: jnp.tanh(x @ w), probe, schedule=nngp.every(10)) as tracker:
        ...         for step in range(21):
        ...             _ = tracker(step, jnp.eye(3).at[0].add(rate * step))
        ...     return tracker.history
        >>> runs = nngp.compare({"slow": train(0.01), "fast": train(0.1)})
        >>> runs.to_pandas()["cka"].unstack("run").shape  # steps and layers, runs
        (3, 2)
        >>> figure = runs.plot("effective_rank")
    """
    if isinstance(runs, Run) or not isinstance(runs, Iterable):
        raise TypeError(f"runs={runs!r} is not several runs; pass a list of run folders, or a mapping with names.")
    named = isinstance(runs, Mapping)
    histories = [_history(run) for run in (runs.values() if isinstance(runs, Mapping) else runs)]
    names = [str(name) for name in runs] if named else _names(histories)
    if not histories:
        raise ValueError("runs is empty; pass at least one run folder or history.")
    if len(set(names)) < len(names):
        raise ValueError(f"runs has two of one name; there is {', '.join(names)}.")
    return Comparison(dict(zip(names, histories, strict=True)))


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns.

    Attributes:
        runs: the :class:`History` of each run under its name.
    """

    runs: Mapping[str, History]

    @property
    def layers(self) -> list[str]:
        """Names of the layers of any run."""
        return list(dict.fromkeys(layer for history in self.runs.values() for layer in history.layers))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics of any run."""
        return list(dict.fromkeys(name for history in self.runs.values() for name in history.metrics))

    @property
    def scalars(self) -> list[str]:
        """Names of the scalars of any run."""
        return list(dict.fromkeys(name for history in self.runs.values() for name in history.scalars))

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` indexed by run, step and layer, one column for each metric and scalar."""
        pd = require("pandas", extra="report")
        return pd.concat({name: history.to_pandas() for name, history in self.runs.items()}, names=["run"])

    def to_xarray(self) -> Any:
        """An ``xarray.Dataset`` with dims ``run``, ``step`` and ``layer``; nan where a run has no such snapshot."""
        xr, pd = require("xarray", extra="report"), require("pandas", extra="report")
        steps = sorted({int(step) for history in self.runs.values() for step in history.steps})
        # a join would put the layers in the order of the alphabet
        each = [history.to_xarray().reindex(step=steps, layer=self.layers) for history in self.runs.values()]
        names = pd.Index(list(self.runs), name="run")
        return xr.concat(each, names, data_vars="all", coords="minimal", compat="override", join="exact")

    def plot(self, metric: str = "cka", *, layer: str | None = None, x: str = "step", ax: Any = None) -> Any:
        """A metric over training, with a line for each run.

        Args:
            metric: name of a metric, or of a scalar such as ``loss``.
            layer: whose metric; the last layer of each run unless given.
            x: what to draw it over: ``step``, ``seconds``, or a scalar such as ``epoch``.
            ax: matplotlib axes to draw on, in place of a Plotly figure.

        Returns:
            A ``plotly.graph_objects.Figure``, or ``ax``.

        Raises:
            KeyError: no run measured ``metric`` or ``x``.
            ValueError: no run has ``layer``, or it is given for a scalar.
        """
        from ._plot import Chart, check_known, distinct_colors, draw, line, log_scale, plotly_figure, title

        check_known(self.metrics, self.scalars, metric, x)
        of_layers = metric in self.metrics
        if layer is not None and not of_layers:
            raise ValueError(f"layer={layer!r} is given, but {metric!r} is a scalar of the whole run; leave it out.")
        layers = self._layer_of_each(layer)
        colors = distinct_colors(len(self.runs))
        lines = [
            line(history, _label(name, history), f"{PREFIX}{layers[name]}/{metric}" if of_layers else metric, x, color)
            for (name, history), color in zip(self.runs.items(), colors, strict=True)
        ]
        lines = [drawn for drawn in lines if drawn.x.size]
        heading = f"{title(metric)}: {_said(layers)}" if of_layers else title(metric)
        chart = Chart(heading, x, lines, log_scale(metric, lines))
        return plotly_figure(chart) if ax is None else draw(chart, ax)

    def table(self, layer: str | None = None) -> Table:
        """A row for each run with its last step, scalars and metrics, as a ``rich`` table; one that diverged is red.

        Args:
            layer: whose metrics; the last layer of each run unless given.

        Raises:
            ValueError: no run has ``layer``.
        """
        from ._table import last, stacked

        layers = self._layer_of_each(layer)
        some = any(history.diverged is not None for history in self.runs.values())
        heads = ["run", *([DIVERGED] if some else []), "step", *self.scalars, *self.metrics]
        rows = []
        for name, history in self.runs.items():
            diverged = [f"step {history.diverged:,}" if history.diverged is not None else ""] if some else []
            keys = [*self.scalars, *(f"{PREFIX}{layers[name]}/{metric}" for metric in self.metrics)]
            step = f"{history.steps[-1]:,}" if history.rows else "–"
            rows.append([name, *diverged, step, *(last(history, key) for key in keys)])
        return stacked(f"At the last snapshot: {_said(layers)}", [head.replace("_", " ") for head in heads], rows)

    def _layer_of_each(self, layer: str | None) -> dict[str, str | None]:
        if layer is not None and layer not in self.layers:
            raise ValueError(f"layer={layer!r} is in no run; there is {', '.join(self.layers)}.")
        last = {name: history.layers[-1] if history.layers else None for name, history in self.runs.items()}
        return last if layer is None else dict.fromkeys(self.runs, layer)


def _said(layers: Mapping[str, str | None]) -> str:
    known = set(layers.values()) - {None}
    return f"layer {known.pop()}" if len(known) == 1 else "the last layer of each run"


def _label(name: str, history: History) -> str:
    return name if history.diverged is None else f"{name} (diverged at step {history.diverged:,})"


def _history(run: Run) -> History:
    if not isinstance(run, Run):
        raise TypeError(f"runs holds {run!r}, which is neither a run folder nor a History.")
    return run if isinstance(run, History) else History.load(run)


def _names(histories: list[History]) -> list[str]:
    """The folder of each run, with those that it is in where two have one name; ``run i`` of one in memory."""
    paths = [Path(f"run {i}") if history.run is None else history.run.resolve() for i, history in enumerate(histories)]
    for i, history in enumerate(histories):
        if history in histories[:i] or paths[i] in paths[:i]:
            raise ValueError(f"runs[{i}], {paths[i].name!r}, is there twice; pass each run once.")
    names = [path.name for path in paths]
    for depth in range(2, max((len(path.parts) for path in paths), default=0) + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(path.parts[-depth:]) for path in paths]
    return names
