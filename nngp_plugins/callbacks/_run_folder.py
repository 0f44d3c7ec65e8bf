"""The run folder: what a tracker writes, goes on with, and the report reads."""

from __future__ import annotations

import hashlib
import json
import os
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

from ._history import Row

RUN, METRICS, REFERENCE, LAST = "run.json", "metrics.jsonl", "reference.npz", "last.npz"
NEW = ".new"


class RunFolder:
    """Writes ``run.json``, ``metrics.jsonl`` (a line for each snapshot), ``reference.npz`` and ``last.npz``.

    A snapshot exists once its line is whole. Files are replaced, never rewritten, so that a kill at any moment leaves
    the folder of some earlier moment.

    Attributes:
        path: of the folder.
        about: the contents of ``run.json``.
        rows: the snapshots of an earlier process.
        warn: takes what is to be told.

    Raises:
        FileExistsError: another process, or another tracker of this one, writes there, or ``resume=False``.
        ValueError: the folder holds a run of something else, or is damaged.
        OSError: it can't be written.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], *, resume: bool):
        self.path = Path(path)
        self.warn: Callable[[str], None] = warnings.warn
        from filelock import FileLock, Timeout  # here, for it loads asyncio

        self._said = repr(str(path))
        self._unwritten: list[str] = []
        self._failed = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(
                f"run={self._said} is in use: another process, or a tracker that is not closed, writes there."
            ) from None
        except OSError as error:
            raise type(error)(error.errno, f"run={self._said} can't be written: {error.strerror}") from error
        try:
            if (self.path / METRICS).exists() and not (self.path / RUN).exists():
                raise ValueError(f"run={self._said} holds {METRICS} without {RUN}; name another folder.")
            self._open()
            self.rows = self._read()
            if self.rows:
                self._check(about, resume)
                again = {name: about[name] for name in ("created", "versions", "schedule", "config")}
                again["step"] = self.rows[-1]["step"]
                about = {**self.about, "resumed": [*self.about.get("resumed", []), again]}
            self.describe(about)
        except BaseException:
            self._lock.release()
            raise

    def _check(self, about: Mapping[str, Any], resume: bool) -> None:
        if not resume:
            raise FileExistsError(f"run={self._said} already holds a run; name another folder, or delete this one.")
        try:
            self.about = json.loads((self.path / RUN).read_text())
        except ValueError as error:
            raise ValueError(f"run={self._said} holds a damaged {RUN}: {error}.") from error
        for name in ("probe", "targets", "metrics", "keep_kernels"):
            old, new = self.about.get(name), json.loads(json.dumps(about[name]))
            if old != new:
                shown = f": {old} there, {new} now" if name in ("metrics", "keep_kernels") else ""
                raise ValueError(
                    f"run={self._said} is a run with other {name}{shown}; go on with the same, or name another folder."
                )

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        self._file = os.open(self.path / METRICS, flags, 0o666)
        self._whole = 0  # bytes of whole lines

    def _read(self) -> list[Row]:
        data = (self.path / METRICS).read_bytes()
        complete, end, torn = data.rpartition(b"\n")
        self._whole = len(complete + end)
        if torn:
            warnings.warn(
                f"run={self._said} ended within a line of {METRICS}, which is repaired: its snapshot was not finished.",
                stacklevel=5,
            )
            os.ftruncate(self._file, self._whole)
        rows: list[Row] = []
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                rows.append({**json.loads(line)})
                rows[-1]["step"] = int(rows[-1]["step"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"run={self._said} is damaged in line {number} of {METRICS}: {error!r}.") from error
        return rows

    def describe(self, about: Mapping[str, Any]) -> None:
        """Writes ``run.json``."""
        self.about = json.loads(json.dumps(about, default=str))
        new = self.path / f"{RUN}{NEW}"
        new.write_text(json.dumps(self.about, indent=2) + "\n")
        new.replace(self.path / RUN)

    def append(self, row: Row) -> None:
        """Adds a snapshot, at once on its way to the disk; what a full disk refuses is written with a later one."""
        self._unwritten.append(json.dumps(row) + "\n")
        data = "".join(self._unwritten).encode()
        with self.told():
            os.lseek(self._file, self._whole, os.SEEK_SET)
            if (written := os.write(self._file, data)) != len(data):
                raise OSError(28, f"only {written} of {len(data)} bytes fit")
            self._whole += len(data)
            self._unwritten.clear()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Errors of the disk are told once, and training goes on."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                self.warn(
                    f"run={self._said} can't be written: {error}; training goes on, and snapshots that are missing are "
                    "written as soon as that is possible."
                )
            self._failed = True
            os.ftruncate(self._file, self._whole)  # of what may be there of a line

    def save(self, name: str, **arrays: Any) -> None:
        """Saves arrays as ``name``, whole or not at all."""
        with self.told():
            with (self.path / f"{name}{NEW}").open("wb") as file:
                np.savez(file, **arrays)
            (self.path / f"{name}{NEW}").replace(self.path / name)

    def load(self, name: str) -> dict[str, np.ndarray]:
        """What was saved as ``name``.

        Raises:
            ValueError: it is damaged or missing.
        """
        try:
            with (self.path / name).open("rb") as file, np.load(file, allow_pickle=False) as saved:
                return dict(saved)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"run={self._said}: {name} is damaged or missing: {error}; name another folder."
            ) from error

    def close(self) -> None:
        """Closes the files."""
        if self._unwritten:
            self.warn(f"run={self._said} lacks {len(self._unwritten)} snapshots, which the tracker's history has.")
        os.close(self._file)
        self._lock.release()


def describe(probe: Any, targets: np.ndarray, config: Mapping[str, Any] | None, **about: Any) -> dict[str, Any]:
    """What ``run.json`` says of a run: versions, the probe's fingerprint, and the user's config."""
    from .. import __version__  # the package is not ready while this module is imported

    versions = {"nngp-plugins": __version__, "jax": jax.__version__, "numpy": np.__version__}
    n = int(jax.tree.leaves(probe)[0].shape[0])
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | versions,
        "probe": {"n": n, "sha256": fingerprint(probe)},
        "targets": fingerprint(targets) if targets.size else None,
        **about,
        "config": dict(config or {}),
    }


def fingerprint(tree: Any) -> str:
    """SHA-256 of all numbers of a PyTree, with shapes and dtypes."""
    digest = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        digest.update(f"{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
