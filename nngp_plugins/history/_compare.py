"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._require import require
from .._show import as_html
from ..charts import Chart, distinct_colors, draw, plotly_figure, printable, stacked_table
from ._curves import check_known, is_log, last, line, title_of
from ._history import History
from ._rows import DIVERGED, key_of

if TYPE_CHECKING:
    from rich.table import Table

RunLike = str | Path | History
"""A run: its folder, or its history."""


def compare(runs: Mapping[Any, RunLike] | Iterable[RunLike]) -> Comparison:
    """Several runs side by side: as curves, as a table, or as numbers.

    Args:
        runs: run folders or histories. The keys of a mapping name them. Otherwise the folders do, together with as many
            of their parent folders as it takes to tell them apart, and a history in memory is called ``run i``.

    Raises:
        TypeError: ``runs`` is a single run, or one of them is something else.
        ValueError: there is no run, or one of them is given twice.
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
    if isinstance(runs, RunLike) or not isinstance(runs, Iterable):
        raise TypeError(f"runs={runs!r} is not several runs; pass a list of run folders, or a mapping with names.")
    if isinstance(runs, Mapping):
        histories, names = [_history(run) for run in runs.values()], [str(name) for name in runs]
    else:
        histories = [_history(run) for run in runs]
        names = _names(histories)
    if not histories:
        raise ValueError("runs is empty; pass at least one run folder or history.")
    if len(set(names)) < len(names):
        raise ValueError(f"runs has two of one name; there is {printable(', '.join(names))}.")
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
        """The names of the layers that any run has."""
        return list(dict.fromkeys(layer for history in self.runs.values() for layer in history.layers))

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that any run has."""
        return list(dict.fromkeys(name for history in self.runs.values() for name in history.metrics))

    @property
    def scalars(self) -> list[str]:
        """The names of the scalars that any run has."""
        return list(dict.fromkeys(name for history in self.runs.values() for name in history.scalars))

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """What differs among the configurations of the runs: for each such name, the value of each run, or None.

        A mapping within a configuration counts by its entries, as ``optimizer.rate``.
        """
        each = {name: dict(_flat(history.config)) for name, history in self.runs.items()}
        names = dict.fromkeys(key for config in each.values() for key in config)
        values = {key: {name: config.get(key) for name, config in each.items()} for key in names}
        return {key: of_runs for key, of_runs in values.items() if len({repr(one) for one in of_runs.values()}) > 1}

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` indexed by run, step and layer, one column for each metric and scalar.

        What differs among the configurations of the runs, :attr:`config`, has columns too, in which numbers are
        numbers. One with the name of another column is called ``config/<name>``.
        """
        pd = require("pandas", extra="report")
        frames = {name: history.to_pandas() for name, history in self.runs.items()}
        taken = {"run", "step", "layer", *(column for frame in frames.values() for column in frame)}
        for key, of_runs in self.config.items():
            column = f"config/{key}" if key in taken else key
            frames = {
                name: frame.assign(**{column: np.nan if of_runs[name] is None else of_runs[name]})
                for name, frame in frames.items()
            }
        return pd.concat(frames, names=["run"])

    def to_xarray(self) -> Any:
        """An ``xarray.Dataset`` with dims ``run``, ``step`` and ``layer``; nan if a run has no such snapshot.

        What differs among the configurations of the runs are coordinates of ``run``.
        """
        xr, pd = require("xarray", extra="report"), require("pandas", extra="report")
        steps = sorted({int(step) for history in self.runs.values() for step in history.steps})
        # All are reindexed first, because a join would sort the layers by the alphabet.
        each = [history.to_xarray().reindex(step=steps, layer=self.layers) for history in self.runs.values()]
        names = pd.Index(list(self.runs), name="run")
        joined = xr.concat(each, names, data_vars="all", coords="minimal", compat="override", join="exact")
        taken = {*joined.variables, *joined.dims}
        return joined.assign_coords(
            {
                f"config/{key}" if key in taken else key: (
                    "run",
                    [np.nan if v is None else v for v in of_runs.values()],
                )
                for key, of_runs in self.config.items()
            }
        )

    def plot(self, metric: str = "cka", *, layer: str | None = None, x: str = "step", ax: Any = None) -> Any:
        """A metric over training, with a line for each run.

        Args:
            metric: the name of a metric, or of a scalar such as ``loss``.
            layer: the layer whose metric is drawn; None for the last layer of each run.
            x: what to draw it over: ``step``, ``seconds``, or a scalar such as ``epoch``.
            ax: matplotlib axes to draw on, in place of a Plotly figure.

        Returns:
            A ``plotly.graph_objects.Figure``, or ``ax``.

        Raises:
            KeyError: no run measured ``metric`` or ``x``.
            ValueError: no run has ``layer``, or it is given for a scalar.
        """
        check_known(self.metrics, self.scalars, metric, x)
        of_layers = metric in self.metrics
        if layer is not None and not of_layers:
            raise ValueError(f"layer={layer!r} is given, but {metric!r} is a scalar of the whole run; leave it out.")
        layers = self._layer_of_each(layer)
        colors = distinct_colors(len(self.runs))
        lines = []
        for (name, history), color in zip(self.runs.items(), colors, strict=True):
            key = key_of(layers[name], metric) if of_layers else metric
            drawn = line(history.rows, _label(name, history), key, x, color)
            if drawn.x.size:
                lines.append(drawn)
        heading = title_of(metric, *(history.rows for history in self.runs.values()))
        heading = f"{heading}: {_which(layers)}" if of_layers else heading
        chart = Chart(heading, x, lines, is_log(metric, lines))
        return plotly_figure(chart) if ax is None else draw(chart, ax)

    def table(self, layer: str | None = None) -> Table:
        """A row for each run with its last step, scalars and metrics, as a ``rich`` table; a run that diverged is red.

        It shows what differs among the configurations of the runs, too.

        Args:
            layer: the layer whose metrics are shown; None for the last layer of each run.

        Raises:
            ValueError: no run has ``layer``.
        """
        layers = self._layer_of_each(layer)
        some_diverged = any(history.diverged is not None for history in self.runs.values())
        config = self.config
        heads = ["run", *([DIVERGED] if some_diverged else []), *config, "step", *self.scalars, *self.metrics]
        rows = []
        for name, history in self.runs.items():
            row = [name]
            if some_diverged:
                row.append("" if history.diverged is None else f"step {history.diverged:,}")
            row += ["–" if (value := of_runs[name]) is None else str(value) for of_runs in config.values()]
            row.append(f"{history.steps[-1]:,}" if history.rows else "–")
            keys = [*self.scalars, *(key_of(layers[name], metric) for metric in self.metrics)]
            rows.append([*row, *(last(history.rows, key) for key in keys)])
        heads = [head.replace("_", " ") for head in heads]
        return stacked_table(f"At the last snapshot: {_which(layers)}", heads, rows, alarm=DIVERGED)

    def __repr__(self) -> str:
        differs = f"; they differ in {', '.join(self.config)}" if self.config else ""
        return f"Comparison({len(self.runs)} runs: {printable(', '.join(self.runs) + differs)})"

    def _repr_html_(self) -> str:
        return as_html(self.table())

    def _layer_of_each(self, layer: str | None) -> dict[str, str]:
        """The layer to show of each run; empty for a run without snapshots."""
        if layer is not None and layer not in self.layers:
            raise ValueError(f"layer={layer!r} is in no run; there is {printable(', '.join(self.layers))}.")
        if layer is not None:
            return dict.fromkeys(self.runs, layer)
        return {name: history.layers[-1] if history.layers else "" for name, history in self.runs.items()}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a configuration, and of the mappings within it; anything but numbers and truth values is text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, int | float | str | None) else str(value)


def _which(layers: Mapping[str, str]) -> str:
    known = {*layers.values()} - {""}
    return f"layer {known.pop()}" if len(known) == 1 else "the last layer of each run"


def _label(name: str, history: History) -> str:
    return name if history.diverged is None else f"{name} (diverged at step {history.diverged:,})"


def _history(run: RunLike) -> History:
    if not isinstance(run, RunLike):
        raise TypeError(f"runs holds {run!r}, which is neither a run folder nor a History.")
    return run if isinstance(run, History) else History.load(run)


def _names(histories: list[History]) -> list[str]:
    """The name of each run: its folder, with parent folders if two have one name; ``run i`` for one in memory."""
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
