"""What a stored kernel was made of, and whether a call may go on with it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import reprlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._require import require
from .._tables import human
from ._inputs import parts
from ._job import Job
from ._layout import GROUP, JOB, LEDGER, Layout, checked, describe_layouts, load_job
from ._ledger import Ledger

LOCK = ".lock"


@contextmanager
def locked(path: Path, *, resume: bool) -> Iterator[Path]:
    """A store's folder, made where there is none, for this process alone.

    Raises:
        FileExistsError: it exists with ``resume=False``, or holds something else.
        BlockingIOError: another process writes there.
    """
    filelock = require("filelock", extra="store")
    if path.exists() or path.is_symlink():
        if not resume:
            raise FileExistsError(f"path={str(path)!r} exists; name another folder, or resume=True to go on with it.")
        if not path.is_dir() or (not (path / JOB).exists() and not _ours(path)):
            raise FileExistsError(f"path={str(path)!r} exists and holds no kernel; name another folder.")
        checked(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(f"path={str(path)!r} is being written by another process; wait until it ends.") from None
    try:
        yield path.resolve()
    finally:
        lock.release()


def _ours(path: Path) -> bool:
    """Whether a folder without a job holds no more than a start that was killed leaves."""
    return {entry.name for entry in path.iterdir()} <= {LOCK, f"{JOB}.new"}


def prepare(root: Path, made_of: Mapping[str, Any], layouts: Sequence[Layout]) -> Ledger:
    """Begins a store, or checks that one may go on.

    Returns:
        The ledger of what is finished.

    Raises:
        ValueError: the store is of something else; says of what.
        OSError: the disk is too small.
    """
    job = {"made_of": dict(made_of), "arrays": describe_layouts(layouts)}
    job = json.loads(json.dumps(job))
    if (root / JOB).exists():
        _compare(root, load_job(root), job)
        for left_over in root.rglob("*.__lock"):  # of writes that were killed
            left_over.unlink()
    ledger = Ledger(root / LEDGER)
    for array, *chunk in list(ledger.tiles):
        file = layouts[array].file(root, chunk)
        if not file.exists():  # deleted to be computed again
            del ledger.tiles[array, *chunk]
    _check_disk(root, ledger, layouts)
    _write_whole(root / JOB, job)
    # metadata of all arrays in one place, as zarr and xarray look for it first
    arrays = {"kind": "inline", "must_understand": False, "metadata": {a.component: a.zarr() for a in layouts}}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}, "consolidated_metadata": arrays}
    _write_whole(root / GROUP, group)
    return ledger


def _compare(root: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    old, new = stored["made_of"], asked["made_of"]
    other = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if "outputs" in other:
        other = ["outputs"]  # axes and dtypes are then other ones too
    if not other and stored["arrays"] != asked["arrays"]:
        other = ["arrays"]
    if other:
        said = ", ".join(_said(name, old.get(name), new.get(name)) for name in other)
        raise ValueError(
            f"path={str(root)!r} holds a kernel of other {said}; pass what it was begun with, or another path."
        )


def _said(name: str, old: Any, new: Any) -> str:
    """What differs, with its values where these are no hashes."""
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


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file that is there whole or not at all, unless it is there already."""
    if path.exists():
        return
    new = path.with_name(f"{path.name}.new")
    with new.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def fingerprints(job: Job, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the bytes of a kernel: hashes of all numbers that go in, and everything else as it is."""
    device = jax.devices()[0]
    return {
        **{name: _hash(value) for name, value in inputs.items()},
        **{name: str(value) for name, value in settings.items()},
        "tile_size": job.tile_rows,
        "batch_size": job.batch_rows,
        "software": f"jax {jax.__version__} on {device.platform} {device.device_kind}",
    }


def _hash(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            digest.update(str(getattr(leaf, "__qualname__", None) or repr(leaf)).encode())
            continue
        digest.update(f"{tuple(leaf.shape)}{leaf.dtype}".encode())
        for part in parts(leaf):
            digest.update(np.ascontiguousarray(part).tobytes())
    return f"sha256:{digest.hexdigest()}"
