"""A tracker that all processes of ``jax.distributed`` call, and of which process 0 records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..history import Row, RunFolder
from ._measure import Measurement
from ._schedules import EverySeconds, Schedule


def begun(
    measurement: Measurement, schedule: Schedule, run: str | Path | None, about: Mapping[str, Any], *, resume: bool
) -> tuple[RunFolder | None, Sequence[Row]]:
    """The run folder, and the snapshots that it holds already.

    If several processes share the probe, process 0 alone has the folder. It tells the others of its snapshots and
    layers, because all must measure at the same steps, by the same program.

    Raises:
        ValueError: the schedule looks at the clock, which differs between processes.
        RuntimeError: process 0 could not begin.
    """
    folder: RunFolder | None = None

    def begin() -> tuple[Sequence[Row], Any]:
        nonlocal folder
        folder = None if run is None else RunFolder(run, about, resume=resume)
        return ([], None) if folder is None else (folder.rows, folder.about.get("layers"))

    if measurement.is_shared and _looks_at_clock(schedule):
        raise ValueError(
            f"schedule={schedule!r} looks at the clock, which differs between the processes that share probe_x, so "
            "that some would wait for others; count steps, as nngp.every(100) does."
        )
    rows, layers = _from_process_0(begin) if measurement.is_shared else begin()
    if rows:
        measurement.expected_shapes = layers
    return folder, rows


def _looks_at_clock(schedule: Any) -> bool:
    parts = vars(schedule).values() if isinstance(schedule, Schedule) else ()
    return isinstance(schedule, EverySeconds) or any(map(_looks_at_clock, parts))


def _from_process_0(make: Callable[[], Any]) -> Any:
    """What process 0 makes, in all processes; what fails there fails everywhere, so that none waits for another.

    Raises:
        RuntimeError: it failed in process 0, whose own error says why.
    """
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text, failed = b"", None
    if jax.process_index() == 0:
        try:
            text = json.dumps(make()).encode()
        except BaseException as error:  # noqa: BLE001
            failed = error
    size = int(broadcast_one_to_all(np.int32(len(text))))
    if failed is not None:
        raise failed
    if not size:
        raise RuntimeError("process 0 could not begin the run of this tracker; its own error says why.")
    sent = np.frombuffer(text or bytes(size), np.uint8)
    return json.loads(np.asarray(broadcast_one_to_all(sent)).tobytes())
