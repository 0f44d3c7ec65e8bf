"""How every command behaves: refusals of one line, exit codes, progress on stderr, results on stdout."""

from __future__ import annotations

import json
import math
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_CODES = "Exit codes: 0 done, 1 the answer is no, 2 refused before any work, 3 diverged, 130 interrupted."


class CommandError(Exception):
    """Ends a command with one line on stderr.

    Attributes:
        code: the exit code.
    """

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


@contextmanager
def refusing(option: str, value: Any = None) -> Iterator[None]:
    """Turns errors into one line that names an option as it was typed.

    Args:
        option: such as ``--run``, or ``MODEL`` for an argument.
        value: what was typed.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
        if isinstance(value, Path):
            message = message.replace(f"run={str(value)!r}", "it").replace(f"path={str(value)!r}", "it")
        typed = option if value is None else f"{option} {value}"
        raise CommandError(f"{typed}: {' '.join(message.split())}") from error


@contextmanager
def manners(again: str) -> Iterator[None]:
    """Says in one line why a command ends early.

    Args:
        again: what the same command does after Ctrl-C.
    """
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        yield
    except CommandError as error:
        errors.print(f"nngp-zoo: {error}")
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        errors.print(f"nngp-zoo: interrupted; {again}")
        raise typer.Exit(130) from None


class CtrlC:
    """Within ``with``, the first Ctrl-C is only noted, so that a step ends and is saved; the second one interrupts.

    Attributes:
        pressed: whether it was pressed.
    """

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> CtrlC:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def check(self) -> None:
        """Raises the interrupt that was noted."""
        if self.pressed:
            raise KeyboardInterrupt


@dataclass
class Common:
    """What all commands share.

    Attributes:
        quiet: whether nothing is printed but errors, and JSON if asked for.
        as_json: whether the result is one JSON document on stdout.
        knobs: the knobs of the model that were given.
    """

    quiet: bool = False
    as_json: bool = False
    knobs: dict[str, Any] = field(default_factory=dict)

    @property
    def console(self) -> Console:
        """Where results go."""
        return Console(quiet=self.quiet or self.as_json, soft_wrap=True, markup=False, highlight=False)

    def say(self, *what: Any) -> None:
        """Prints results for people."""
        for one in what:
            self.console.print(one, soft_wrap=isinstance(one, str))

    def warn(self, message: str) -> None:
        """Prints a line on stderr, whatever the options."""
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"nngp-zoo: {message}")

    def finish(self, result: Mapping[str, Any] | list[Any]) -> None:
        """Prints the result for scripts, if they asked for it."""
        if self.as_json:
            sys.stdout.write(json.dumps(_plain(result), indent=2) + "\n")

    def progress(self) -> Progress:
        """Returns a progress bar on stderr."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=Console(stderr=True), disable=self.quiet)


def _plain(value: Any) -> Any:
    """A value as JSON has it: NumPy numbers as numbers, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def positive(option: str, value: float) -> None:
    """Refuses a number that is not positive and finite."""
    if not 0 < value < math.inf:
        raise CommandError(f"{option} {value}: it must be a positive number.")


def listed(option: str, text: str, kind: type) -> tuple[Any, ...]:
    """Returns the values of an option that takes several, separated by commas, each once."""
    try:
        values = tuple(kind(word.strip()) for word in text.split(","))
    except ValueError:
        what = {int: "integers", float: "numbers"}.get(kind, "values")
        raise CommandError(f"{option} {text}: write it as {what} that are separated by commas.") from None
    if len(set(values)) < len(values):
        raise CommandError(f"{option} {text}: it has one value twice.")
    return values


def writable(option: str, path: Path, *, suffix: str = "") -> None:
    """Refuses a folder, or a file, that cannot be made or does not end in ``suffix``; it leaves nothing behind."""
    if not path.name.endswith(suffix):
        raise CommandError(f"{option} {path}: it must end in {suffix}.")
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        if not path.is_file():
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise CommandError(f"{option} {path}: it can't be written: {error.strerror}.") from None


def as_number(text: str) -> Any:
    """Returns the value of ``--set knob=value``: a number, a truth value, or a string."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
