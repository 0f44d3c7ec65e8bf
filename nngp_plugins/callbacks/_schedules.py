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
        seconds: the seconds since the run began; a resumed run goes on counting.
        scalars: the scalars that the call was given, such as ``loss`` or ``epoch``.
    """

    step: int
    seconds: float = 0.0
    scalars: Mapping[str, Any] = MappingProxyType({})

    def counted(self, of: str) -> float:
        """The scalar with the name ``of``."""
        if of not in self.scalars:
            raise ValueError(f"of={of!r} is not among the scalars of step {self.step}; pass tracker(..., {of}=...).")
        return float(self.scalars[of])


class Schedule(ABC):
    """When to measure; ``a | b`` is the union of two schedules."""

    def due(self, now: Moment | int, before: Moment | int) -> bool:
        """Whether to measure at a call, given the call before it; steps in between may have been skipped."""
        now = now if isinstance(now, Moment) else Moment(now)
        return self._due(now, before if isinstance(before, Moment) else Moment(before))

    @abstractmethod
    def _due(self, now: Moment, before: Moment) -> bool:
        """Whether the moment that the schedule waits for came after ``before``, and not after ``now``."""

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
        return self.first._due(now, before) or self.second._due(now, before)


@dataclass(frozen=True)
class Every(Schedule):
    """The multiples of ``n`` steps, or of ``n`` of a scalar."""

    n: int
    of: str = "step"

    def _due(self, now: Moment, before: Moment) -> bool:
        if self.of == "step":
            return now.step // self.n > before.step // self.n
        if self.of not in before.scalars:
            # The first call that has the scalar measures.
            return True
        return now.counted(self.of) // self.n > before.counted(self.of) // self.n

    def __repr__(self) -> str:
        return f"Every(n={self.n})" if self.of == "step" else f"Every(n={self.n}, of={self.of!r})"


@dataclass(frozen=True)
class LogSpaced(Schedule):
    """Steps 1, ..., 10, ..., 100, ...: ``per_decade`` of them for each factor of ten."""

    per_decade: int

    def _due(self, now: Moment, before: Moment) -> bool:
        # The schedule holds the steps ceil(10^(k / per_decade)) for k = 0, 1, 2, ...
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
    """The multiples of a number of seconds since the run began."""

    seconds: float

    def _due(self, now: Moment, before: Moment) -> bool:
        return now.seconds // self.seconds > before.seconds // self.seconds


@dataclass(frozen=True)
class When(Schedule):
    """The calls for which a predicate is true."""

    predicate: Callable[[int, Mapping[str, Any]], bool]

    def _due(self, now: Moment, before: Moment) -> bool:
        return bool(self.predicate(now.step, now.scalars))


def every(n: int, of: str = "step") -> Schedule:
    """Measures at every multiple of ``n`` steps, or of ``n`` epochs.

    Args:
        n: how many steps or epochs.
        of: what is counted: ``"step"``, or the name of a scalar that every call has, such as ``"epoch"`` in
            ``tracker(step, params, epoch=epoch)``.

    Raises:
        ValueError: ``n`` is not a positive integer; a call does not have the scalar.

    Example:
        >>> import nngp_plugins as nngp
        >>> [step for step in range(1, 10) if nngp.every(4).due(step, step - 1)]
        [4, 8]
    """
    return Every(_positive("every", "n", n), of)


def log_spaced(per_decade: int = 10) -> Schedule:
    """Measures at steps evenly spaced on a log axis: often early in training, when kernels move, and rarely later.

    Args:
        per_decade: the number of snapshots for each factor of ten in steps.

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
        *steps: integers ≥ 0, or iterables of integers.

    Raises:
        ValueError: there is no step, or something else than integers ≥ 0.

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
    """Measures at the first call after every ``seconds`` seconds, however long a step takes.

    Args:
        seconds: the time between snapshots, > 0.

    Raises:
        ValueError: ``seconds`` is not positive.

    Example:
        >>> import nngp_plugins as nngp
        >>> nngp.every_seconds(60)
        EverySeconds(seconds=60)
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f"every_seconds({seconds!r}) takes a positive number of seconds.")
    return EverySeconds(seconds)


def when(predicate: Callable[[int, Mapping[str, Any]], bool]) -> Schedule:
    """Measures when a function says so.

    Args:
        predicate: ``predicate(step, scalars) -> bool``, which is called at every step with the scalars given to the
            tracker. A predicate that looks at a loss on a device waits until the loss is computed.

    Raises:
        TypeError: ``predicate`` is not a function.

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
