"""When a tracker measures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex


class Schedule(ABC):
    """A set of training steps; ``a | b`` is the union of two."""

    @abstractmethod
    def due(self, step: int, previous: int) -> bool:
        """Whether the set has a step in ``(previous, step]``, so that steps in between may be skipped."""

    def __or__(self, other: Schedule) -> Schedule:
        if not isinstance(other, Schedule):
            raise TypeError(f"{self} | {other!r} joins schedules; pass nngp.every({other!r}) or nngp.log_spaced().")
        return Either(self, other)


@dataclass(frozen=True)
class Either(Schedule):
    """The union of two schedules."""

    first: Schedule
    second: Schedule

    def due(self, step: int, previous: int) -> bool:
        """Whether either is due."""
        return self.first.due(step, previous) or self.second.due(step, previous)


@dataclass(frozen=True)
class Every(Schedule):
    """The multiples of ``n``."""

    n: int

    def due(self, step: int, previous: int) -> bool:
        """Whether a multiple of n lies in ``(previous, step]``."""
        return step // self.n > previous // self.n


@dataclass(frozen=True)
class LogSpaced(Schedule):
    """Steps 1, ..., 10, ..., 100, ..., ``per_decade`` of them to a factor of ten."""

    per_decade: int

    def due(self, step: int, previous: int) -> bool:
        """Whether one of the steps ``ceil(10^(k / per_decade))`` lies in ``(previous, step]``."""
        return self._count(step) > self._count(previous)

    def _count(self, step: int) -> int:
        return 1 + math.floor(self.per_decade * math.log10(step) + 1e-9) if step >= 1 else 0


def every(n: int) -> Schedule:
    """Measures at every multiple of ``n`` steps.

    Raises:
        ValueError: ``n`` is not a positive integer.

    Example:
        >>> import nngp_plugins as nngp
        >>> [step for step in range(1, 10) if nngp.every(4).due(step, step - 1)]
        [4, 8]
    """
    return Every(_positive("every", "n", n))


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


def _positive(function: str, argument: str, value: int) -> int:
    if not isinstance(value, SupportsIndex) or index(value) < 1:
        raise ValueError(f"{function}({argument}={value!r}) takes a positive integer.")
    return index(value)
