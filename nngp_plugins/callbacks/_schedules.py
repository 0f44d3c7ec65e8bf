"""When a tracker measures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import index
from types import MappingProxyType
from typing import Any, NamedTuple, SupportsIndex


class Moment(NamedTuple):
    """A call of a tracker, as schedules see it.

    Attributes:
        step: the training step.
        seconds: since the run began; a resumed run goes on counting.
        scalars: given to the call beside, such as ``loss`` or ``epoch``.
    """

    step: int
    seconds: float = 0.0
    scalars: Mapping[str, Any] = MappingProxyType({})

    def counted(self, of: str) -> float:
        """The step, or the scalar ``of``."""
        if of == "step":
            return self.step
        if of not in self.scalars:
            raise ValueError(f"of={of!r} is not among the scalars of step {self.step}; pass tracker(..., {of}=...).")
        return float(self.scalars[of])


class Schedule(ABC):
    """When to measure; ``a | b`` is the union of two."""

    def due(self, now: Moment | int, before: Moment | int) -> bool:
        """Whether to measure at a call, given the one before: steps in between may have been skipped."""
        return self._due(*(moment if isinstance(moment, Moment) else Moment(moment) for moment in (now, before)))

    @abstractmethod
    def _due(self, now: Moment, before: Moment) -> bool:
        """Whether what the schedule waits for came after ``before``, and not after ``now``."""

    def __or__(self, other: Schedule) -> Schedule:
        if not isinstance(other, Schedule):
            raise TypeError(f"{self} | {other!r} joins schedules; pass nngp.every({other!r}) or nngp.log_spaced().")
        return Either(self, other)


@dataclass(frozen=True)
class Either(Schedule):
    """The union of two schedules."""

    first: Schedule
    second: Schedule

    def _due(self, now: Moment, before: Moment) -> bool:
        return self.first.due(now, before) or self.second.due(now, before)


@dataclass(frozen=True)
class Every(Schedule):
    """The multiples of ``n``, of steps or of a scalar."""

    n: int
    of: str = "step"

    def _due(self, now: Moment, before: Moment) -> bool:
        if self.of != "step" and self.of not in before.scalars:
            return True  # the first call that tells
        return now.counted(self.of) // self.n > before.counted(self.of) // self.n

    def __repr__(self) -> str:
        return f"Every(n={self.n})" if self.of == "step" else f"Every(n={self.n}, of={self.of!r})"


@dataclass(frozen=True)
class LogSpaced(Schedule):
    """Steps 1, ..., 10, ..., 100, ..., ``per_decade`` of them to a factor of ten."""

    per_decade: int

    def _due(self, now: Moment, before: Moment) -> bool:
        # the steps are ceil(10^(k / per_decade))
        return self._count(now.step) > self._count(before.step)

    def _count(self, step: int) -> int:
        return 1 + math.floor(self.per_decade * math.log10(step) + 1e-9) if step >= 1 else 0


@dataclass(frozen=True)
class At(Schedule):
    """Given steps."""

    steps: tuple[int, ...]

    def _due(self, now: Moment, before: Moment) -> bool:
        return bisect_right(self.steps, now.step) > bisect_right(self.steps, before.step)


@dataclass(frozen=True)
class EverySeconds(Schedule):
    """The multiples of so many seconds since the run began."""

    seconds: float

    def _due(self, now: Moment, before: Moment) -> bool:
        return now.seconds // self.seconds > before.seconds // self.seconds


@dataclass(frozen=True)
class When(Schedule):
    """The calls that a predicate picks."""

    predicate: Callable[[int, Mapping[str, Any]], bool]

    def _due(self, now: Moment, before: Moment) -> bool:
        return bool(self.predicate(now.step, now.scalars))


def every(n: int, of: str = "step") -> Schedule:
    """Measures at every multiple of ``n`` steps, or of ``n`` epochs.

    Args:
        n: how many.
        of: what to count: ``"step"``, or a scalar that every call is given, such as ``"epoch"`` of
            ``tracker(step, params, epoch=epoch)``.

    Raises:
        ValueError: ``n`` is not a positive integer; a call lacks the scalar.

    Example:
        >>> import nngp_plugins as nngp
        >>> [step for step in range(1, 10) if nngp.every(4).due(step, step - 1)]
        [4, 8]
    """
    return Every(_positive("every", "n", n), of)


def log_spaced(per_decade: int = 10) -> Schedule:
    """Measures at steps evenly spaced on a log axis, where kernels move: dense early in training, sparse later.

    Args:
        per_decade: number of snapshots for each factor of ten in steps.

    Raises:
        ValueError: ``per_decade`` is not a positive integer.

    Example:
        >>> import nngp_plugins as nngp
        >>> [step for step in range(1, 101) if nngp.log_spaced(per_decade=3).due(step, step - 1)]
        [1, 3, 5, 10, 22, 47, 100]
    """
    return LogSpaced(_positive("log_spaced", "per_decade", per_decade))


def at(*steps: int | Iterable[int]) -> Schedule:
    """Measures at given steps.

    Args:
        *steps: integers ≥ 0, or iterables of such.

    Raises:
        ValueError: something else, or no step.

    Example:
        >>> import nngp_plugins as nngp
        >>> [step for step in range(1, 30) if nngp.at(5, [7, 20]).due(step, step - 1)]
        [5, 7, 20]
    """
    flat = [step for given in steps for step in (given if isinstance(given, Iterable) else [given])]
    if not flat or not all(isinstance(step, SupportsIndex) and index(step) >= 0 for step in flat):
        raise ValueError(f"at({', '.join(map(repr, steps))}) takes steps, integers ≥ 0.")
    return At(tuple(sorted({index(step) for step in flat})))


def every_seconds(seconds: float) -> Schedule:
    """Measures at the first call after every so many seconds, whatever a step takes.

    Args:
        seconds: between snapshots, > 0.

    Raises:
        ValueError: they are not positive.

    Example:
        >>> import nngp_plugins as nngp
        >>> nngp.every_seconds(60)
        EverySeconds(seconds=60)
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f"every_seconds({seconds!r}) takes a positive number of seconds.")
    return EverySeconds(seconds)


def when(predicate: Callable[[int, Mapping[str, Any]], bool]) -> Schedule:
    """Measures where a function says so.

    Args:
        predicate: ``predicate(step, scalars) -> bool``, called at every step with the scalars given to the tracker; one
            that looks at a loss on a device waits for it.

    Raises:
        TypeError: it is not a function.

    Example:
        >>> import nngp_plugins as nngp
        >>> schedule = nngp.when(lambda step, scalars: scalars["loss"] < 0.1)
    """
    if not callable(predicate):
        raise TypeError(f"when({predicate!r}) takes a function predicate(step, scalars) -> bool.")
    return When(predicate)


def _positive(function: str, argument: str, value: int) -> int:
    if not isinstance(value, SupportsIndex) or index(value) < 1:
        raise ValueError(f"{function}({argument}={value!r}) takes a positive integer.")
    return index(value)
