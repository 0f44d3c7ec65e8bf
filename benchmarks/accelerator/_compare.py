"""Measures the contenders of a case in turn in this one process: each start of a GPU's libraries takes seconds."""

import gc
import time
from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
from _device import compilations
from _process import versions
from harness import Case, Contender, judged, rotated

SHORTEST = 0.01  # seconds of a sample, so that clocks and wake-ups do not count


class Skipped(Exception):
    """A contender cannot run here, which is no fault of its own."""


class Runner:
    """A contender that is set up and compiled."""

    def __init__(self, contender: Contender, sizes: dict[str, Any]):
        self.run: Callable[[], Any] = contender.setup(**sizes)
        self.calls, self.result = 1, None
        if contender.warm:
            first = self.run()
            self.result = fingerprint(first)
            if not isinstance(first, dict) or "seconds" not in first:
                self.calls = ceil(SHORTEST / self.sample()["seconds"])

    def sample(self) -> dict[str, Any]:
        """One sample; small work is repeated, and each call blocks."""
        start = time.perf_counter()
        for _ in range(self.calls):
            result = self.run()
        sample = {"seconds": (time.perf_counter() - start) / self.calls}
        if self.result is not None:
            sample["result"] = self.result
        return sample | (result if isinstance(result, dict) else {})


def fingerprint(result: Any) -> float | None:
    """Tells a kernel, whatever it is scaled by; it reads a few rows only, because a transfer of all takes long."""
    if result is None or isinstance(result, dict):
        return None
    rows = np.abs(np.asarray(result[:: max(1, len(result) // 8)]))
    return float(rows.mean() / rows.max())


def compare_here(case: Case, rounds: int, quick: bool, deadline: float) -> dict[str, Any]:
    """The record of a case, as ``harness.compare`` makes it; after the deadline, no second round starts."""
    sizes = case.quick if quick else case.sizes
    entries: dict[str, Any] = {}
    runners: dict[str, Runner] = {}
    start = time.perf_counter()
    with compilations() as made:
        for who, contender in case.contenders.items():
            entries[who] = {"about": contender.about.format(**sizes), "samples": [None] * rounds}
            entries[who]["versions"] = versions()
            attempt(entries[who], lambda: runners.update({who: Runner(contender, sizes)}))  # noqa: B023
        for turn in range(rounds):
            if turn and time.perf_counter() > deadline:
                break
            for who in rotated(list(runners), turn):
                if turn < (case.contenders[who].rounds or rounds) and not measure(runners[who], turn, entries[who]):
                    del runners[who]
    runners.clear()
    gc.collect()  # frees the arrays of this case before the next one
    took = {"seconds": time.perf_counter() - start, "programs": made.programs, "compilation": made.seconds}
    return judged(case, sizes, entries) | {"took": took}


def measure(runner: Runner, turn: int, entry: dict[str, Any]) -> bool:
    """A sample into the entry, and whether there is one."""

    def one() -> None:
        sample = runner.sample()
        if notes := sample.pop("notes", ""):
            entry["notes"] = notes
        entry["samples"][turn] = sample

    return attempt(entry, one)


def attempt(entry: dict[str, Any], act: Callable[[], None]) -> bool:
    """Whether it worked; the entry says why not, and the other contenders go on."""
    try:
        act()
    except Skipped as reason:
        entry["skipped"] = str(reason)
    except Exception as failure:  # noqa: BLE001 the other contenders go on
        entry["failed"] = f"{type(failure).__name__}: {str(failure).strip().split(chr(10))[0]}"
    return not {"skipped", "failed"} & set(entry)
