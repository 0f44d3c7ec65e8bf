"""A run folder, read back for the report."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import labels_of
from ._files import LAST, NEXT, REFERENCE, RUN, in_order, read_about, read_arrays
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
        after: the centred kernels of the last snapshot that the disk took; None if there are none yet.
        after_step: the step of these; None if there are none yet.
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
    after_step: int | None
    targets: np.ndarray
    has_classes: bool

    @classmethod
    def load(cls, path: str | Path) -> StoredRun:
        """Reads a run folder, also that of a run that goes on or was killed.

        Raises:
            FileNotFoundError: the folder is not a run folder, or holds no snapshot yet.
            ValueError: a file is damaged; the message names it and says why.
        """
        folder = Path(path).absolute()
        if not (folder / RUN).exists():
            raise FileNotFoundError(f"run={str(path)!r} is not a run folder: it has no {RUN}.")
        history = History.load(folder)
        if not history.rows:
            raise FileNotFoundError(
                f"run={str(path)!r} holds no snapshot yet: a tracker records one as the next call comes."
            )
        about, reference = read_about(folder), read_arrays(folder / REFERENCE)
        _check_about(folder, about, reference)
        layers, targets = [str(name) for name in reference["layers"]], reference["targets"]
        last = _last(folder, int(history.steps[-1]), reference)
        return cls(
            about=about,
            history=history,
            layers=layers,
            before=reference["centered"],
            # One step stands for all layers.
            before_steps=reference.get("steps", np.full(len(layers), reference["step"])),
            after=None if last is None else last["centered"],
            after_step=None if last is None else int(last["step"]),
            **_targets(targets),
        )


def _last(folder: Path, step: int, reference: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The kernels of the last snapshot; where the disk did not take them, those of an earlier one."""
    # A tracker that goes on may rename the file at this moment; one that was killed could not.
    with suppress(ValueError):
        following = _of_layers(folder / NEXT, reference)
        if following["step"] == step:
            return following
    return _of_layers(folder / LAST, reference) if (folder / LAST).exists() else None


def _of_layers(file: Path, reference: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kernels of a file by the order of the layers of the reference; a run that went on may have another one."""
    saved = read_arrays(file)
    try:
        if saved["kernels"].shape != reference["kernels"].shape:
            raise ValueError(f"its kernels are not those of {REFERENCE}")
        return in_order(saved, [str(name) for name in reference["layers"]])
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error


def _check_about(folder: Path, about: dict[str, Any], reference: dict[str, np.ndarray]) -> None:
    n = reference["kernels"].shape[1]
    probe, since = about.get("probe"), about.get("reference")
    wrong = "" if isinstance(probe, dict) and probe.get("n") == n else f"probe is not one of {n} examples"
    for name in ("versions", "config"):
        if not isinstance(about.get(name), dict):
            wrong = f"{name} is not an object"
    if not isinstance(about.get("created"), str) or not isinstance(since, int | None):
        wrong = "created is not a time, or reference is not a step"
    if wrong:
        raise ValueError(f"{folder / RUN} is damaged: {wrong}.")


def _targets(saved: np.ndarray) -> dict[str, Any]:
    labels = None
    with suppress(ValueError):  # Previews took ids of tokens, which have no order either.
        labels = labels_of(saved) if saved.size else None
    if labels is not None:
        return {"targets": labels, "has_classes": True}
    is_column = saved.ndim == 1 or saved.shape[1] == 1
    return {"targets": saved.ravel() if is_column else np.zeros(0), "has_classes": False}
