"""What a tracker has measured so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._durable import AppendedLines
from .._require import require
from .._show import as_html
from ..charts import draw, plotly_figure, printable, stacked_table
from ._curves import first_and_last, history_chart, last, title_of
from ._files import METRICS, RUN, check_links, read_about
from ._kept import kept_kernel
from ._lines import read_rows
from ._rows import (
    DIVERGED,
    KEPT_CHECKSUMS,
    Row,
    diverged_layers_of,
    key_of,
    layers_of,
    metrics_of,
    reference_steps_of,
    scalars_of,
)

if TYPE_CHECKING:
    from rich.table import Table


class History:
    """Snapshots in the order of steps; every number has the name that writers use.

    Args:
        rows: the snapshots.
        run: the run folder that they were read from.
        config: what the tracker was told to remember of the run.

    Attributes:
        rows: a dictionary for each snapshot with ``step``, ``seconds`` since the start, the scalars given to the
            tracker (such as ``loss``), and a number for each ``kernel/<layer>/<metric>``.
        run: the run folder that they were read from; None for a history in memory.
        config: what the tracker was told to remember of the run, such as the learning rate; empty if nothing.

    Example:
        >>> import jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> probe = jax.random.normal(jax.random.key(0), (16, 3))
        >>> with nngp.KernelTracker(lambda w, x: {"in": x @ w, "out": jnp.tanh(x @ w)}, probe) as tracker:
        ...     for step in range(3):
        ...         _ = tracker(step, (1.0 + step) * jnp.eye(3), loss=1 / (1 + step))
        >>> history = tracker.history
        >>> history.metric("cka").shape  # steps, layers
        (3, 2)
        >>> dict(history.to_xarray().sizes)
        {'step': 3, 'layer': 2}
        >>> figure = history.plot("effective_rank", layers="out")
        >>> table = history.table()  # rich.print shows it
    """

    def __init__(self, rows: Iterable[Row] = (), *, run: Path | None = None, config: Mapping[str, Any] | None = None):
        self.rows: list[Row] = list(rows)
        self.run = run
        self.config: dict[str, Any] = dict(config or {})

    @classmethod
    def load(cls, run: str | Path) -> History:
        """Reads the history of a run folder, also while a tracker writes there.

        Raises:
            FileNotFoundError: the folder holds no ``metrics.jsonl``.
            ValueError: a file is damaged; the message names it and says why.
        """
        folder = Path(run).absolute()
        if not (folder / METRICS).exists():
            raise FileNotFoundError(f"run={str(run)!r} holds no {METRICS}; pass the folder that a KernelTracker wrote.")
        check_links(folder)
        about = read_about(folder) if (folder / RUN).exists() else {}
        # A tracker may be writing the last line at this moment, which does not count yet.
        config = about.get("config")
        rows = read_rows(folder, AppendedLines(folder / METRICS).take_lines(), about)
        return cls(rows, run=folder, config=config if isinstance(config, dict) else None)

    def _now(self) -> History:
        """The snapshots so far; a tracker may add others at any moment."""
        return History(self.rows, run=self.run, config=self.config)

    @property
    def steps(self) -> np.ndarray:
        """Training steps of the snapshots, ``(S,)``."""
        return np.array([row["step"] for row in self.rows], dtype=int)

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in forward order."""
        return layers_of(self.rows)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return metrics_of(self.rows)

    @property
    def scalars(self) -> list[str]:
        """Names of the scalars given to the tracker, such as ``loss``."""
        return scalars_of(self.rows)

    @property
    def diverged(self) -> int | None:
        """The first step with a kernel that is not finite; None if there is none."""
        return next(iter(self.diverged_layers.values()), None)

    @property
    def diverged_layers(self) -> dict[str, int]:
        """The layers whose kernel was not finite, each with the first such step."""
        return diverged_layers_of(self.rows)

    @property
    def reference_steps(self) -> dict[str, int]:
        """The step of the kernel that each layer is compared with; a layer that has no reference yet is missing."""
        return reference_steps_of(self.rows)

    def metric(self, name: str) -> np.ndarray:
        """One metric of all layers, ``(S, L)``: rows are snapshots, columns :attr:`layers`; nan if not measured.

        Raises:
            KeyError: the metric was not measured.
        """
        rows = list(self.rows)
        if name not in (known := metrics_of(rows)):
            raise KeyError(f"{name!r} was not measured; there is {', '.join(known)}")
        keys = [key_of(layer, name) for layer in layers_of(rows)]
        return np.array([[row.get(key, np.nan) for key in keys] for row in rows], dtype=float)

    def scalar(self, name: str) -> np.ndarray:
        """A scalar that was given to the tracker, or ``seconds``, ``(S,)``; nan at snapshots without it.

        Raises:
            KeyError: no snapshot has it.
        """
        if name != "seconds" and name not in self.scalars:
            raise KeyError(f"{name!r} was not logged; there is {', '.join(['seconds', *self.scalars])}")
        return np.array([row.get(name, np.nan) for row in self.rows], dtype=float)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` indexed by step and layer, one column for each metric and scalar, and ``seconds``."""
        pd = require("pandas", extra="report")
        now = self._now()
        layers = now.layers
        columns = {name: np.repeat(now.scalar(name), len(layers)) for name in ("seconds", *now.scalars)}
        columns |= {name: now.metric(name).ravel() for name in now.metrics}
        return pd.DataFrame(columns, pd.MultiIndex.from_product([now.steps, layers], names=["step", "layer"]))

    def to_xarray(self) -> Any:
        """An ``xarray.Dataset``: metrics over ``(step, layer)``, scalars and ``seconds`` over ``(step,)``."""
        xr = require("xarray", extra="report")
        now = self._now()
        variables: dict[str, Any] = {name: ("step", now.scalar(name)) for name in ("seconds", *now.scalars)}
        for name in now.metrics:
            # The plots of xarray show the long name.
            variables[name] = (("step", "layer"), now.metric(name), {"long_name": title_of(name, now.rows)})
        return xr.Dataset(variables, {"step": now.steps, "layer": np.array(now.layers, dtype=str)})

    def plot(
        self, metric: str = "cka", *, layers: str | Sequence[str] | None = None, x: str = "step", ax: Any = None
    ) -> Any:
        """A metric over training, with a line for each layer; deeper layers are lighter.

        Steps are on a log axis. A dotted line shows where the run diverged.

        Args:
            metric: the name of a metric, or of a scalar such as ``loss``.
            layers: patterns of the layers to draw, such as ``"block*"``; None for all of them.
            x: what to draw it over: ``step``, ``seconds``, or a scalar such as ``epoch``.
            ax: matplotlib axes to draw on, in place of a Plotly figure.

        Returns:
            A ``plotly.graph_objects.Figure``, or ``ax``.

        Raises:
            KeyError: ``metric`` or ``x`` was not measured.
            ValueError: a pattern of ``layers`` matches none, or is given for a scalar.
        """
        chart = history_chart(list(self.rows), metric, layers, x)
        return plotly_figure(chart) if ax is None else draw(chart, ax)

    def table(self) -> Table:
        """Each metric of each layer at the first snapshot and the last, as a ``rich`` table.

        A metric that compares with an earlier snapshot shows its last value alone. Layers that diverged are red.
        """
        now = self._now()
        metrics, diverged = now.metrics, now.diverged_layers
        heads, rows = ["layer"], [[layer] for layer in now.layers]
        if diverged:
            heads.append(DIVERGED)
            for row in rows:
                row.append(f"step {diverged[row[0]]:,}" if row[0] in diverged else "")
        for row in rows:
            row += [first_and_last(now.rows, row[0], metric) for metric in metrics]
        said = ["no snapshots"]
        if now.rows:
            said = [f"step {now.steps[-1]:,}", "1 snapshot" if len(now) == 1 else f"{len(now)} snapshots"]
        said += [f"{name} {last(now.rows, name)}" for name in now.scalars]
        heads += [metric.replace("_", " ") for metric in metrics]
        return stacked_table(" · ".join(said), heads, rows, alarm=DIVERGED)

    def kernel(self, layer: str, step: int) -> np.ndarray:
        """The kernel of a layer at a snapshot, ``(N, N)``, of a run with ``keep_kernels=True``.

        Raises:
            KeyError: there is no such layer or snapshot.
            FileNotFoundError: the run keeps no kernels.
            ValueError: the disk did not take this kernel, or its file is damaged; the message names the step.
        """
        now = self._now()
        if layer not in now.layers:
            raise KeyError(f"{layer!r} is no layer of this history; there are {', '.join(now.layers)}")
        snapshots = now.steps.tolist()
        if step not in snapshots:
            raise KeyError(f"step {step} has no snapshot; there are {', '.join(map(str, snapshots))}")
        i = snapshots.index(step)
        row = now.rows[i]
        checksum = dict(zip(now.layers, row.get(KEPT_CHECKSUMS, ()), strict=False)).get(layer)
        return kept_kernel(self.run, layer, i, step, checksum=checksum, diverged=layer in row.get(DIVERGED, ()))

    def _repr_html_(self) -> str:
        return as_html(self.table())

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        now = self._now()
        end = "" if now.diverged is None else f"; diverged at step {now.diverged}"
        return f"History({len(now)} snapshots of {len(now.layers)} layers: {printable(', '.join(now.metrics))}{end})"
