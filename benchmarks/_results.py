"""What is made of the samples: lines for the terminal, ``results.json`` and ``results.md``."""

import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

HEADER = """\
# Benchmarks

Written by `make bench`. Every contender runs in a process of its own, one at a time, in turn. Times are medians
(least – most); a ratio is that of the medians, and beside it the median (least – most) of its values in each round.
"""


def machine() -> str:
    """What this runs on."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release().split('-')[0]}"


def write(folder: Path, name: str, record: dict[str, Any], stem: str = "results", header: str = HEADER) -> None:
    """Puts a benchmark's record in the place of its last one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results = dict(sorted((results | {name: record}).items()))
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results, header))


def summary(case: dict[str, Any]) -> tuple[list[str], bool]:
    """A case in a few lines, and whether something went wrong."""
    lines = [case["title"]]
    for who, entry in case["contenders"].items():
        lines.append(f"  {who}: {spread(entry['samples'], case['shows'])}{trouble(entry)}")
    for target in case["targets"]:
        wanted = f"; target {limit(target)}, {reached(target)}" if limit(target) else ""
        lines.append(f"  {target['what']}: {got(target)}{wanted}")
    if case["disagree"]:
        lines.append(f"  the results are not the same: {case['disagree']}")
    return lines, bool(case["disagree"]) or any("failed" in entry for entry in case["contenders"].values())


def markdown(results: dict[str, Any], header: str = HEADER) -> str:
    """All results as a page."""
    targets = ["| case | measured | target | got | in each round | reached |", "|---|---|---|---|---|---|"]
    times = ["| case | contender | median | runs |", "|---|---|---|---|"]
    made: dict[str, list[str]] = {}
    for name, record in results.items():
        quick = ", quick" if record["quick"] else ""
        for case in record["cases"]:
            targets += [
                f"| {case['title']} | {cell(t['what'])} | {limit(t)} | {value(t['value'], t['unit'])} | "
                f"{in_rounds(t)} | {reached(t)} |"
                for t in case["targets"]
            ]
            times += [
                f"| {case['title']} | {who}: {cell(entry['about'])} | "
                f"{spread(entry['samples'], case['shows'])}{cell(trouble(entry))} | {len(taken(entry['samples']))} |"
                for who, entry in case["contenders"].items()
            ]
            if case["disagree"]:
                times.append(f"| {case['title']} | the results are not the same | {case['disagree']} | |")
            for entry in case["contenders"].values():
                if used := ", ".join(f"{package} {version}" for package, version in entry.get("versions", {}).items()):
                    where = made.setdefault(f"{record['machine']}, {record['date']}{quick}: {used}", [])
                    where += [name] * (name not in where)
    places = [f"- {place} ({', '.join(names)})" for place, names in made.items()]
    return "\n".join([header, *targets, "", *times, "", "Measured on", "", *places, ""])


def taken(samples: list[dict[str, float] | None]) -> list[dict[str, float]]:
    """The samples of the rounds that a contender took part in."""
    return [sample for sample in samples if sample is not None]


def spread(samples: list[dict[str, float] | None], shows: str) -> str:
    numbers = [sample[shows] for sample in taken(samples)]
    unit = "s" if shows == "seconds" else "bytes"
    if not numbers:
        return "–"
    return f"{value(median(numbers), unit)} ({value(min(numbers), unit)} – {value(max(numbers), unit)})"


def trouble(entry: dict[str, Any]) -> str:
    """Why a contender has no numbers, or fewer; and what it says of itself."""
    return "".join(f" {word}: {entry[word]}" for word in ("skipped", "failed", "notes") if word in entry)


def got(target: dict[str, Any]) -> str:
    return f"{value(target['value'], target['unit'])}, in each round {in_rounds(target)}"


def in_rounds(target: dict[str, Any]) -> str:
    rounds, unit = target["rounds"], target["unit"]
    if not rounds:
        return "–"
    return f"{value(median(rounds), unit)} ({value(min(rounds), unit)} – {value(max(rounds), unit)})"


def limit(target: dict[str, Any]) -> str:
    for word, sign in (("at_most", "≤"), ("at_least", "≥")):
        if target[word] is not None:
            return f"{sign} {target[word]:g}" if not target["unit"] else f"{sign} {value(target[word], target['unit'])}"
    return ""


def reached(target: dict[str, Any]) -> str:
    return {True: "yes", False: "**no**", None: ""}[target["reached"]]


def value(number: float | None, unit: str) -> str:
    """A number for people."""
    if number is None:
        return "–"
    if unit == "s":
        return f"{number:.3g} s" if number >= 1 else f"{1e3 * number:.3g} ms"
    if unit == "bytes":
        return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"
    return f"{number:.3f}" if number < 10 else f"{number:.3g}"


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", "\\|")
