"""Writers: where a tracker's numbers go, beside the run folder."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import reprlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from .._require import require

_files = itertools.count()


class Writer(Protocol):
    """What takes the numbers of a snapshot; it may also have ``flush()`` and ``close()``."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Writes ``{name: number}`` of a training step."""


def as_writer(writer: Any) -> Writer:
    """What a tracker may be given as a writer, with ``write_scalars(step, {name: number})``.

    Args:
        writer: anything that has this method, such as a clu ``MetricWriter``; anything with ``log(dict, step=)``, such
            as a W&B run or the module ``wandb``; or the module ``mlflow``, which stands for ``MLflow()``.

    Raises:
        TypeError: it is none of these.

    Example:
        >>> class Printer:
        ...     def log(self, data, step):
        ...         print(step, data)
        >>> as_writer(Printer()).write_scalars(3, {"loss": 0.5})
        3 {'loss': 0.5}
    """
    if _is_module(writer, "mlflow"):
        return MLflow()
    if not isinstance(writer, type):
        if callable(getattr(writer, "write_scalars", None)):
            return writer
        if _is_module(writer, "wandb") or _takes_steps(getattr(writer, "log", None)):
            return Log(writer)
    raise TypeError(
        f"writers=[{reprlib.repr(writer)}] holds no writer; pass one of nngp.writers, such as "
        "nngp.writers.TensorBoard('logs'), a W&B run, or what has write_scalars(step, dict) or log(dict, step=)."
    )


def _is_module(writer: Any, name: str) -> bool:
    return isinstance(writer, ModuleType) and writer.__name__ == name


def _takes_steps(log: Any) -> bool:
    """Whether it can be called as ``log({}, step=0)``: many things have a ``log``, NumPy and loggers among them."""
    if not callable(log):
        return False
    try:
        inspect.signature(log).bind({}, step=0)
    except (TypeError, ValueError):  # the latter: C code that has no signature
        return False
    return True


class Log:
    """Writes to what has ``log(dict, step=)``, such as a W&B run.

    The steps of a W&B run never go back, and training, which logs to the same run, is ahead of the tracker's
    numbers. These come late then: W&B would drop them, so they join its current step, without the scalars, which would
    replace newer ones. ``kernel_step`` beside them is the step they are of, and W&B draws them over it.

    Args:
        target: the run, or the module ``wandb``, for the run that is active when numbers come.
    """

    def __init__(self, target: Any):
        self._target = target
        self._run: Any = None
        self._axes: set[str] = set()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""
        run = self._target
        if _is_module(run, "wandb"):
            run = run.run or run
        row, now = dict(scalars), step
        if hasattr(run, "define_metric") and not isinstance(run, ModuleType):
            row |= dict.fromkeys(self._define_axes(run, scalars), step)
            now = max(step, run.step)
        if now > step:
            row = {name: value for name, value in row.items() if "kernel" in name.split("/") or name in self._axes}
        run.log(row, step=now)

    def _define_axes(self, run: Any, names: Iterable[str]) -> set[str]:
        if run is not self._run:
            self._run, self._axes = run, set()
        prefixes = {name.partition("kernel/")[0] for name in names if "kernel" in name.split("/")}
        for prefix in prefixes:
            if f"{prefix}kernel_step" not in self._axes:
                run.define_metric(f"{prefix}kernel/*", step_metric=f"{prefix}kernel_step")
        axes = {f"{prefix}kernel_step" for prefix in prefixes}
        self._axes |= axes
        return axes

    def __repr__(self) -> str:
        return f"{getattr(self._target, '__name__', type(self._target).__name__)}.log"


class TensorBoard:
    """Writes event files for TensorBoard; needs the package ``tensorboard`` only.

    Args:
        logdir: the folder that ``tensorboard --logdir`` is given; local, or any that TensorBoard reads, such as gs://.

    Raises:
        TypeError: ``logdir`` is no path.
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
        """Writes the numbers of a step, at once on their way to the disk."""
        try:
            if self._records is None:
                self._records = self._open()
                self._write(file_version="brain.Event:2")
            values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
            self._write(step=step, summary={"value": values})
        except BaseException:
            self._records = None  # readers stop at a torn record: what comes next goes to a new file
            raise

    def close(self) -> None:
        """Closes the file; what comes after goes to a new one."""
        if self._records is not None:
            self._records.close()
        self._records = None

    def _open(self) -> Any:
        # tensorboard's EventFileWriter does this in a thread, which a full disk ends for good
        files = require("tensorboard.compat", extra="tensorboard").tf.io.gfile
        records = require("tensorboard.summary.writer.record_writer", extra="tensorboard")
        files.makedirs(self._logdir)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_files):04d}"
        return records.RecordWriter(files.GFile(os.path.join(self._logdir, name), "wb"))

    def _write(self, **event: Any) -> None:
        self._records.write(self._proto.Event(wall_time=time.time(), **event).SerializeToString())
        self._records.flush()

    def __repr__(self) -> str:
        return f"TensorBoard({self._logdir!r})"


class MLflow:
    """Writes to a run of MLflow; needs ``mlflow-skinny``, or all of ``mlflow``.

    Names take ``_`` for what MLflow refuses in them, such as ``#``. An infinite number becomes the largest float in
    MLflow's databases.

    Args:
        run_id: the run to write to. None: the active one, and where there is none, or a ``tracking_uri`` is given, a
            new run of the experiment that ``mlflow.set_experiment`` chose, or else the default one.
        tracking_uri: where runs are kept, such as ``sqlite:///mlflow.db``; None asks MLflow's settings.

    Attributes:
        run_id: the run that is written to.

    Raises:
        ValueError: there is no such run.
        ModuleNotFoundError: ``mlflow`` is not installed.
    """

    def __init__(self, run_id: str | None = None, tracking_uri: str | None = None):
        mlflow = require("mlflow", extra="mlflow")
        self._metric = require("mlflow.entities", extra="mlflow").Metric
        self._client = mlflow.MlflowClient(tracking_uri=tracking_uri)
        self._names: dict[str, str] = {}
        if run_id is None and tracking_uri is None and (active := mlflow.active_run()) is not None:
            run_id = active.info.run_id
        self._is_new = run_id is None
        try:
            run = (
                self._client.create_run(os.environ.get("MLFLOW_EXPERIMENT_ID", "0"))
                if run_id is None
                else self._client.get_run(run_id)
            )
        except mlflow.MlflowException as error:
            raise ValueError(f"MLflow(run_id={run_id!r}, tracking_uri={tracking_uri!r}): {error}") from error
        self.run_id: str = run.info.run_id

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        now = int(1000 * time.time())
        # names that need no change come first, so that they keep their own
        for name in sorted(scalars, key=lambda name: _mlflow_name(name) != name):
            self._names.setdefault(name, _unused(_mlflow_name(name), self._names.values()))
        metrics = [self._metric(self._names[name], value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """Ends the run, if this writer began it."""
        if self._is_new:
            self._client.set_terminated(self.run_id)

    def __repr__(self) -> str:
        return f"MLflow(run_id={self.run_id!r})"


def _mlflow_name(name: str) -> str:
    """A name that MLflow takes: of letters, digits and ``_-. :/``, a path in normal form, and not too long.

    Example:
        >>> _mlflow_name("kernel/Dense_0#1/cka"), _mlflow_name("kernel//../cka")
        ('kernel/Dense_0_1/cka', 'kernel/_/__/cka')
    """
    parts = re.sub(r"[^\w.\- :/]", "_", name)[-240:].split("/")
    return "/".join("_" * max(len(part), 1) if part in ("", ".", "..") else part for part in parts)


def _unused(name: str, taken: Iterable[str]) -> str:
    """The name, with a number where it is taken."""
    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken)


class Guarded:
    """A writer whose errors end nothing: the first becomes a warning, and the next snapshot is tried again.

    Args:
        writer: the writer.
        warn: takes the warning; the writer may be called in a thread where ``warnings.warn`` would not do.
    """

    def __init__(self, writer: Writer, warn: Callable[[str], None]):
        self._writer, self._warn, self._warned = writer, warn, False

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a copy of the numbers of a step."""
        self._try("write_scalars", step, dict(scalars))

    def flush(self) -> None:
        """Flushes a writer that can be."""
        self._try("flush")

    def close(self) -> None:
        """Closes a writer of this package; others are flushed, and their user's to close."""
        self._try("close" if type(self._writer).__module__.startswith(f"{__package__}.") else "flush")

    def _try(self, method: str, *arguments: Any) -> None:
        call = getattr(self._writer, method, None)
        if call is None:
            return
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001  # training goes on whatever a writer does
            if self._warned:
                return
            self._warned = True
            when = f" at step {arguments[0]}" if arguments else ""
            self._warn(
                f"the writer {self._writer!r} failed in {method}{when} ({type(error).__name__}: {error}). It will be "
                "tried again at the next snapshot, and fail in silence; the tracker's history has all numbers."
            )
