"""What a tracker has measured so far."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .._require import require

Row = dict[str, float]
"""One snapshot: ``step``, ``seconds``, the user's scalars, and ``kernel/<layer>/<metric>``."""

PREFIX = "kernel/"


class History:
    """Snapshots in the order of steps; every number under the name that writers use.

    Attributes:
        rows: one dict for each snapshot with ``step``, ``seconds`` since the start, the scalars given to the tracker
            (such as ``loss``), and a number for each ``kernel/<layer>/<metric>``.
    """

    def __init__(self, rows: Iterable[Row] = ()):
        self.rows: list[Row] = list(rows)

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
        return cls(json.loads(line) for line in complete.splitlines())

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
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if not name.startswith(PREFIX) and name not in ("step", "seconds")]

    def metric(self, name: str) -> np.ndarray:
        """One metric of all layers, ``(S, L)``: rows are snapshots, columns are :attr:`layers`.

        Raises:
            KeyError: the metric was not measured.
        """
        if name not in self.metrics:
            raise KeyError(f"{name!r} was not measured; there is {', '.join(self.metrics)}")
        return np.array([[row[f"{PREFIX}{layer}/{name}"] for layer in self.layers] for row in self.rows])

    def scalar(self, name: str) -> np.ndarray:
        """One scalar given to the tracker, such as ``loss``, ``(S,)``; nan at snapshots that lack it."""
        return np.array([row.get(name, np.nan) for row in self.rows], dtype=float)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` indexed by step and layer, one column for each metric and scalar."""
        pd = require("pandas", extra="report")
        beside = ["step", "seconds", *self.scalars]
        records = [
            {**{name: row.get(name) for name in beside}, "layer": layer}
            | {metric: row[f"{PREFIX}{layer}/{metric}"] for metric in self.metrics}
            for row in self.rows
            for layer in self.layers
        ]
        columns = [*beside, "layer", *self.metrics]
        return pd.DataFrame(records, columns=columns).set_index(["step", "layer"])

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"History({len(self)} snapshots of {len(self.layers)} layers: {', '.join(self.metrics)})"

    def _kernel_names(self) -> list[str]:
        return [name for name in self.rows[0] if name.startswith(PREFIX)] if self.rows else []
