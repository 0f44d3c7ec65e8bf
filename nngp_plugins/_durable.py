"""Files that survive a kill: append, replace, lock. No other file promises anything about the disk."""

from __future__ import annotations

import errno
import os
import stat
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LOCK, NEW = ".lock", ".new"
# How often a lock is tried that another process has.
_TRIES = 10
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class FolderInUseError(FileExistsError, BlockingIOError):
    """Another process, or another writer of this one, writes to a run folder or to a kernel store.

    Version 0.1.0 raised ``FileExistsError`` for run folders and ``BlockingIOError`` for stores; it is both.
    """


class FolderLock:
    """A file that this process alone has open, until :meth:`release`, or until the lock is dropped.

    Args:
        folder: the folder that is locked, which exists.
        argument: how the user passed it, such as ``run='runs/mlp'``, for messages.
        name: the file in it whose lock this is.
        create: whether to make the file if there is none.

    Attributes:
        file: the descriptor of the open file; -1 in a forked child, which does not have the lock.
        release: lets others write.

    Raises:
        FolderInUseError: another process, or another writer of this one, has the lock.
        OSError: the folder cannot be written, or the file is a link or no regular file.
    """

    def __init__(self, folder: Path, argument: str, name: str = LOCK, *, create: bool = True):

        self.file = open_plain(folder / name, os.O_RDWR | (os.O_CREAT if create else 0))
        self.release = weakref.finalize(self, _let_go, self.file, os.getpid())
        _LOCKS.add(self)
        try:
            _lock(self.file)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                if name == LOCK:
                    warnings.warn(
                        f"{argument} is on a disk without locks; let no other process write there.", stacklevel=2
                    )
                return
            self.release()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise named(error, folder / name) from error
            raise FolderInUseError(
                f"{argument} is in use: another process, or a tracker that is not closed, writes there."
            ) from None

    def is_of(self, path: Path) -> bool:
        """Whether the open file still has this name."""
        try:
            return os.path.samestat(os.fstat(self.file), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            return False


def _lock(file: int) -> None:
    """Locks an open file. Who asks :func:`is_locked` has the lock for a moment, which is waited for."""
    import fcntl

    for left in reversed(range(_TRIES)):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not left or error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            time.sleep(0.01)


def is_locked(path: Path) -> bool:
    """Whether a writer has the lock of this file; several processes may ask at once."""
    import fcntl

    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


_LOCKS: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _let_go(file: int, owner: int) -> None:
    import fcntl

    with suppress(OSError):
        # A forked child shares the lock of its parent. Unlocking would unlock it for both, and closing does not.
        if os.getpid() == owner:
            fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def _forget_locks() -> None:
    """Closes the parent's files in a forked child, which would otherwise hold their locks longer than the parent."""
    for lock in list(_LOCKS):
        lock.release()
        lock.file = -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


class AppendedLines:
    """A file that grows by whole lines, and is never changed otherwise.

    A last line without its end was torn when a process died; it does not count, and the next line replaces it.

    Args:
        path: the file, which need not exist.
        argument: how the user passed its folder, for messages.

    Attributes:
        path: the file.
        torn: whether it ended within a line.
    """

    def __init__(self, path: Path, argument: str = ""):
        self.path, self._argument = path, argument or f"{str(path)!r}"
        self._is_made = os.path.lexists(path)
        data = read_plain(path) if self._is_made else b""
        whole, end, rest = data.rpartition(b"\n")
        self._lines: list[bytes] = whole.split(b"\n") if end else []
        self.torn = bool(rest)
        self._size = len(whole + end)
        # The bytes that are in the file now; None after a write that failed.
        self._there: int | None = len(data)
        self._lock: FolderLock | None = None

    def take_lines(self) -> list[bytes]:
        """The whole lines that the file held at first, without their ends; they are kept no longer than this."""
        lines, self._lines = self._lines, []
        return lines

    def open(self) -> int:
        """Makes the file if there is none, cuts off a torn line, and returns the descriptor.

        The file has a lock of its own, which holds even if somebody deletes that of the folder.

        Raises:
            OSError: the disk fails, or another program has deleted, changed or locked the file.
        """
        if self._lock is None or not self._lock.is_of(self.path):
            self._lock = None
            lock = FolderLock(self.path.parent, self._argument, self.path.name, create=not self._is_made)
            size = os.fstat(lock.file).st_size
            if size < self._size or self._there not in (None, size):
                lock.release()
                raise OSError(errno.EBUSY, "another program has changed it", str(self.path))
            self._lock, self._is_made = lock, True
        if self._there != self._size:
            os.ftruncate(self._lock.file, self._size)
            self._there = self._size
        return self._lock.file

    def append(self, lines: str) -> None:
        """Adds whole lines, which are safe on the disk when this returns.

        Raises:
            OSError: the disk fails, and the lines of the file are those of before.
        """
        data = lines.encode()
        try:
            file = self.open()
            self._there = None
            if (written := os.pwrite(file, data, self._size)) != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes fit into it")
            os.fsync(file)
        except OSError as error:
            # A disk that fails may also refuse to cut off what it has written; the next call does so then.
            with suppress(OSError):
                self.open()
            raise named(error, self.path) from error
        self._size += len(data)
        self._there = self._size

    def close(self) -> None:
        """Closes the file."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def open_plain(path: Path, flags: int) -> int:
    """Opens a regular file; a link is not followed, and a file such as a pipe is not waited for.

    Raises:
        OSError: the file is none of the kind, or cannot be opened.
    """
    # A system that lacks a flag lacks what the flag is against.
    flags |= sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
    file = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def read_plain(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: the file is a link, a pipe or a device, or cannot be read.
    """
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        return file.read()


def check_plain(path: str | os.PathLike[str], whose: str, names: frozenset[str] | None = None) -> None:
    """Refuses links, pipes and devices, which nothing of this package makes.

    Args:
        path: the folder.
        whose: what the folder is, such as "a store", for messages.
        names: what to look at in the folder itself; None for all that is in it and in its folders.

    Raises:
        ValueError: there is one; the message names it.
    """
    with os.scandir(path) as entries:
        for entry in entries:
            if names is not None and entry.name not in names:
                continue
            if entry.is_symlink():
                raise ValueError(f"{entry.path} is a symbolic link, which {whose} has none of.")
            if entry.is_dir(follow_symlinks=False):
                if names is None:
                    check_plain(entry.path, whose)
            elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                raise ValueError(f"{entry.path} is not a regular file, and {whose} has no others.")


def named(error: OSError, path: Path) -> OSError:
    """The same error of the disk, which names the file."""
    if isinstance(error, FolderInUseError) or error.filename:
        return error
    return OSError(error.errno, error.strerror or str(error), str(path))


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file that is there whole or not at all, and safe on the disk when this returns.

    Args:
        path: the file, which need not exist.
        write: writes the new contents.

    Raises:
        OSError: the disk fails, and the file is as it was.
    """
    new = path.with_name(f"{path.name}{NEW}")
    try:
        # What stands in its place may lead elsewhere.
        new.unlink(missing_ok=True)
        with open(open_plain(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        rename(new, path)
    except OSError as error:
        # A full disk has no room for half a file.
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise named(error, path) from error


def rename(old: Path, new: Path) -> None:
    """Renames a file within its folder; the new name is safe on the disk when this returns."""
    old.replace(new)
    folder = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
