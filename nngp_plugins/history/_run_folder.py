"""The run folder: what a tracker writes, goes on with, and the report reads."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from .._durable import AppendedLines, FolderLock, check_plain, rename, replace_file
from .._fingerprint import fingerprint
from .._typing import PyTree
from .._version import __version__
from ._files import (
    FIRST_CHECKED,
    KERNELS,
    LAST,
    METRICS,
    NEXT,
    REFERENCE,
    RUN,
    read_about,
    read_arrays,
    refuse_others,
    write_npz,
)
from ._kept import cut_off
from ._lines import line_of, read_rows
from ._rows import Row

# Settings that cannot change; a message can show their values.
_SHOWN = ("metrics", "keep_kernels", "reference")
_LINES_AT_ONCE = 100


class RunFolder:
    """Writes ``run.json``, ``metrics.jsonl`` (a line for each snapshot), ``reference.npz`` and ``last.npz``.

    A snapshot exists once its line is whole. Files grow by whole lines or are replaced, so a kill at any moment leaves
    the folder of some earlier moment. What the disk refuses is held in memory, and written as soon as that is possible:
    the lines that are missing, and the newest contents of each other file.

    Args:
        path: the folder, which is made if there is none.
        about: what ``run.json`` says, as :func:`description` gives it.
        resume: whether a run that is there may go on.

    Attributes:
        path: the folder, which stays the same if the process goes to another one.
        about: the contents of ``run.json``.
        rows: the snapshots of an earlier process.
        warn: takes the warnings of this folder.

    Raises:
        FolderInUseError: another process, or another tracker of this one, writes there.
        FileExistsError: the folder holds a run, and ``resume`` is false, or it holds files that no tracker wrote.
        ValueError: the folder holds a run of something else, or is damaged.
        OSError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], *, resume: bool):
        self.warn: Callable[[str], None] = warnings.warn
        self._argument = f"run={str(path)!r}"
        self._rows: list[Row] = []
        self._files: dict[str, Callable[[BinaryIO], object]] = {}
        self._loaded: dict[str, dict[str, np.ndarray]] = {}
        self._warned = self._is_next_ready = False
        self._lock: FolderLock | None = None
        try:
            self.path: Path = Path(path).absolute()
            refuse_others(self.path, self._argument)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path, self._argument)
            self._lines = AppendedLines(self.path / METRICS, self._argument)
            self._begin(about, resume)
        except BaseException as error:
            # The exception may be kept, and this object with it.
            if self._lock is not None:
                self._lock.release()
            if not isinstance(error, OSError) or error.errno is None:
                raise
            file = f" ({error.filename})" if error.filename else ""
            raise OSError(error.errno, f"{self._argument} can't be written: {error.strerror}{file}") from error

    def _begin(self, about: Mapping[str, Any], resume: bool) -> None:
        """Reads what is there, and changes nothing before it is known that this run may go on."""
        if about["keep_kernels"] and (self.path / KERNELS).exists():
            check_plain(self.path / KERNELS, "a run folder")
        is_there = (self.path / RUN).exists()
        old = read_about(self.path) if is_there else {}
        self.rows: list[Row] = read_rows(self.path, self._lines.take_lines(), old)
        if self.rows:
            about = self._resumed(old, about, resume)
            # What is damaged is found before anything is changed.
            files = [REFERENCE, *(name for name in (NEXT, LAST) if (self.path / name).exists())]
            self._loaded = {name: read_arrays(self.path / name) for name in files}
        if self._lines.torn:
            warnings.warn(
                f"{self._argument} ended within a line of {METRICS}, which is repaired: its snapshot was not finished.",
                stacklevel=4,
            )
        try:
            if is_there:
                # This may find that another tracker writes here, so it comes before all changes.
                self._lines.open()
            self.about: dict[str, Any] = self._described(about)
            replace_file(self.path / RUN, self._files.pop(RUN))
            self._lines.open()
            if about["keep_kernels"]:
                cut_off(self.path, len(self.rows))
        except BaseException:
            self._lines.close()
            raise

    def _resumed(self, old: dict[str, Any], about: Mapping[str, Any], resume: bool) -> dict[str, Any]:
        """What ``run.json`` says of a run that goes on.

        Raises:
            FileExistsError: ``resume`` is false.
            ValueError: the run has another probe, other targets, other metrics or another reference, or keeps kernels
                or not.
        """
        if not resume:
            raise FileExistsError(f"{self._argument} already holds a run; name another folder, or delete this one.")
        for name in ("probe", "targets", *_SHOWN):
            there, now = old.get(name), json.loads(json.dumps(about[name]))
            if there != now:
                shown = f": {there} there, {now} now" if name in _SHOWN else _width(old.get("x64"), about["x64"])
                raise ValueError(
                    f"{self._argument} is a run with other {name}{shown}; go on with the same, or name another folder."
                )
        again = {name: about[name] for name in ("created", "versions", "schedule", "config")}
        again["step"] = self.rows[-1]["step"]
        # Version 0.1.0 wrote lines without checksums.
        checked = {FIRST_CHECKED: old.get(FIRST_CHECKED, len(self.rows) + 1)}
        return {**old, **checked, "resumed": [*old.get("resumed", []), again]}

    def describe(self, about: Mapping[str, Any]) -> None:
        """Writes ``run.json``."""
        self.about = self._described(about)
        self._write(RUN)

    def _described(self, about: Mapping[str, Any]) -> dict[str, Any]:
        text = json.dumps(about, default=str, indent=2) + "\n"
        self._files[RUN] = lambda file: file.write(text.encode())
        return json.loads(text)

    def save(self, name: str, **arrays: Any) -> None:
        """Saves arrays as ``name``, whole or not at all; what the disk refuses is saved by a later call."""
        self._files[name] = lambda file: write_npz(file, arrays)
        self._is_next_ready = False
        self._write(name)

    def append(self, row: Row) -> None:
        """Adds a snapshot, safe on the disk when this returns; if the disk refuses it, a later call writes it too."""
        self._rows.append(row)
        self._write(*self._files, with_lines=True)

    def next_becomes_last(self) -> None:
        """Makes the arrays that were saved as ``next.npz`` those of the last snapshot, once its line is written."""
        self._is_next_ready = True
        self._write()

    def _write(self, *names: str, with_lines: bool = False) -> None:
        """Writes what is not written yet; errors of the disk become one warning, so that training goes on.

        Args:
            *names: the files to write.
            with_lines: whether to write lines. They wait for the files without which nobody can read them.
        """
        try:
            # By now another tracker may write here, if somebody has deleted the folder.
            self._lines.open()
            for name in sorted(names, key=(RUN, REFERENCE, NEXT).index):
                self._replace(name)
            while with_lines and not self._files.keys() - {NEXT} and (rows := self._rows[:_LINES_AT_ONCE]):
                self._lines.append("".join(map(line_of, rows)))
                del self._rows[: len(rows)]
            if self._is_next_ready and not self._rows and NEXT not in self._files:
                self._is_next_ready = False
                rename(self.path / NEXT, self.path / LAST)
        except OSError as error:
            self._warn_once(error)

    def _replace(self, name: str) -> None:
        try:
            replace_file(self.path / name, self._files[name])
            del self._files[name]
        except (OSError, ValueError) as error:
            # NumPy may report as ValueError that it could not finish a file.
            self._warn_once(error)

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self.warn(
                f"{self._argument} can't be written: {error}; training goes on, and snapshots that are missing are "
                "written as soon as that is possible."
            )
        self._warned = True

    def load(self, name: str) -> dict[str, np.ndarray]:
        """The arrays that were saved as ``name``; :func:`in_order` gives those of the layers by their names.

        Raises:
            ValueError: the file is damaged or missing; the message says why.
        """
        arrays = self._loaded.pop(name, None)
        return read_arrays(self.path / name) if arrays is None else arrays

    def close(self) -> None:
        """Writes what is missing, closes the files, and lets others write."""
        if self._rows or self._files:
            self._write(*self._files, with_lines=True)
        if self._rows:
            self.warn(f"{self._argument} lacks {len(self._rows)} snapshots, which the tracker's history has.")
        self._lines.close()
        if self._lock is not None:
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
        FIRST_CHECKED: 1,
        **about,
        "config": dict(config or {}),
    }
