"""The run folder: what a tracker writes, goes on with, and the report reads."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

from .._durable import AppendedLines, FolderInUseError, FolderLock, fingerprint, rename, replace_file
from .._typing import PyTree
from .._version import __version__
from ._rows import Row

RUN, METRICS, REFERENCE, LAST, NEXT = "run.json", "metrics.jsonl", "reference.npz", "last.npz", "next.npz"
# Settings that cannot change; a message can show their values.
_SHOWN = ("metrics", "keep_kernels", "reference")


class RunFolder:
    """Writes ``run.json``, ``metrics.jsonl`` (a line for each snapshot), ``reference.npz`` and ``last.npz``.

    A snapshot exists once its line is whole. Files grow by whole lines or are replaced, so a kill at any moment leaves
    the folder of some earlier moment.

    Args:
        path: the folder, which is made if there is none.
        about: what ``run.json`` says, as :func:`description` gives it.
        resume: whether a run that is there may go on.

    Attributes:
        path: the folder.
        about: the contents of ``run.json``.
        rows: the snapshots of an earlier process.
        warn: takes the warnings of this folder.

    Raises:
        FolderInUseError: another process, or another tracker of this one, writes there.
        FileExistsError: the folder holds a run, and ``resume`` is false.
        ValueError: the folder holds a run of something else, or is damaged.
        OSError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], *, resume: bool):
        self.path = Path(path)
        self.warn: Callable[[str], None] = warnings.warn
        self._argument = f"run={str(path)!r}"
        self._unwritten: list[str] = []
        self._warned = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path, self._argument)
        except FolderInUseError:
            raise
        except OSError as error:
            raise type(error)(error.errno, f"{self._argument} can't be written: {error.strerror}") from error
        try:
            if (self.path / METRICS).exists() and not (self.path / RUN).exists():
                raise ValueError(f"{self._argument} holds {METRICS} without {RUN}; name another folder.")
            self._lines = AppendedLines(self.path / METRICS)
            self._lines.open()
            self.rows = self._read()
            if self.rows:
                about = self._resumed(about, resume)
            self.describe(about)
        except BaseException:
            self._lock.release()
            raise

    def _read(self) -> list[Row]:
        if self._lines.torn:
            warnings.warn(
                f"{self._argument} ended within a line of {METRICS}, which is repaired: its snapshot was not finished.",
                stacklevel=5,
            )
        rows: list[Row] = []
        for number, line in enumerate(self._lines.take_lines(), 1):
            try:
                rows.append({**json.loads(line)})
                rows[-1]["step"] = int(rows[-1]["step"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{self._argument} is damaged in line {number} of {METRICS}: {error!r}.") from error
        return rows

    def _resumed(self, about: Mapping[str, Any], resume: bool) -> dict[str, Any]:
        """What ``run.json`` says of a run that goes on.

        Raises:
            FileExistsError: ``resume`` is false.
            ValueError: the run has another probe, other targets, other metrics or another reference, or keeps kernels
                or not.
        """
        if not resume:
            raise FileExistsError(f"{self._argument} already holds a run; name another folder, or delete this one.")
        try:
            old = json.loads((self.path / RUN).read_text())
        except ValueError as error:
            raise ValueError(f"{self._argument} holds a damaged {RUN}: {error}.") from error
        for name in ("probe", "targets", *_SHOWN):
            there, now = old.get(name), json.loads(json.dumps(about[name]))
            if there != now:
                shown = f": {there} there, {now} now" if name in _SHOWN else _width(old.get("x64"), about["x64"])
                raise ValueError(
                    f"{self._argument} is a run with other {name}{shown}; go on with the same, or name another folder."
                )
        again = {name: about[name] for name in ("created", "versions", "schedule", "config")}
        again["step"] = self.rows[-1]["step"]
        return {**old, "resumed": [*old.get("resumed", []), again]}

    def describe(self, about: Mapping[str, Any]) -> None:
        """Writes ``run.json``."""
        self.about = json.loads(json.dumps(about, default=str))
        text = json.dumps(self.about, indent=2) + "\n"
        replace_file(self.path / RUN, lambda file: file.write(text.encode()))

    def append(self, row: Row) -> None:
        """Adds a snapshot, safe on the disk when this returns; if the disk refuses it, a later call writes it too."""
        self._unwritten.append(json.dumps(row) + "\n")
        with self.warn_once():
            self._lines.append("".join(self._unwritten))
            self._unwritten.clear()

    @contextmanager
    def warn_once(self) -> Iterator[None]:
        """Turns errors of the disk into one warning, so that training goes on."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self.warn(
                    f"{self._argument} can't be written: {error}; training goes on, and snapshots that are missing are "
                    "written as soon as that is possible."
                )
            self._warned = True

    def save(self, name: str, **arrays: Any) -> bool:
        """Saves arrays as ``name``, whole or not at all; returns whether the disk took them."""
        with self.warn_once():
            replace_file(self.path / name, lambda file: np.savez(file, **arrays))
            return True
        return False

    def next_becomes_last(self) -> None:
        """Makes the arrays that were saved as ``next.npz`` those of the last snapshot, once its line is written."""
        with self.warn_once():
            rename(self.path / NEXT, self.path / LAST)

    def load(self, name: str) -> dict[str, np.ndarray]:
        """The arrays that were saved as ``name``.

        Raises:
            ValueError: the file is damaged or missing.
        """
        try:
            with (self.path / name).open("rb") as file, np.load(file, allow_pickle=False) as saved:
                return dict(saved)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"{self._argument}: {name} is damaged or missing: {error}; name another folder."
            ) from error

    def close(self) -> None:
        """Closes the files, and lets others write."""
        if self._unwritten:
            self.warn(f"{self._argument} lacks {len(self._unwritten)} snapshots, which the tracker's history has.")
        self._lines.close()
        self._lock.release()


def _width(there: bool | None, now: bool) -> str:
    """What to say of ``jax_enable_x64``, which decides whether JAX takes the same probe in float32 or in float64."""
    return "" if there in (None, now) else f", as JAX takes it: jax_enable_x64 is {there} there, {now} now"


def description(probe: PyTree, targets: np.ndarray, config: Mapping[str, Any] | None, **about: Any) -> dict[str, Any]:
    """What ``run.json`` says of a run: versions, the fingerprint of the probe, and the user's config."""
    versions = {"nngp-plugins": __version__, "jax": jax.__version__, "numpy": np.__version__}
    n = int(jax.tree.leaves(probe)[0].shape[0])
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | versions,
        "probe": {"n": n, "sha256": fingerprint(probe, with_paths=False)},
        "targets": fingerprint(targets, with_paths=False) if targets.size else None,
        **about,
        "config": dict(config or {}),
    }
