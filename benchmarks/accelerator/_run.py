"""The command ``harness.py --accelerator``: row after row until the budget is spent."""

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import jax
from _device import compilations
from _results import machine, summary, write
from harness import Case

from . import ROWS
from ._compare import compare_here

HERE = Path(__file__).resolve().parents[1]
HEADER = """\
# Benchmarks on an accelerator

Written by `python benchmarks/harness.py --accelerator`. The contenders of a row run in one process, in turn. Times are
medians (least – most) of samples of at least 10 ms; a ratio is that of the medians, and beside it the median (least –
most) of its values in each round.
"""


def say(*lines: Any) -> None:
    """Lines at once, because the process may be stopped at any time."""
    print(*lines, sep="\n", flush=True)


def run(options: argparse.Namespace) -> int:
    """Runs the rows named; 1 where there is no accelerator, or a contender failed."""
    start = time.perf_counter()
    if options.list:
        for name, (_, about) in ROWS.items():
            say(f"{name}: {about}")
        return 0
    if jax.default_backend() == "cpu" and not options.quick:
        say("JAX finds no accelerator here; --accelerator --quick runs tiny sizes on the CPU.")
        return 1
    # The copy of the library that these files belong to is measured, also where another one or none is installed.
    sys.path.insert(1, str(HERE.parent))
    card = f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"
    failed, skipped = False, []
    with compilations() as made:
        for name in options.names or ROWS:
            bad, left = run_row(name, card, options, start + options.budget)
            failed |= bad
            skipped += left
    for what in skipped:
        say(f"skipped, because {options.budget:g} s were over: {what}")
    total = time.perf_counter() - start
    say(f"total: {total:.0f} s, {made.seconds:.0f} s of them for {made.programs} compilations; {card}")
    return int(failed)


def run_row(name: str, card: str, options: argparse.Namespace, deadline: float) -> tuple[bool, list[str]]:
    """Whether a contender of the row failed, and what the budget did not suffice for."""
    if time.perf_counter() > deadline:
        return False, [name]
    module, _, attribute = ROWS[name][0].partition(".")
    try:
        cases: list[Case] = getattr(importlib.import_module(f"accelerator.{module}"), attribute)
    except ModuleNotFoundError as missing:
        say(f"{name}: skipped, because {missing.name} is not installed")
        return False, []
    say(f"{name} ({card})")
    record = {"date": time.strftime("%Y-%m-%d"), "machine": f"{card.split(',')[0]}, {machine()}"}
    record |= {"quick": options.quick, "cases": []}
    failed, left = False, []
    for case in cases:
        if time.perf_counter() > deadline:
            left.append(f"{name}, {case.title.format(**(case.quick if options.quick else case.sizes))}")
            continue
        rounds = min(case.rounds, 2) if options.quick else case.rounds
        if options.rounds and case.rounds > 1:
            rounds = options.rounds
        record["cases"].append(compare_here(case, rounds, options.quick, deadline))
        lines, bad = summary(record["cases"][-1])
        say(*lines, took(record["cases"][-1]["took"]))
        failed |= bad
    if options.out or not options.quick:
        write(options.out or HERE, name, record, "results-accelerator", HEADER)
    return failed, left


def took(numbers: dict[str, float]) -> str:
    return "  took {seconds:.1f} s, {compilation:.1f} s of them for {programs} compilations".format(**numbers)
