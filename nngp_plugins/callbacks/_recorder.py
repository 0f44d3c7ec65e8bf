"""From the kernels of a snapshot to its numbers and to where these go, off the training path."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..metrics import DenseGram, Metric
from ._history import DIVERGED, PREFIX, History, Row
from ._kept import KeptKernels
from ._measure import layer_metrics, with_eigenvalues
from ._run_folder import LAST, REFERENCE, RunFolder
from ._writers import Guarded

NEXT = "next.npz"


class Snapshot(NamedTuple):
    """What was measured at a step."""

    step: int
    seconds: float
    scalars: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """Of each layer's features, in forward order."""
    grams: DenseGram
    """Of all layers, ``(L, N, N)``."""
    features: Mapping[str, Any]
    """Of layers to keep that are narrower than their kernel, ``(N, D)``."""


class Recorder:
    """Takes snapshots in order, and works on them in a thread of its own.

    Attributes:
        reference: the Grams of the first snapshot.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        spectral: bool,
        history: History,
        folder: RunFolder | None,
        writers: Sequence[Any],
        targets: np.ndarray,
        name: str,
        keep: bool,
    ):
        self._metrics, self._history, self._folder, self._targets = metrics, history, folder, targets
        self._spectral = spectral
        self._writers = [Guarded(writer, self.warn) for writer in writers]
        self._prefix = f"{name}/" if name else ""
        self._kept = KeptKernels(folder.path) if folder is not None and keep else None
        self._values: Callable[..., Any] | None = None
        self._pool = ThreadPoolExecutor(1, "kernel-tracker")
        self._jobs: deque[Future[None]] = deque()
        self._messages: deque[str] = deque()
        self._told: set[str] = set()
        self.reference: DenseGram | None = None
        if folder is not None:
            folder.warn = self.warn
        self._previous: tuple[int, DenseGram] | None = None
        if history.rows and folder is not None:
            self._resume(folder, history.rows[-1]["step"])

    def _resume(self, folder: RunFolder, step: int) -> None:
        self.reference = self._with_spectrum(_grams(folder.load(REFERENCE)))
        for name in (NEXT, LAST):  # the former, if the line was written and the rename was not
            if self._previous is None and (folder.path / name).exists():
                saved = folder.load(name)
                if saved["step"] == step:
                    self._previous = step, self._with_spectrum(_grams(saved))

    def submit(self, snapshot: Snapshot) -> None:
        """Takes a snapshot; does not wait."""
        self._start(self._record, snapshot)

    def prepare(self, grams: DenseGram) -> None:
        """Begins to compile the metrics of Grams of such shapes, while the model is compiled."""
        self._start(self._compile, grams)

    def _start(self, work: Callable[[Any], object], argument: Any) -> None:
        x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]  # which may be this thread's own

        def run() -> None:
            with jax.enable_x64(x64), jax.default_device(jax.local_devices(backend="cpu")[0]):
                work(argument)

        self._jobs.append(self._pool.submit(run))

    def _compile(self, grams: DenseGram) -> Callable[..., Any]:
        if self._values is None:
            shape, dtype = grams.matrix.shape, grams.matrix.dtype
            matrix, steps = (jax.ShapeDtypeStruct(s, dtype) for s in (shape, ()))
            like: Any = DenseGram(matrix, matrix, jax.ShapeDtypeStruct(shape[:2], dtype) if self._spectral else None)  # type: ignore[arg-type]
            self._values = jax.jit(partial(layer_metrics, self._metrics)).lower(like, like, like, steps).compile()
        return self._values

    def settle(self) -> None:
        """Waits until all snapshots are recorded, and tells what there is to tell."""
        while self._jobs:
            self._jobs.popleft().result()
        while self._messages:
            warnings.warn(self._messages.popleft(), stacklevel=4)

    def flush(self) -> None:
        """Settles, and flushes the writers."""
        self.settle()
        for writer in self._writers:
            writer.flush()
        self.settle()

    def close(self) -> None:
        """Settles, and closes all."""
        try:
            self.flush()
        finally:
            for writer in self._writers:
                writer.close()
            self._pool.shutdown()
            if self._folder is not None:
                self._folder.close()
            self._previous = self.reference = None
        self.settle()

    def warn(self, message: str) -> None:
        """Tells it as the user's thread comes by: a warning that is an error must not end this one."""
        self._messages.append(message)

    def _record(self, snapshot: Snapshot) -> None:
        from scipy import linalg  # noqa: F401  # so that its BLAS is found, too
        from threadpoolctl import threadpool_limits

        # threads of BLAS that wait for work would take the cores from those that train
        with threadpool_limits(1, user_api="blas"):
            self._record_now(snapshot)

    def _record_now(self, snapshot: Snapshot) -> None:
        step, grams = snapshot.step, self._with_spectrum(_on_cpu(snapshot.grams))
        snapshot = snapshot._replace(grams=grams)
        if self.reference is None:
            self.reference = grams
            if self._folder is not None:
                shapes = {name: list(shape) for name, shape in snapshot.shapes.items()}
                self._folder.describe({**self._folder.about, "layers": shapes})
                self._save(REFERENCE, snapshot)
        before, previous = self._previous or (np.nan, grams)
        steps = jnp.asarray(step - before, grams.matrix.dtype)
        values, traces = self._compile(grams)(grams, self.reference, previous, steps)
        row = self._row(snapshot, *jax.device_get((values, traces, dict(snapshot.scalars))))
        self._previous = step, grams
        if self._folder is not None:
            self._keep(snapshot)
            self._save(NEXT, snapshot)
            self._folder.append(row)
            with self._folder.told():
                (self._folder.path / NEXT).replace(self._folder.path / LAST)
        self._history.rows.append(row)
        scalars = {self._prefix + k if k.startswith(PREFIX) else k: v for k, v in row.items() if k != DIVERGED}
        del scalars["step"]
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def _with_spectrum(self, grams: DenseGram) -> DenseGram:
        return with_eigenvalues(grams) if self._spectral else grams

    def _row(self, snapshot: Snapshot, values: Any, traces: Any, scalars: Mapping[str, Any]) -> Row:
        row: Row = {"step": snapshot.step, "seconds": round(snapshot.seconds, 3)}
        row |= {name: float(scalars[name]) for name in snapshot.scalars}
        diverged = []
        for i, layer in enumerate(snapshot.shapes):
            row |= {f"{PREFIX}{layer}/{metric}": float(values[metric][i]) for metric in self._metrics}
            self._warn_if_degenerate(snapshot.step, layer, float(traces[0][i]), float(traces[1][i]))
            if not np.isfinite(traces[0][i]):
                diverged.append(layer)
        return row | ({DIVERGED: diverged} if diverged else {})

    def _warn_if_degenerate(self, step: int, layer: str, trace: float, centered_trace: float) -> None:
        if layer in self._told or (np.isfinite(trace) and centered_trace > 0):
            return
        self._told.add(layer)
        what = "not finite" if not np.isfinite(trace) else "zero" if trace == 0 else "constant"
        message = f"the kernel of layer {layer!r} is {what} at step {step}: its metrics are nan"
        first = not self._history.rows and np.isfinite(trace)
        self.warn(message + (", and those relative to this first snapshot will stay so." if first else "."))

    def _save(self, name: str, snapshot: Snapshot) -> None:
        grams = {"kernels": snapshot.grams.matrix, "centered": snapshot.grams.centered, "targets": self._targets}
        self._folder.save(name, step=snapshot.step, layers=list(snapshot.shapes), **grams)  # type: ignore[union-attr]

    def _keep(self, snapshot: Snapshot) -> None:
        if self._kept is None:
            return
        matrices = np.asarray(snapshot.grams.matrix)
        kept = {
            layer: np.asarray(snapshot.features.get(layer, matrix))
            for layer, matrix in zip(snapshot.shapes, matrices, strict=True)
        }
        try:
            self._kept.append(len(self._history.rows), snapshot.step, kept)
        except (ValueError, OSError) as error:  # TensorStore's errors of the disk are of either
            if "kept" not in self._told:
                self.warn(f"the kernels of step {snapshot.step} are not kept: {error}; training goes on.")
            self._told.add("kept")


def _grams(saved: Mapping[str, np.ndarray]) -> DenseGram:
    return DenseGram(jnp.asarray(saved["kernels"]), jnp.asarray(saved["centered"]))


def _on_cpu(grams: DenseGram) -> DenseGram:
    """On the first one: eigenvalues are slow on accelerators, where training would wait for them."""
    cpu = jax.local_devices(backend="cpu")[0]
    arrays = jax.tree.leaves(grams)
    if all(isinstance(array, jax.Array) and array.devices() == {cpu} for array in arrays):
        return grams
    return jax.device_put(jax.device_get(grams), cpu)
