"""What a tracker takes as a writer, and how its errors are kept from training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol


class Writer(Protocol):
    """Takes the numbers of each snapshot; it may also have ``flush()`` and ``close()``."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Writes ``{name: number}`` of a training step."""


class Guarded:
    """A writer whose errors do not end training: the first one becomes a warning, and the next snapshot is tried again.

    Args:
        writer: the writer.
        warn: takes the warning. The writer may be called in a thread in which ``warnings.warn`` would be lost.
    """

    def __init__(self, writer: Writer, warn: Callable[[str], None]):
        self._writer, self._warn, self._warned = writer, warn, False

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a copy of the numbers of a step."""
        self._try("write_scalars", step, dict(scalars))

    def flush(self) -> None:
        """Flushes the writer if it has a ``flush``."""
        self._try("flush")

    def close(self) -> None:
        """Closes a writer of this package; other writers are flushed, because their users close them."""
        self._try("close" if type(self._writer).__module__.startswith(f"{__package__}.") else "flush")

    def _try(self, method: str, *arguments: Any) -> None:
        call = getattr(self._writer, method, None)
        if call is None:
            return
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001  # Training goes on, whatever a writer does.
            if self._warned:
                return
            self._warned = True
            when = f" at step {arguments[0]}" if arguments else ""
            self._warn(
                f"the writer {self._writer!r} failed in {method}{when} ({type(error).__name__}: {error}). It will be "
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
