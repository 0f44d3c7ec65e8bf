"""TensorBoard."""

from __future__ import annotations

import itertools
import os
import reprlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._require import require

_file_numbers = itertools.count()


class TensorBoard:
    """Writes event files for TensorBoard; the package ``tensorboard`` is enough.

    Args:
        logdir: the folder for ``tensorboard --logdir``: a local one, or any that TensorBoard reads, such as gs://.

    Raises:
        TypeError: ``logdir`` is not a path.
        ModuleNotFoundError: ``tensorboard`` is not installed.
    """

    def __init__(self, logdir: str | Path):
        if not isinstance(logdir, str | os.PathLike):
            raise TypeError(
                f"TensorBoard(logdir={reprlib.repr(logdir)}) takes a folder, such as 'runs/mlp/tensorboard'."
            )
        self._logdir = os.fspath(logdir)
        self._proto = require("tensorboard.compat.proto.event_pb2", extra="tensorboard")
        self._records: Any = None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of a step, and flushes them to the disk."""
        try:
            if self._records is None:
                self._records = self._open()
                self._write(file_version="brain.Event:2")
            values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
            self._write(step=step, summary={"value": values})
        except BaseException:
            # Readers stop at a torn record, so later records go to a new file.
            self._records = None
            raise

    def close(self) -> None:
        """Closes the file; later records go to a new one."""
        if self._records is not None:
            self._records.close()
        self._records = None

    def _open(self) -> Any:
        # The EventFileWriter of tensorboard writes in a thread that a full disk ends for good.
        files = require("tensorboard.compat", extra="tensorboard").tf.io.gfile
        records = require("tensorboard.summary.writer.record_writer", extra="tensorboard")
        files.makedirs(self._logdir)
        name = (
            f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_file_numbers):04d}"
        )
        return records.RecordWriter(files.GFile(os.path.join(self._logdir, name), "wb"))

    def _write(self, **event: Any) -> None:
        self._records.write(self._proto.Event(wall_time=time.time(), **event).SerializeToString())
        self._records.flush()

    def __repr__(self) -> str:
        return f"TensorBoard({self._logdir!r})"
