"""What a store is made of, whether a call may go on with it, and who writes to it at the same time."""

from __future__ import annotations

import errno
import json
import reprlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from .._durable import LOCK, NEW, FolderInUseError, FolderLock, is_locked, replace_file
from .._fingerprint import fingerprint
from .._tables import human
from ..engine import Part
from ._layout import (
    GROUP,
    JOB,
    KERNEL,
    Kind,
    Layout,
    check_group,
    checked,
    describe_layouts,
    group_of,
    load_job,
)
from ._ledger import LEDGER, Chunk, Ledger, Listed, ledger_files, ledger_of, listed_in

# Seconds that a part waits for another one which prepares the folder.
PATIENCE = 60.0


@dataclass(frozen=True)
class StoreJob:
    """What a call writes.

    Attributes:
        kind: what the store holds.
        layouts: its arrays.
        made_of: all that decides their bytes.
        part: the share of this process.
        also: what else ``job.json`` says.
        beside: JSON files to write beside it, by name.
    """

    kind: Kind
    layouts: Sequence[Layout]
    made_of: Mapping[str, Any]
    part: Part
    also: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The contents of ``job.json``."""
        holds = {} if self.kind == KERNEL else {"holds": self.kind.name}
        job = {"made_of": dict(self.made_of), "arrays": describe_layouts(self.layouts), **holds, **self.also}
        return json.loads(json.dumps(job))


@dataclass(frozen=True)
class OpenStore:
    """A store that this process writes to.

    Attributes:
        root: its folder.
        ledger: what this process adds to.
        listed: the chunks that are there, whoever wrote them.
    """

    root: Path
    ledger: Ledger
    listed: Listed

    def append(self, chunks: Iterable[tuple[Chunk, str]]) -> None:
        """Lists chunks that are safe on the disk."""
        chunks = list(chunks)
        self.ledger.append(chunks)
        self.listed.update((chunk, frozenset([checksum])) for chunk, checksum in chunks)


@contextmanager
def begun(path: Path, job: StoreJob, *, resume: bool) -> Iterator[OpenStore]:
    """The store in a folder, for this process and those that write other parts; it is made if there is none.

    A process that writes all of it keeps the lock of the folder. One that writes a part has that lock while it prepares
    the folder, and keeps the lock of its own ledger, so that every other process sees who is there.

    Raises:
        FileExistsError: the folder exists with ``resume=False``, or holds something else.
        FolderInUseError: another process writes all of it, the same part, or one of another number of parts.
        ValueError: the store is made of something else; says of what.
        OSError: the disk is too small.
    """
    if path.exists() or path.is_symlink():
        if not resume:
            raise FileExistsError(f"path={str(path)!r} exists; name another folder, or resume=True to go on with it.")
        # In this order, because another process may be about to write the job, which comes before all else.
        if not path.is_dir() or not (_is_killed_start(path) or (path / JOB).exists()):
            raise FileExistsError(f"path={str(path)!r} exists and holds {job.kind.none}; name another folder.")
        checked(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = _lock(path, job.part)
    try:
        root = path.resolve()
        if (root / JOB).exists():
            _compare(root, load_job(root, job.kind), job.as_json(), job.kind)
            check_group(root, job.layouts, job.kind)
        with closing(Ledger(ledger_of(root, job.part), _grids(job), job.kind, _argument(root, job.part))) as ledger:
            store = _prepare(root, job, ledger)
            if not job.part.is_all:
                lock.release()
            yield store
    finally:
        lock.release()


def _argument(path: Path, part: Part) -> str:
    whole = f"path={str(path)!r}"
    return whole if part.is_all else f"part=({part.index}, {part.count}) of {whole}"


def _grids(job: StoreJob) -> list[tuple[int, ...]]:
    return [layout.grid for layout in job.layouts]


def _lock(path: Path, part: Part) -> FolderLock:
    """The lock of the folder; a part waits for others that prepare it."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return FolderLock(path, f"path={str(path)!r}")
        except FolderInUseError:
            # A process that writes all of the store keeps the lock until it is done.
            if part.is_all or is_locked(path / LEDGER) or time.monotonic() > end:
                raise
        time.sleep(0.02)


def _is_killed_start(path: Path) -> bool:
    """Whether a folder without a job holds only what a job leaves that was killed as it started."""
    return {entry.name for entry in path.iterdir()} <= {LOCK, f"{JOB}{NEW}"}


def _prepare(root: Path, job: StoreJob, ledger: Ledger) -> OpenStore:
    """Begins a store, or goes on with the one that is there."""
    own = ledger_of(root, job.part)
    others = [file for file in ledger_files(root) if file != own]
    if own.exists():
        ledger.open()
    busy = [file for file in others if is_locked(file)]
    _refuse_other_parts(root, job.part, busy)
    if not busy:
        # TensorStore leaves lock files behind when it is killed as it writes.
        for left_over in root.rglob("*.__lock"):
            left_over.unlink()
    listed = listed_in([ledger, *(Ledger(file, _grids(job), job.kind) for file in others)])
    for array, *chunk in list(listed):
        # A user deletes the file of damaged numbers, so that they are computed again.
        if not job.layouts[array].file(root, chunk).exists():
            del listed[array, *chunk]
    _check_disk(root, listed, job.layouts)
    _write_once(root / JOB, job.as_json())
    _write_once(root / GROUP, group_of(job.layouts))
    # While this process has the folder, since two that write one file at the same time take it from each other.
    for name, content in job.beside.items():
        _write_once(root / name, content)
    ledger.open()
    return OpenStore(root, ledger, listed)


def _refuse_other_parts(root: Path, part: Part, busy: Sequence[Path]) -> None:
    """Refuses to write what a process may write that has the job divided in another way."""
    for file in busy:
        if part.is_all or not file.name.endswith(f"-of-{part.count}.jsonl"):
            raise FolderInUseError(
                f"{_argument(root, part)} is in use: a process writes a part of it, as {file.name} shows; wait for "
                "it, or pass a part of as many."
            )


def _compare(root: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], kind: Kind) -> None:
    old, new = stored["made_of"], asked["made_of"]
    other = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if "outputs" in other:
        # Axes and dtypes differ too if the outputs do, so only the cause is named.
        other = ["outputs"]
    if not other and stored["arrays"] != asked["arrays"]:
        other = ["arrays"]
    if other:
        named = ", ".join(_difference(name, old.get(name), new.get(name)) for name in other)
        raise ValueError(
            f"path={str(root)!r} holds {kind.one} of other {named}; pass what it was begun with, or another path."
        )


def _difference(name: str, old: Any, new: Any) -> str:
    """The name of what differs, and both values unless they are hashes."""
    hashes = any(str(value).startswith("sha256:") for value in (old, new))
    return name if hashes else f"{name} (stored {reprlib.repr(old)}, asked {reprlib.repr(new)})"


def _check_disk(root: Path, listed: Listed, layouts: Sequence[Layout]) -> None:
    missing = sum(layout.chunk_bytes * layout.tiles for layout in layouts)
    missing -= sum(layouts[chunk[0]].chunk_bytes for chunk in listed)
    free = shutil.disk_usage(root).free
    if missing > free:
        raise OSError(
            errno.ENOSPC,
            f"path={str(root)!r} needs {human(missing, 'B')} more, and its disk has {human(free, 'B')} left",
        )


def _write_once(path: Path, content: Any) -> None:
    """Writes a JSON file, unless it is there already."""
    if not path.exists():
        # A list may have a million items.
        indent = 1 if isinstance(content, Mapping) else None
        replace_file(path, lambda file: file.write(json.dumps(content, indent=indent).encode()))


def _fingerprint_of(name: str, value: Any) -> str:
    try:
        return fingerprint(value, with_paths=True)
    except (TypeError, RecursionError) as error:
        raise TypeError(
            f"{name}: {error}, so that a stored kernel could be that of another one; pass a function that is defined "
            "by name at the top of a module, functools.partial of such a function, or an object whose repr says all."
        ) from error


def fingerprints(inputs: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of each argument that decides the numbers, by the name that users know."""
    return {name: f"sha256:{_fingerprint_of(name, value)}" for name, value in inputs.items()}


def software() -> str:
    """The software and the hardware, which decide how numbers are rounded."""
    device = jax.devices()[0]
    return f"jax {jax.__version__} on {device.platform} {device.device_kind}"
