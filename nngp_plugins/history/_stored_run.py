"""A run folder, read back for the report."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import labels_of
from ._history import History


@dataclass(frozen=True)
class StoredRun:
    """What a :class:`KernelTracker` wrote.

    Attributes:
        about: the contents of ``run.json``.
        history: the snapshots.
        layers: the names of the layers, in forward order.
        before: the centred kernel of each layer that is its reference, ``(L, N, N)``; nan if it has none yet.
        before_steps: the steps of these, ``(L,)``; nan for a layer that has none yet.
        after: the centred kernels at the last snapshot; None if there is none yet.
        targets: the targets of the probe, ``(N,)``: labels, or numbers; empty if there are none, or several columns of
            numbers.
        has_classes: whether the targets are labels.
    """

    about: dict[str, Any]
    history: History
    layers: list[str]
    before: np.ndarray
    before_steps: np.ndarray
    after: np.ndarray | None
    targets: np.ndarray
    has_classes: bool

    @classmethod
    def load(cls, path: str | Path) -> StoredRun:
        """Reads a run folder, also that of a run that goes on or was killed.

        Raises:
            FileNotFoundError: the folder is not a run folder, or holds no snapshot yet.
        """
        path = Path(path)
        if not (path / "run.json").is_file():
            raise FileNotFoundError(f"run={str(path)!r} is not a run folder: it has no run.json.")
        history = History.load(path)
        if not history.rows:
            raise FileNotFoundError(
                f"run={str(path)!r} holds no snapshot yet: a tracker records one as the next call comes."
            )
        with np.load(path / "reference.npz") as reference:
            layers, before, targets = (reference[name] for name in ("layers", "centered", "targets"))
            # One step stands for all layers.
            steps = reference["steps"] if "steps" in reference else np.full(len(layers), reference["step"])
        after = None
        if (path / "last.npz").is_file():
            with np.load(path / "last.npz") as last:
                after = last["centered"]
        return cls(
            about=json.loads((path / "run.json").read_text()),
            history=history,
            layers=[str(name) for name in layers],
            before=before,
            before_steps=steps,
            after=after,
            **_targets(targets),
        )


def _targets(saved: np.ndarray) -> dict[str, Any]:
    labels = None
    with suppress(ValueError):  # Previews took ids of tokens, which have no order either.
        labels = labels_of(saved) if saved.size else None
    if labels is not None:
        return {"targets": labels, "has_classes": True}
    is_column = saved.ndim == 1 or saved.shape[1] == 1
    return {"targets": saved.ravel() if is_column else np.zeros(0), "has_classes": False}
