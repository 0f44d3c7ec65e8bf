"""Files that survive a kill: append, replace, fingerprint, lock. No other file promises anything about the disk."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from ._typing import PyTree

LOCK, NEW = ".lock", ".new"
_NUMBERS_AT_ONCE = 2**22


class FolderInUseError(FileExistsError, BlockingIOError):
    """Another process, or another writer of this one, writes to a run folder or to a kernel store.

    Version 0.1.0 raised ``FileExistsError`` for run folders and ``BlockingIOError`` for stores; it is both.
    """


class FolderLock:
    """A folder that this process alone writes to, until :meth:`release`.

    Args:
        folder: the folder, which exists.
        argument: how the user passed it, such as ``run='runs/mlp'``, for messages.

    Raises:
        FolderInUseError: another process, or another writer of this one, has the lock.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, argument: str):
        from filelock import FileLock, Timeout

        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FolderInUseError(
                f"{argument} is in use: another process, or a tracker that is not closed, writes there."
            ) from None

    def release(self) -> None:
        """Lets others write."""
        self._lock.release()


class AppendedLines:
    """A file that grows by whole lines, and is never changed otherwise.

    A last line without its end was torn when a process died; it does not count, and the next line replaces it.

    Args:
        path: the file, which need not exist.

    Attributes:
        path: the file.
        torn: whether it ended within a line.
    """

    def __init__(self, path: Path):
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        whole, end, rest = data.rpartition(b"\n")
        self._lines: list[bytes] = whole.split(b"\n") if end else []
        self.torn = bool(rest)
        self._size = len(whole + end)
        self._file: int | None = None

    def take_lines(self) -> list[bytes]:
        """The whole lines that the file held at first, without their ends; they are kept no longer than this."""
        lines, self._lines = self._lines, []
        return lines

    def open(self) -> None:
        """Makes the file if there is none, and cuts off a torn line."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            os.ftruncate(self._file, self._size)

    def append(self, lines: str) -> None:
        """Adds whole lines, which are safe on the disk when this returns.

        Raises:
            OSError: the disk fails, and the file is as it was.
        """
        self.open()
        file, data = self._file, lines.encode()
        assert file is not None
        try:
            if (written := os.pwrite(file, data, self._size)) != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes fit into {self.path}")
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file that is there whole or not at all, and safe on the disk when this returns.

    Args:
        path: the file, which need not exist.
        write: writes the new contents.

    Raises:
        OSError: the disk fails, and the file is as it was.
    """
    new = path.with_name(f"{path.name}{NEW}")
    with new.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    rename(new, path)


def rename(old: Path, new: Path) -> None:
    """Renames a file within its folder; the new name is safe on the disk when this returns."""
    old.replace(new)
    folder = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def fingerprint(tree: PyTree, *, with_paths: bool) -> str:
    """SHA-256 of all numbers of a PyTree, with their shapes and dtypes.

    Args:
        tree: arrays of any size, keys, and other objects, which count by their names or their ``repr``.
        with_paths: whether the path of each leaf counts too. Run folders of version 0.1.0 hold fingerprints without.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if with_paths:
            digest.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            digest.update(str(getattr(leaf, "__qualname__", None) or repr(leaf)).encode())
            continue
        digest.update(f"{tuple(leaf.shape)}{leaf.dtype}".encode())
        for part in in_parts(leaf):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def in_parts(array: Any) -> Iterator[np.ndarray]:
    """An array of any size, a limited number of rows at a time."""
    if not array.shape or not array.shape[0]:
        yield np.asarray(array)
        return
    rows = max(1, _NUMBERS_AT_ONCE // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], rows):
        yield np.asarray(array[start : start + rows])


def free_component(name: str, taken: set[str]) -> str:
    """A folder name made of ``[A-Za-z0-9._-]`` for a kernel or a layer; it is added to the names that are taken."""
    component = re.sub(r"[^A-Za-z0-9_-]+", ".", name).strip(".-") or "kernel"
    # TensorStore keeps the ending ".__lock" for itself.
    component = component.replace(".__lock", ".lock")
    while component.lower() in taken:
        # Two names may differ in other characters alone, or in upper and lower case, which some disks ignore.
        component = f"{component}-{len(taken)}"
    taken.add(component.lower())
    return component
