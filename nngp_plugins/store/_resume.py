"""What a stored kernel is made of, and whether a call may go on with it."""

from __future__ import annotations

import errno
import json
import reprlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from .._durable import LOCK, NEW, FolderLock, replace_file
from .._fingerprint import fingerprint
from .._tables import human
from ..engine import KernelPlan
from ._layout import GROUP, JOB, LEDGER, Layout, check_group, checked, describe_layouts, group_of, load_job
from ._ledger import Ledger


@contextmanager
def locked(path: Path, *, resume: bool) -> Iterator[Path]:
    """The folder of a store, for this process alone; it is made if there is none.

    Raises:
        FileExistsError: it exists with ``resume=False``, or holds something else.
        FolderInUseError: another process writes there.
    """
    if path.exists() or path.is_symlink():
        if not resume:
            raise FileExistsError(f"path={str(path)!r} exists; name another folder, or resume=True to go on with it.")
        if not path.is_dir() or (not (path / JOB).exists() and not _is_killed_start(path)):
            raise FileExistsError(f"path={str(path)!r} exists and holds no kernel; name another folder.")
        checked(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(path, f"path={str(path)!r}")
    try:
        yield path.resolve()
    finally:
        lock.release()


def _is_killed_start(path: Path) -> bool:
    """Whether a folder without a job holds only what a job leaves that was killed as it started."""
    return {entry.name for entry in path.iterdir()} <= {LOCK, f"{JOB}{NEW}"}


def prepare(root: Path, made_of: Mapping[str, Any], layouts: Sequence[Layout]) -> Ledger:
    """Begins a store, or checks that the call may go on with the one that is there.

    Returns:
        The ledger of the finished tiles.

    Raises:
        ValueError: the store is made of something else; says of what.
        OSError: the disk is too small.
    """
    job = json.loads(json.dumps({"made_of": dict(made_of), "arrays": describe_layouts(layouts)}))
    if (root / JOB).exists():
        _compare(root, load_job(root), job)
        check_group(root, layouts)
    ledger = Ledger(root / LEDGER, [layout.grid for layout in layouts], f"path={str(root)!r}")
    try:
        if (root / LEDGER).exists():
            ledger.open()
        # TensorStore leaves lock files behind when it is killed as it writes.
        for left_over in root.rglob("*.__lock"):
            left_over.unlink()
        for array, *chunk in list(ledger.tiles):
            # A user deletes the file of a damaged tile, so that it is computed again.
            if not layouts[array].file(root, chunk).exists():
                del ledger.tiles[array, *chunk]
        _check_disk(root, ledger, layouts)
        _write_once(root / JOB, job)
        _write_once(root / GROUP, group_of(layouts))
        ledger.open()
    except BaseException:
        ledger.close()
        raise
    return ledger


def _compare(root: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
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
            f"path={str(root)!r} holds a kernel of other {named}; pass what it was begun with, or another path."
        )


def _difference(name: str, old: Any, new: Any) -> str:
    """The name of what differs, and both values unless they are hashes."""
    hashes = any(str(value).startswith("sha256:") for value in (old, new))
    return name if hashes else f"{name} (stored {reprlib.repr(old)}, asked {reprlib.repr(new)})"


def _check_disk(root: Path, ledger: Ledger, layouts: Sequence[Layout]) -> None:
    missing = sum(layout.chunk_bytes * layout.tiles for layout in layouts)
    missing -= sum(layouts[chunk[0]].chunk_bytes for chunk in ledger.tiles)
    free = shutil.disk_usage(root).free
    if missing > free:
        raise OSError(
            errno.ENOSPC,
            f"path={str(root)!r} needs {human(missing, 'B')} more, and its disk has {human(free, 'B')} left",
        )


def _write_once(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, unless it is there already."""
    if not path.exists():
        replace_file(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def _fingerprint_of(name: str, value: Any) -> str:
    try:
        return fingerprint(value, with_paths=True)
    except TypeError as error:
        raise TypeError(
            f"{name}: {error}, so that a stored kernel could be that of another one; pass a function that is defined "
            "by name at the top of a module, functools.partial of such a function, or an object whose repr says all. "
            "A converted model, such as nngp.from_equinox(model), takes params without its functions."
        ) from error


def ingredients(plan: KernelPlan, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the bytes of a kernel: fingerprints of the inputs, and the settings as they are."""
    device = jax.devices()[0]
    return {
        **{name: f"sha256:{_fingerprint_of(name, value)}" for name, value in inputs.items()},
        **{name: str(value) for name, value in settings.items()},
        "tile_size": plan.tile_rows,
        "batch_size": plan.batch_rows,
        "software": f"jax {jax.__version__} on {device.platform} {device.device_kind}",
    }
