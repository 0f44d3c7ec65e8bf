"""What changes while it is shown: in its place in terminals and notebooks, a line a minute in log files."""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._show import as_html

if TYPE_CHECKING:
    from rich.console import RenderableType

SECONDS_BETWEEN_LINES = 60.0
"""In a log file."""
_SECONDS_BETWEEN_UPDATES = 0.5


class InNotebook:
    """An output of a notebook's cell that is replaced, without widgets, so that exported notebooks have it too."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, what: RenderableType) -> None:
        """Shows this in place of what was shown before."""
        ipython = import_module("IPython.display")
        page = ipython.HTML(as_html(what))
        if self._handle is None:
            self._handle = ipython.display(page, display_id=True)
        else:
            self._handle.update(page)


class Bars:
    """Progress bars on stderr."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._console = Console(stderr=True)
        columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
        times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
        self._bars = progress.Progress(*columns, *times, console=self._console)
        self._notebook = InNotebook() if self._console.is_jupyter else None
        self._is_live = self._console.is_terminal and self._notebook is None
        self._shown = time.monotonic()

    def __enter__(self) -> Bars:
        if self._is_live:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_live:
            self._bars.stop()
        else:
            self._show(self._bars.get_renderable())

    def add(self, name: str, total: int) -> Any:
        """Adds a bar.

        Args:
            name: what is counted.
            total: how many there are.

        Returns:
            The function to call with the number of those that were done.
        """
        task = self._bars.add_task(name, total=total)

        def advance(done: int) -> None:
            self._bars.advance(task, done)
            wait = SECONDS_BETWEEN_LINES if self._notebook is None else _SECONDS_BETWEEN_UPDATES
            if not self._is_live and time.monotonic() - self._shown >= wait:
                self._shown = time.monotonic()
                line = "  ".join(f"{one.description} {one.completed:,.0f}/{one.total:,.0f}" for one in self._bars.tasks)
                self._show(line if self._notebook is None else self._bars.get_renderable())

        return advance

    def _show(self, what: Any) -> None:
        if self._notebook is None:
            self._console.print(what)
        else:
            self._notebook.show(what)
