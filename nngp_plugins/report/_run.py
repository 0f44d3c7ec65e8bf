"""A run folder read back, for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..callbacks import History


@dataclass(frozen=True)
class Run:
    """What a :class:`KernelTracker` wrote.

    Attributes:
        about: the contents of ``run.json``.
        history: the snapshots.
        layers: names of the layers, in forward order.
        before: centred kernels at the first snapshot, ``(L, N, N)``.
        after: the same at the last one.
        targets: labels of the probe, ``(N,)``; empty where none were given.
    """

    about: dict[str, Any]
    history: History
    layers: list[str]
    before: np.ndarray
    after: np.ndarray
    targets: np.ndarray

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Reads a run folder whose tracker was closed.

        Raises:
            FileNotFoundError: the folder is not a run folder, or the tracker was not closed.
        """
        path = Path(path)
        for name, reason in (("run.json", "is not a run folder"), ("last.npz", "is not finished: close() its tracker")):
            if not (path / name).is_file():
                raise FileNotFoundError(f"run={str(path)!r} {reason} (no {name}).")
        with np.load(path / "reference.npz") as reference, np.load(path / "last.npz") as last:
            targets = reference["targets"]
            return cls(
                about=json.loads((path / "run.json").read_text()),
                history=History.load(path),
                layers=[str(name) for name in reference["layers"]],
                before=reference["centered"],
                after=last["centered"],
                targets=targets.argmax(axis=1) if targets.ndim == 2 else targets,
            )
