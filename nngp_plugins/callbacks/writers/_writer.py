"""What a tracker takes as a writer, and how its errors are kept from training."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Protocol


class Writer(Protocol):
    """Takes the numbers of each snapshot; it may also have ``flush()`` and ``close()``."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Writes ``{name: number}`` of a training step."""


class Guarded:
    """A writer in a thread of its own, so that neither its errors nor its waiting end training.

    The first error becomes a warning, and the next snapshot is tried again. A writer that does not return is dropped.

    Args:
        writer: the writer.
        warn: takes the warning. The writer is called in a thread in which ``warnings.warn`` would be lost.

    Attributes:
        patience: the seconds that a writer may take for one call while somebody waits for it, until it is dropped.
        most: the snapshots that may wait for a writer, until it is dropped.
    """

    patience: float = 20.0
    most: int = 10_000

    def __init__(self, writer: Writer, warn: Callable[[str], None]):
        self._writer, self._warn, self._warned, self._dropped = writer, warn, False, False
        self._calls: SimpleQueue[tuple[str, tuple[Any, ...]]] = SimpleQueue()
        self._given = self._done = 0
        self._has_done = threading.Condition()
        self._thread: threading.Thread | None = None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a copy of the numbers of a step, and does not wait for it."""
        self._give("write_scalars", step, dict(scalars))
        if self._given - self._done > self.most:
            self._drop(f"has {self.most:,} snapshots to write")

    def flush(self) -> None:
        """Waits for what was given so far, and flushes the writer if it has a ``flush``."""
        self._give("flush")
        self._wait()

    def close(self) -> None:
        """Closes a writer of this package; other writers are flushed, because their users close them."""
        is_ours = type(self._writer).__module__.startswith(f"{__package__}.")
        self._give("close" if is_ours else "flush")
        self._wait()
        self._dropped = True
        self._calls.put(("", ()))

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is that of the writer."""
        return self._thread is threading.current_thread()

    def _give(self, method: str, *arguments: Any) -> None:
        if self._dropped:
            return
        if self._thread is None:
            # The interpreter does not wait for a daemon, which may never end.
            self._thread = threading.Thread(target=self._work, name="kernel-tracker-writer", daemon=True)
            self._thread.start()
        self._given += 1
        self._calls.put((method, arguments))

    def _wait(self) -> None:
        """Waits until all calls are done, as long as there is one more from time to time."""
        # A writer that flushes the tracker would wait for itself.
        if self.is_here:
            return
        with self._has_done:
            while not self._dropped and self._done < self._given:
                if not self._has_done.wait(self.patience):
                    self._drop(f"has not returned for {self.patience:.0f} seconds")

    def _drop(self, why: str) -> None:
        if not self._dropped:
            self._dropped = True
            self._warn(
                f"the writer {self._name()} {why}, and gets nothing more; the tracker's history has all numbers."
            )

    def _work(self) -> None:
        while (call := self._calls.get())[0]:
            if not self._dropped:
                self._try(call[0], *call[1])
            with self._has_done:
                self._done += 1
                self._has_done.notify_all()

    def _name(self) -> str:
        """The writer as its ``repr`` says, if it has one that works."""
        try:
            return repr(self._writer)
        except BaseException:  # noqa: BLE001
            return f"of type {type(self._writer).__name__}"

    def _try(self, method: str, *arguments: Any) -> None:
        try:
            if (call := getattr(self._writer, method, None)) is not None:
                call(*arguments)
        except BaseException as error:  # noqa: BLE001  # Training goes on, whatever a writer does: also if it exits.
            if self._warned:
                return
            self._warned = True
            when = f" at step {arguments[0]}" if arguments else ""
            self._warn(
                f"the writer {self._name()} failed in {method}{when} ({type(error).__name__}: {error}). It will be "
                "tried again at the next snapshot, and fail in silence; the tracker's history has all numbers."
            )


def is_module(writer: Any, name: str) -> bool:
    """Whether a writer is the module of this name, such as ``wandb``."""
    return isinstance(writer, ModuleType) and writer.__name__ == name


def takes_steps(log: Any) -> bool:
    """Whether ``log({}, step=0)`` is a possible call; NumPy and loggers have a ``log`` of another kind."""
    if not callable(log):
        return False
    try:
        inspect.signature(log).bind({}, step=0)
    except (TypeError, ValueError):
        # Functions written in C may have no signature, which is a ValueError.
        return False
    return True
