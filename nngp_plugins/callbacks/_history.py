"""What a tracker has measured so far."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._require import require

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
"""One snapshot: ``step``, ``seconds``, the user's scalars, and ``kernel/<layer>/<metric>``, each a number.

Where kernels are not finite, ``diverged`` is the list of their layers; other rows lack it.
"""

PREFIX = "kernel/"
DIVERGED = "diverged"  # in a row, the names of layers whose kernels are not finite
_OWN = ("step", "seconds", DIVERGED)


class History:
    """Snapshots in the order of steps; every number under the name that writers use.

    Args:
        rows: the snapshots.
        run: the run folder that they were read from.

    Attributes:
        rows: one dict for each snapshot with ``step``, ``seconds`` since the start, the scalars given to the tracker
            (such as ``loss``), and a number for each ``kernel/<layer>/<metric>``.
        run: the run folder that they were read from; None for those in memory.

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

    def __init__(self, rows: Iterable[Row] = (), *, run: Path | None = None):
        self.rows: list[Row] = list(rows)
        self.run = run

    @classmethod
    def load(cls, run: str | Path) -> History:
        """Reads the history of a run folder.

        Raises:
            FileNotFoundError: the folder holds no ``metrics.jsonl``.
        """
        path = Path(run) / "metrics.jsonl"
        if not path.is_file():
            raise FileNotFoundError(
                f"run={str(run)!r} holds no metrics.jsonl; pass the folder that a KernelTracker wrote."
            )
        complete, _, _ = path.read_text().rpartition("\n")  # the last line may still be on its way
        return cls((json.loads(line) for line in complete.splitlines()), run=Path(run))

    @property
    def steps(self) -> np.ndarray:
        """Training steps of the snapshots, ``(S,)``."""
        return np.array([row["step"] for row in self.rows], dtype=int)

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in forward order."""
        return list(dict.fromkeys(name.removeprefix(PREFIX).rpartition("/")[0] for name in self._kernel_names()))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return list(dict.fromkeys(name.rpartition("/")[2] for name in self._kernel_names()))

    @property
    def scalars(self) -> list[str]:
        """Names of the scalars given to the tracker, such as ``loss``."""
        return [name for name in self._names() if not name.startswith(PREFIX) and name not in _OWN]

    @property
    def diverged(self) -> int | None:
        """First step with a kernel that is not finite; None where there is none."""
        return next(iter(self.diverged_layers.values()), None)

    @property
    def diverged_layers(self) -> dict[str, int]:
        """The layers whose kernel was not finite, each with the first such step."""
        first: dict[str, int] = {}
        for row in self.rows:
            for layer in row.get(DIVERGED, ()):
                first.setdefault(layer, int(row["step"]))
        return first

    def metric(self, name: str) -> np.ndarray:
        """One metric of all layers, ``(S, L)``: rows are snapshots, columns :attr:`layers`; nan where not measured.

        Raises:
            KeyError: the metric was not measured.
        """
        if name not in self.metrics:
            raise KeyError(f"{name!r} was not measured; there is {', '.join(self.metrics)}")
        keys = [f"{PREFIX}{layer}/{name}" for layer in self.layers]
        return np.array([[row.get(key, np.nan) for key in keys] for row in self.rows], dtype=float)

    def scalar(self, name: str) -> np.ndarray:
        """One scalar given to the tracker, such as ``loss``, or ``seconds``, ``(S,)``; nan at snapshots that lack it.

        Raises:
            KeyError: no snapshot has it.
        """
        if name != "seconds" and name not in self.scalars:
            raise KeyError(f"{name!r} was not logged; there is {', '.join(['seconds', *self.scalars])}")
        return np.array([row.get(name, np.nan) for row in self.rows], dtype=float)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` indexed by step and layer, one column for each metric and scalar, and ``seconds``."""
        pd = require("pandas", extra="report")
        layers = self.layers
        columns = {name: np.repeat(self.scalar(name), len(layers)) for name in ("seconds", *self.scalars)}
        columns |= {name: self.metric(name).ravel() for name in self.metrics}
        return pd.DataFrame(columns, pd.MultiIndex.from_product([self.steps, layers], names=["step", "layer"]))

    def to_xarray(self) -> Any:
        """An ``xarray.Dataset``: metrics over ``(step, layer)``, scalars and ``seconds`` over ``(step,)``."""
        xr = require("xarray", extra="report")
        from ._plot import title

        variables: dict[str, Any] = {name: ("step", self.scalar(name)) for name in ("seconds", *self.scalars)}
        # xarray's plots show the long name
        variables |= {name: (("step", "layer"), self.metric(name), {"long_name": title(name)}) for name in self.metrics}
        return xr.Dataset(variables, {"step": self.steps, "layer": np.array(self.layers, dtype=str)})

    def plot(
        self, metric: str = "cka", *, layers: str | Sequence[str] | None = None, x: str = "step", ax: Any = None
    ) -> Any:
        """A metric over training, with a line for each layer; deeper layers are lighter.

        Steps are on a log axis. A dotted line says where the run diverged.

        Args:
            metric: name of a metric, or of a scalar such as ``loss``.
            layers: patterns of the layers to draw, such as ``"block*"``; all of them unless given.
            x: what to draw it over: ``step``, ``seconds``, or a scalar such as ``epoch``.
            ax: matplotlib axes to draw on, in place of a Plotly figure.

        Returns:
            A ``plotly.graph_objects.Figure``, or ``ax``.

        Raises:
            KeyError: ``metric`` or ``x`` was not measured.
            ValueError: a pattern of ``layers`` matches none, or is given for a scalar.
        """
        from ._plot import draw, history_chart, plotly_figure

        chart = history_chart(self, metric, layers, x)
        return plotly_figure(chart) if ax is None else draw(chart, ax)

    def table(self) -> Table:
        """Each metric of each layer at the first snapshot and the last, as a ``rich`` table.

        Of metrics that compare with an earlier snapshot, the last value alone. Layers that diverged are red.
        """
        from ._table import change, last, stacked

        layers, metrics, diverged = self.layers, self.metrics, self.diverged_layers
        heads = ["layer", *([DIVERGED] if diverged else []), *metrics]
        rows = [
            [layer, *([f"step {diverged[layer]:,}" if layer in diverged else ""] if diverged else [])]
            + [change(self, layer, metric) for metric in metrics]
            for layer in layers
        ]
        count = f"{len(self)} snapshot{'s' * (len(self) != 1)}"
        title = [f"step {self.steps[-1]:,}", count] if self.rows else ["no snapshots"]
        title += [f"{name} {last(self, name)}" for name in self.scalars]
        return stacked(" · ".join(title), [head.replace("_", " ") for head in heads], rows)

    def kernel(self, layer: str, step: int) -> np.ndarray:
        """The kernel of a layer at a snapshot, ``(N, N)``, of a run with ``keep_kernels=True``.

        Raises:
            KeyError: there is no such layer or snapshot.
            FileNotFoundError: the run keeps no kernels.
        """
        if layer not in self.layers:
            raise KeyError(f"{layer!r} is no layer of this history; there are {', '.join(self.layers)}")
        snapshots = self.steps.tolist()
        if step not in snapshots:
            raise KeyError(f"step {step} has no snapshot; there are {', '.join(map(str, snapshots))}")
        from ._kept import kept_kernel  # which loads the engine

        return kept_kernel(self.run, layer, snapshots.index(step))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        end = "" if self.diverged is None else f"; diverged at step {self.diverged}"
        return f"History({len(self)} snapshots of {len(self.layers)} layers: {', '.join(self.metrics)}{end})"

    def _names(self) -> dict[str, None]:
        return dict.fromkeys(chain.from_iterable(self.rows))

    def _kernel_names(self) -> list[str]:
        return [name for name in self._names() if name.startswith(PREFIX)]
