"""When a tracker measures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from ..history import Row
from ._schedules import Moment, Schedule


class Clock:
    """Counts steps and seconds, and decides which calls measure.

    Args:
        schedule: when to measure after the first call, which always measures.
        rows: the snapshots of the run folder that goes on; empty for a new run.

    Attributes:
        last_counted: the last call that the schedule counts from; None before the first call of a new run.
    """

    def __init__(self, schedule: Schedule, rows: Sequence[Row] = ()):
        self._schedule = schedule
        self._first_step = rows[0]["step"] if rows else None
        self._resumed_after = rows[-1]["step"] if rows else -math.inf
        self._last_measured = self._last_seen = self._resumed_after
        self.last_counted: Moment | None = None
        seconds = 0.0
        if rows:
            seconds = rows[-1]["seconds"]
            self.last_counted = Moment(rows[-1]["step"], seconds, rows[-1])
        self._start = time.perf_counter() - seconds

    def moment(self, step: int, scalars: Mapping[str, Any]) -> Moment:
        """A call at this step, now."""
        return Moment(index(step), time.perf_counter() - self._start, scalars)

    def due(self, now: Moment) -> bool:
        """Whether to measure at a call.

        Raises:
            ValueError: the step goes back.
        """
        if self._resumed_after < now.step < self._last_seen:
            raise ValueError(
                f"step={now.step} comes after step {self._last_seen}; steps may be skipped, but not go back."
            )
        if now.step <= self._last_measured:
            return False
        return self.last_counted is None or self._schedule.due(now, self.last_counted)

    def forget(self, names: Sequence[str]) -> None:
        """Lets go of scalars of the call before that were donated since: no schedule can compare with them."""
        if self.last_counted is not None:
            kept = {name: value for name, value in self.last_counted.scalars.items() if name not in names}
            self.last_counted = self.last_counted._replace(scalars=kept)

    def has(self, now: Moment) -> bool:
        """Whether a run that goes on has passed this step already."""
        return now.step <= self._resumed_after

    def is_first_again(self, now: Moment) -> bool:
        """Whether this is the first step of a run that goes on.

        That step is measured again, to notice a different training.
        """
        return now.step == self._first_step

    def is_unmeasured(self, now: Moment) -> bool:
        """Whether a call came after the last snapshot."""
        return now.step > self._last_measured

    def saw(self, now: Moment) -> None:
        """Takes note of a call that did not fail."""
        self._last_seen = max(now.step, self._last_measured)
        if not self.has(now):
            self.last_counted = now

    def measured(self, step: int) -> None:
        """Takes note of a snapshot."""
        self._last_measured = step
        self._last_seen = max(step, self._last_seen)
