"""Runs the benchmarks: every contender in a process of its own, in turn, and the ratios of their medians.

A benchmark is a file in this folder with a list ``CASES``, such as ``symmetric.py``. Naming some of them replaces only
their results in ``results.md`` and ``results.json``, which holds every sample:

    python benchmarks/harness.py [NAME ...] [--rounds N] [--quick] [--out FOLDER] [--list]

On a GPU or TPU, the rows in the folder ``accelerator`` run in one process, until the seconds of the budget are spent:

    python benchmarks/harness.py --accelerator [NAME ...] [--budget SECONDS] [and the options above]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import import_module
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from _process import Failed, Worker, peer_python, serve
from _results import machine, summary, write
from accelerator import ROWS

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.stem for path in HERE.glob("[!_]*.py") if path.stem != "harness")
Numbers = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Attributes:
        setup: takes the sizes of the case, loads and compiles what it needs, and returns the function to measure, which
            blocks until all is done. An array that it returns must be that of the other contenders; a dictionary is
            recorded beside, or in place of, what is measured: ``seconds``, ``growth`` (of the process's memory, at its
            peak) and ``peak`` (all of that memory), in bytes.
        about: says what it does; may name sizes in braces.
        peer: whether it runs in the environment of the peer.
        rounds: at most; None for those of the case.
        warm: whether to call the function once before it is measured.
        fresh: whether every round gets a new process.
    """

    setup: Callable[..., Callable[[], Any]]
    about: str
    peer: bool = False
    rounds: int | None = None
    warm: bool = True
    fresh: bool = False


@dataclass(frozen=True)
class Target:
    """A number to reach.

    Attributes:
        what: the number is.
        value: of one number for each contender (of a round, or the medians), and the medians.
        of: which number of a sample it is made of.
        unit: ``bytes``, or none for a ratio.
        at_most: the largest value that reaches the target.
        at_least: the smallest one.
    """

    what: str
    value: Callable[[Numbers, Numbers], float]
    of: str = "seconds"
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    def judge(self, samples: dict[str, list[Numbers | None]]) -> dict[str, Any]:
        """The value of the medians, those of each round, and whether the target is reached."""
        rounds: list[Numbers] = [{} for _ in next(iter(samples.values()), [])]
        for name, column in samples.items():
            for row, sample in zip(rounds, column, strict=True):
                if sample is not None and self.of in sample:
                    row[name] = sample[self.of]
        names = [name for name in samples if any(name in row for row in rounds)]
        medians = {name: median(row[name] for row in rounds if name in row) for name in names}
        verdict = {"what": self.what, "unit": self.unit, "at_most": self.at_most, "at_least": self.at_least}
        values: list[float] = []
        for row in (medians, *rounds):
            # A contender that could not run, or sat this round out, has no number.
            with suppress(KeyError):
                values.append(self.value(row, medians))
        if not values:
            return verdict | {"value": None, "rounds": [], "reached": None}
        low, high = (-inf if self.at_least is None else self.at_least), (inf if self.at_most is None else self.at_most)
        judged = None if (low, high) == (-inf, inf) else low <= values[0] <= high
        return verdict | {"value": values[0], "rounds": values[1:], "reached": judged}


def ratio(a: str, b: str, **target: Any) -> Target:
    """``a`` over the fastest of the contenders whose names start with ``b``."""

    def value(numbers: Numbers, medians: Numbers) -> float:
        fastest = min((name for name in medians if name.startswith(b)), key=medians.__getitem__, default=b)
        return numbers[a] / numbers[fastest]

    return Target(f"{a} / {b}", value, **target)


@dataclass(frozen=True)
class Case:
    """Contenders for the same work.

    Attributes:
        title: may name sizes in braces.
        contenders: by name.
        targets: to reach.
        sizes: that every contender's setup takes.
        quick: sizes for a smoke test.
        rounds: how often each contender is measured.
        shows: which number of the samples the table shows.
    """

    title: str
    contenders: dict[str, Contender]
    targets: list[Target]
    sizes: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    rounds: int = 7
    shows: str = "seconds"


def compare(name: str, number: int, case: Case, rounds: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures the contenders of a case in turn, one at a time, each round in another order."""
    entries: dict[str, Any] = {}
    sizes = case.quick if quick else case.sizes
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for who, contender in case.contenders.items():
            entries[who] = {"about": contender.about.format(**sizes), "samples": [None] * rounds}
            python, missing = peer_python(say) if contender.peer else (sys.executable, "")
            if missing:
                entries[who]["skipped"] = missing
                continue
            order = {"name": name, "case": number, "contender": who, "quick": quick}
            workers[who] = stack.enter_context(Worker(python, order, contender.fresh))
        # Turn -1 sets all contenders up.
        for turn in range(-1, rounds):
            for who in rotated(list(workers), turn):
                if turn < (case.contenders[who].rounds or rounds):
                    say(f"{name}: {f'round {turn + 1} of {rounds}' if turn >= 0 else 'set up'}, {who}")
                    if not measure(workers[who], turn, entries[who]):
                        del workers[who]
    return judged(case, sizes, entries)


def judged(case: Case, sizes: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """The record of a case: its contenders with their samples, and its targets."""
    samples = {who: entry["samples"] for who, entry in entries.items()}
    return {
        "title": case.title.format(**sizes),
        "sizes": sizes,
        "shows": case.shows,
        "contenders": entries,
        "targets": [target.judge(samples) for target in case.targets],
        "disagree": disagreement(samples),
    }


def measure(worker: Worker, turn: int, entry: dict[str, Any]) -> bool:
    """A sample of a contender into its entry, or its failure; before the first round, waits until it is set up."""
    try:
        if turn < 0:
            worker.ready()
        else:
            entry["samples"][turn] = worker.run()
    except Failed as failure:
        entry["failed"] = str(failure)
    entry["versions"] = worker.versions
    return "failed" not in entry


def rotated(names: list[str], turn: int) -> list[str]:
    start = max(turn, 0) % len(names) if names else 0
    return names[start:] + names[:start]


def disagreement(samples: dict[str, list[Any]]) -> str | None:
    """What the results of the contenders are, where they are not the same."""
    results = {who: next((s["result"] for s in column if s and "result" in s), None) for who, column in samples.items()}
    known = {who: value for who, value in results.items() if value is not None}
    if not known or max(known.values()) - min(known.values()) <= 1e-3 * max(known.values()):
        return None
    return ", ".join(f"{who} {value:.6g}" for who, value in known.items())


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run, of {', '.join(NAMES)}")
    parser.add_argument("--accelerator", action="store_true", help=f"run rows for a GPU or TPU: {', '.join(ROWS)}")
    parser.add_argument("--budget", type=float, default=240, help="seconds after which --accelerator starts no row")
    parser.add_argument("--rounds", type=int, help="how often to measure each contender")
    parser.add_argument("--quick", action="store_true", help="small sizes and two rounds, written only with --out")
    parser.add_argument("--out", type=Path, help="folder for the results, if not that of the benchmarks")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    known = list(ROWS) if options.accelerator else NAMES
    if unknown := set(options.names) - set(known):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be 1 or more")
    if options.worker:
        serve(options.worker)
        return 0
    if options.accelerator:
        return import_module("accelerator._run").run(options)
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Runs the benchmarks named; 1 where a contender failed."""
    # The workers of the peer read this file too, and its environment may lack rich.
    from rich.console import Console

    console, failed = Console(highlight=False), False
    for name in options.names or NAMES:
        cases = import_module(name).CASES
        if options.list:
            console.print(f"[bold]{name}[/bold] {import_module(name).__doc__.split(chr(10))[0]}")
            continue
        with console.status("") as status:
            record = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "quick": options.quick, "cases": []}
            for number, case in enumerate(cases):
                rounds = options.rounds or (2 if options.quick else case.rounds)
                record["cases"].append(compare(name, number, case, rounds, options.quick, status.update))
                lines, bad = summary(record["cases"][-1])
                console.print(*lines, sep="\n", markup=False, soft_wrap=True)
                failed |= bad
        if options.out or not options.quick:
            write(options.out or HERE, name, record)
    return int(failed)


if __name__ == "__main__":
    # The benchmarks import this file as a module, so the main function of that module runs.
    from harness import main

    sys.exit(main())
