"""Where a snapshot goes: to numbers, to the history, the run folder and the writers, off the training path."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import compress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..history import (
    DIVERGED,
    LAST,
    NEXT,
    PREFIX,
    REFERENCE,
    REFERENCE_OF,
    History,
    KeptKernels,
    Row,
    RunFolder,
    key_of,
)
from ..metrics import DenseGram, Metric, evaluate, needs_spectrum, with_eigenvalues
from ._reference import NOT_FINITE, Reference, flaws_of, message_of, promise_of
from .writers import Guarded, Writer


class Snapshot(NamedTuple):
    """What was measured at a step.

    Attributes:
        step: the training step.
        seconds: the seconds since the run began.
        scalars: the scalars that were given to the tracker.
        shapes: the shape of each layer without the batch axis, in forward order.
        grams: the Grams of all layers, ``(L, N, N)``.
        features: the features ``(N, D)`` of layers that keep them in place of their kernels.
    """

    step: int
    seconds: float
    scalars: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    grams: DenseGram
    features: Mapping[str, Any]


class Recorder:
    """Takes snapshots in order, and works on them in a thread of its own.

    Args:
        metrics: what to compute of every layer.
        history: takes a row for each snapshot.
        folder: the run folder; None for a history in memory.
        writers: what else takes the numbers.
        targets: the targets of the probe, which the run folder keeps; empty if there are none.
        name: the prefix of the names that writers get.
        keep_kernels: whether the run folder keeps all kernels.
        since: the first step whose kernels may be references; None for all steps.

    Attributes:
        metrics: what is computed of every layer.
        reference: the :class:`Reference` of the layers; None before the first snapshot, and after :meth:`close`.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        history: History,
        folder: RunFolder | None,
        writers: Sequence[Writer],
        *,
        targets: np.ndarray,
        name: str,
        keep_kernels: bool,
        since: int | None,
    ):
        self.metrics, self._history, self._folder, self._targets = metrics, history, folder, targets
        self._spectral = needs_spectrum(metrics)
        self._writers = [Guarded(writer, self.warn) for writer in writers]
        self._prefix = f"{name}/" if name else ""
        self._kept = KeptKernels(folder.path) if folder is not None and keep_kernels else None
        self._evaluate: Callable[..., Any] | None = None
        self._worker = ThreadPoolExecutor(1, "kernel-tracker")
        self._jobs: deque[Future[None]] = deque()
        self._messages: deque[str] = deque()
        self._warned_of: set[tuple[str, str]] = set()
        self._is_fed_from_jit = self._keeping_failed = self._is_reference_unsaved = False
        self._since = since
        self.reference: Reference | None = None
        self._previous: tuple[int, DenseGram] | None = None
        if folder is not None:
            folder.warn = self.warn
            if history.rows:
                self._resume(folder, history.rows[-1]["step"])

    def _resume(self, folder: RunFolder, step: int) -> None:
        saved = folder.load(REFERENCE)
        self.reference = Reference.of_saved(saved, self._with_spectrum(_grams(saved)), step)
        # A process may have been killed after it wrote the line of a snapshot, before next.npz became last.npz.
        for name in (NEXT, LAST):
            if self._previous is None and (folder.path / name).exists():
                saved = folder.load(name)
                if saved["step"] == step:
                    self._previous = step, self._with_spectrum(_grams(saved))

    def submit(self, snapshot: Snapshot) -> None:
        """Takes a snapshot, and does not wait for its numbers."""
        self._start(self._record, snapshot)

    def prepare(self, grams: DenseGram) -> None:
        """Begins to compile the metrics for Grams of these shapes, while the model is compiled."""
        self._start(self._compiled, grams)

    def refuse_other_training(self, step: int, grams: DenseGram) -> None:
        """Refuses kernels that differ from the first snapshot of a run folder that goes on.

        Raises:
            ValueError: they differ by more than rounding.
        """
        if self.reference is None:
            return
        first = self.reference.first
        if jnp.abs(grams.matrix - first).max() > 1e-3 * jnp.abs(first).max():
            raise ValueError(
                f"step={step} has other kernels than the first snapshot of this run folder: this is another "
                "training; name another folder, or go on with the parameters of this one."
            )

    def expect_from_jit(self) -> None:
        """Makes :meth:`wait_for_jit` wait: snapshots come from callbacks within a compiled training loop."""
        self._is_fed_from_jit = True

    def wait_for_jit(self) -> None:
        """Waits until the callbacks of a compiled training loop have delivered their snapshots."""
        if self._is_fed_from_jit:
            jax.effects_barrier()

    def _start(self, work: Callable[[Any], object], argument: Any) -> None:
        # The caller may have switched 64 bits on for its thread alone.
        x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]

        def run() -> None:
            with jax.enable_x64(x64), jax.default_device(jax.local_devices(backend="cpu")[0]):
                work(argument)

        self._jobs.append(self._worker.submit(run))

    def _compiled(self, grams: DenseGram) -> Callable[..., Any]:
        """The metrics of all layers as a compiled function of Grams of these shapes."""
        if self._evaluate is None:
            shape, dtype = grams.matrix.shape, grams.matrix.dtype
            matrix: Any = jax.ShapeDtypeStruct(shape, dtype)
            eigenvalues: Any = jax.ShapeDtypeStruct(shape[:2], dtype) if self._spectral else None
            like, steps = DenseGram(matrix, matrix, eigenvalues), jax.ShapeDtypeStruct((), dtype)
            self._evaluate = jax.jit(self._values).lower(like, like, like, steps).compile()
        return self._evaluate

    def _values(self, *grams: Any) -> Any:
        # The traces beside them are not computed: flaws_of needs those before a reference is chosen.
        return evaluate(self.metrics, *grams)[0]

    def settle(self) -> None:
        """Waits until all snapshots are recorded, and shows the warnings of the worker."""
        while self._jobs:
            self._jobs.popleft().result()
        while self._messages:
            warnings.warn(self._messages.popleft(), stacklevel=4)

    def flush(self) -> None:
        """Waits for all snapshots, and flushes the writers."""
        self.settle()
        for writer in self._writers:
            writer.flush()
        self.settle()

    def close(self) -> None:
        """Waits for all snapshots, and closes the run folder and the writers."""
        try:
            self.flush()
        finally:
            for writer in self._writers:
                writer.close()
            self._worker.shutdown()
            if self._folder is not None:
                self._folder.close()
            self._previous = self.reference = None
        self.settle()

    def warn(self, message: str) -> None:
        """Queues the warning for the caller's thread; raised here, ``-W error`` would kill the worker."""
        self._messages.append(message)

    def _record(self, snapshot: Snapshot) -> None:
        # threadpoolctl limits only libraries that are loaded, and SciPy brings a BLAS of its own.
        from scipy import linalg  # noqa: F401
        from threadpoolctl import threadpool_limits

        # Threads of BLAS that wait for work would take the cores from the threads that train.
        with threadpool_limits(1, user_api="blas"):
            self._record_now(snapshot)

    def _record_now(self, snapshot: Snapshot) -> None:
        step, grams = snapshot.step, self._with_spectrum(_on_cpu(snapshot.grams))
        snapshot = snapshot._replace(grams=grams)
        flaws = flaws_of(grams)
        reference, said = self._refer(snapshot, flaws)
        before, previous = self._previous or (np.nan, grams)
        steps = jnp.asarray(step - before, grams.matrix.dtype)
        values = self._compiled(grams)(grams, reference.grams, previous, steps)
        row = self._row(snapshot, flaws, *jax.device_get((values, dict(snapshot.scalars)))) | said
        self._previous = step, grams
        if self._folder is not None:
            self._keep(snapshot)
            self._save(NEXT, snapshot, grams, step=step)
            self._folder.append(row)
            self._folder.next_becomes_last()
        self._history.rows.append(row)
        numbers = {}
        for key, value in row.items():
            if key not in ("step", DIVERGED, REFERENCE_OF):
                numbers[self._prefix + key if key.startswith(PREFIX) else key] = value
        for writer in self._writers:
            writer.write_scalars(step, numbers)

    def _refer(self, snapshot: Snapshot, flaws: Sequence[str]) -> tuple[Reference, Row]:
        """The reference of each layer, which may be this snapshot, and what the row says of it."""
        step, is_first = snapshot.step, self.reference is None
        reference = self.reference or Reference.none_yet(step, snapshot.grams)
        counts = self._since is None or step >= self._since
        taken = reference.lacks() & [counts and not flaw for flaw in flaws]
        self.reference = reference = reference.taking(step, snapshot.grams, taken)
        for layer, flaw, lacks in zip(snapshot.shapes, flaws, reference.lacks(), strict=True):
            if flaw and (layer, flaw) not in self._warned_of:
                self._warned_of.add((layer, flaw))
                self.warn(message_of(layer, flaw, step) + (promise_of(flaw, step, self._since) if lacks else ""))
        if is_first and self._folder is not None:
            shapes = {name: list(shape) for name, shape in snapshot.shapes.items()}
            self._folder.describe({**self._folder.about, "layers": shapes})
        # What the disk refuses is saved at a later snapshot.
        if is_first or taken.any() or self._is_reference_unsaved:
            arrays = reference.to_save()
            self._is_reference_unsaved = not self._save(REFERENCE, snapshot, reference.grams, **arrays)
        # The rule goes without saying: the first snapshot is the reference of all layers, and a later one of none.
        if (taken == is_first).all():
            return reference, {}
        return reference, {REFERENCE_OF: list(compress(snapshot.shapes, taken))}

    def _with_spectrum(self, grams: DenseGram) -> DenseGram:
        return with_eigenvalues(grams) if self._spectral else grams

    def _row(self, snapshot: Snapshot, flaws: Sequence[str], values: Any, scalars: Mapping[str, Any]) -> Row:
        row: Row = {"step": snapshot.step, "seconds": round(snapshot.seconds, 3)}
        row |= {name: float(scalars[name]) for name in snapshot.scalars}
        for i, layer in enumerate(snapshot.shapes):
            row |= {key_of(layer, metric): float(values[metric][i]) for metric in self.metrics}
        diverged = [layer for layer, flaw in zip(snapshot.shapes, flaws, strict=True) if flaw == NOT_FINITE]
        return {**row, DIVERGED: diverged} if diverged else row

    def _save(self, name: str, snapshot: Snapshot, grams: DenseGram, **others: Any) -> bool:
        """Saves Grams of all layers in the run folder; returns whether it is done."""
        if self._folder is None:
            return True
        arrays = {"kernels": grams.matrix, "centered": grams.centered, "targets": self._targets, **others}
        return self._folder.save(name, layers=list(snapshot.shapes), **arrays)

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
        except (ValueError, OSError) as error:
            # TensorStore reports errors of the disk as either of these.
            if not self._keeping_failed:
                self.warn(f"the kernels of step {snapshot.step} are not kept: {error}; training goes on.")
            self._keeping_failed = True


def _grams(saved: Mapping[str, np.ndarray]) -> DenseGram:
    return DenseGram(jnp.asarray(saved["kernels"]), jnp.asarray(saved["centered"]))


def _on_cpu(grams: DenseGram) -> DenseGram:
    """The same Grams on the first CPU: eigenvalues are slow on accelerators, and training would wait for them."""
    cpu = jax.local_devices(backend="cpu")[0]
    arrays = jax.tree.leaves(grams)
    if all(isinstance(array, jax.Array) and array.devices() == {cpu} for array in arrays):
        return grams
    return jax.device_put(jax.device_get(grams), cpu)
