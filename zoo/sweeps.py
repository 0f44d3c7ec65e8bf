"""A grid of trainings, each of which is a ``nngp-zoo track`` with a run folder of its own."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Any

import numpy as np

from nngp_plugins import History, write_report

from . import written
from .coordinates import Slope, slope

AXES = ("width", "depth", "lr")
"""The axes of a grid whose values are numbers that a power law may depend on."""
DONE, DIVERGED, INTERRUPTED = 0, 3, 130
FILE = "cell.json"


@dataclass(frozen=True, eq=False)
class Cell:
    """One training of a grid.

    Attributes:
        values: its value of each axis of the grid.
        run: its run folder.
        arguments: the words after ``nngp-zoo`` that train it.
    """

    values: Mapping[str, Any]
    run: Path
    arguments: Sequence[str]

    def code(self) -> int | None:
        """Returns the exit code with which it ended; None if it did not end yet.

        Raises:
            ValueError: the folder holds a training with other options.
        """
        try:
            there = json.loads((self.run / FILE).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        if there.get("arguments") != list(self.arguments):
            raise ValueError(f"{self.run.name} was trained with other options; name another folder.")
        return int(there["code"])

    def ended(self, code: int) -> None:
        """Notes the exit code with which it ended."""
        with written.whole(self.run / FILE) as file:
            file.write(json.dumps({"arguments": list(self.arguments), "code": code}).encode())


def grid(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yields every combination of the values of axes, the last axis fastest.

    Example:
        >>> list(grid({"width": [8, 16], "seed": [0]}))
        [{'width': 8, 'seed': 0}, {'width': 16, 'seed': 0}]
    """
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def run_cells(cells: Sequence[Cell], jobs: int, on_cell: Callable[[], object]) -> None:
    """Trains the cells that did not end yet, each in a process of its own, or in this one if there is one job.

    Args:
        cells: the cells.
        jobs: number of processes that run at the same time.
        on_cell: called for each cell that ends.

    Raises:
        RuntimeError: a cell was refused; its one line is the message.
        KeyboardInterrupt: Ctrl-C; the cells that were running are saved.
    """
    left = [cell for cell in cells if cell.code() is None]
    if jobs == 1:
        for cell in left:
            _note(cell, _here(cell), "", on_cell)
    elif left:
        with tempfile.TemporaryDirectory() as cache:
            _in_processes(left, jobs, cache, on_cell)


def _here(cell: Cell) -> int:
    from .__main__ import main

    try:
        main(cell.arguments)
    except SystemExit as end:
        return int(end.code or 0)


def _in_processes(cells: Sequence[Cell], jobs: int, cache: str, on_cell: Callable[[], object]) -> None:
    # Cells of one width compile the same functions.
    compiled = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**compiled, **environ}
    waiting, running = list(reversed(cells)), dict[Cell, Any]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop()
                command = [sys.executable, "-m", "zoo", *cell.arguments]
                running[cell] = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
                )
            time.sleep(0.05)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                process = running.pop(cell)
                _note(cell, process.returncode, process.communicate()[1], on_cell)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.communicate()


def _note(cell: Cell, code: int, said: str, on_cell: Callable[[], object]) -> None:
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (DONE, DIVERGED):
        *_, last = "", *said.strip().splitlines()
        raise RuntimeError(f"{cell.run.name} ended with exit code {code}. {last.removeprefix('nngp-zoo: ')}".rstrip())
    cell.ended(code)
    on_cell()


def result(cell: Cell) -> dict[str, Any]:
    """Returns the values of a cell with its last numbers: the loss, the test score, and the drift of each layer.

    The drift is the relative change of the kernel since initialisation, ``‖K − K₀‖ / ‖K₀‖``. ``drift`` is its median
    over layers, nan for a training that diverged, which has no other numbers.
    """
    diverged = cell.code() == DIVERGED
    row: dict[str, Any] = {**cell.values, "run": cell.run.name, "diverged": diverged, "drift": np.nan}
    if diverged:
        return row
    history = History.load(cell.run)
    changes = dict(zip(history.layers, map(float, history.metric("relative_change")[-1]), strict=True))
    row |= {"drift": float(np.median(list(changes.values())))}
    row |= {name: float(history.scalar(name)[-1]) for name in history.scalars}
    return row | {f"drift/{layer}": change for layer, change in changes.items()}


def report(cells: Sequence[Cell], title: str, page: Path) -> Path | None:
    """Writes the report of all cells; one that diverged before its first snapshot has nothing to show.

    Returns:
        The page; None if there is nothing to show at all.
    """
    runs = [cell.run for cell in cells if cell.code() == DONE or History.load(cell.run).rows]
    return write_report(runs, title=title, path=page) if runs else None


@dataclass(frozen=True)
class Curve:
    """The drift against one axis, with all other axes held fixed but the seed.

    Attributes:
        axis: the axis.
        fixed: the values of the other axes.
        x: the values of the axis.
        drift: ``(X, S)`` for S seeds.
        slope: the slope of ``log drift`` against ``log x``.
    """

    axis: str
    fixed: Mapping[str, Any]
    x: Sequence[float]
    drift: np.ndarray
    slope: Slope

    @property
    def name(self) -> str:
        """The fixed values in words."""
        return ", ".join(f"{key} {value}" for key, value in self.fixed.items()) or "drift"

    @property
    def numbers(self) -> dict[str, Any]:
        """The slope and what it belongs to, for scripts."""
        return {"axis": self.axis, "fixed": self.fixed, "slope": self.slope.value, "error": self.slope.error}


def curves(rows: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[Any]]) -> list[Curve]:
    """Returns the drift against each of :data:`AXES` that has several values.

    Args:
        rows: the :func:`result` of each cell of a grid.
        axes: the axes of the grid, one of which is ``seed``.
    """
    found = []
    for axis in (name for name in AXES if len(axes.get(name, ())) > 1):
        others = {name: values for name, values in axes.items() if name not in (axis, "seed")}
        for fixed in grid(others):
            chosen = [row for row in rows if all(row[key] == value for key, value in fixed.items())]
            drift = {(row[axis], row["seed"]): row["drift"] for row in chosen}
            x = sorted(axes[axis])
            table = np.array([[drift[place, seed] for seed in axes["seed"]] for place in x])
            shown = {key: value for key, value in fixed.items() if len(axes[key]) > 1}
            found.append(Curve(axis, shown, x, table, slope(x, table)))
    return found
