"""Where a snapshot goes: to numbers, to the history, the run folder and the writers, off the training path."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import compress, repeat
from typing import Any

import jax
import numpy as np

from .._threads import one_blas_thread
from ..history import (
    DIVERGED,
    KEPT_CHECKSUMS,
    LAST,
    LISTS,
    NEXT,
    PREFIX,
    REFERENCE,
    REFERENCE_OF,
    History,
    KeptKernels,
    Row,
    RunFolder,
    checksums,
    key_of,
)
from ..metrics import DenseGram, Metric, Product, grams_of_products
from ._numbers import Numbers, on_cpu
from ._pool import Pool
from ._queue import Queue, Snapshot
from ._reference import NOT_FINITE, Reference, exponents_in, exponents_of, flaw_of, messages_of, to_save
from .writers import Guarded, Writer


class Recorder:
    """Takes snapshots in order, and works on them in threads of its own.

    Args:
        metrics: what to compute of every layer.
        history: takes a row for each snapshot.
        folder: the run folder; None for a history in memory.
        writers: what else takes the numbers.
        targets: the targets of the probe, which the run folder keeps; empty if there are none.
        name: the prefix of the names that writers get.
        keep_kernels: whether the run folder keeps all kernels.
        since: the first step whose kernels may be references; None for all steps.
        queue_bytes: the bytes of host memory that snapshots may take until they are recorded.

    Attributes:
        metrics: what is computed of every layer.
        reference: the :class:`Reference` of the layers; None before the first snapshot, and after :meth:`close`.
    """

    metrics: Mapping[str, Metric]

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
        queue_bytes: int,
    ):
        self.metrics, self._history, self._folder, self._targets = metrics, history, folder, targets
        self._writers = [Guarded(writer, self.warn) for writer in writers]
        self._prefix = f"{name}/" if name else ""
        self._kept = KeptKernels(folder.path, queue_bytes) if folder is not None and keep_kernels else None
        self._numbers, self._pool, self._queue = Numbers(metrics), Pool(), Queue(queue_bytes)
        self._messages: deque[str] = deque()
        self._warned_of: set[tuple[str, str]] = set()
        self._is_fed_from_jit = self._keeping_failed = self._warned_of_queue = False
        self._since = since
        self.reference: Reference | None = None
        self._dtype: Any = None
        self._previous: tuple[int, list[DenseGram]] | None = None
        if folder is not None:
            folder.warn = self.warn
            if history.rows:
                self._resume(folder, history.rows[-1]["step"])

    def _resume(self, folder: RunFolder, step: int) -> None:
        saved = folder.load(REFERENCE)
        self._dtype = saved["kernels"].dtype
        with _in_width_of(self._dtype):
            self._load(folder, saved, step)

    def _load(self, folder: RunFolder, saved: Mapping[str, np.ndarray], step: int) -> None:
        self.reference = Reference.of_saved(saved, self._pool.map(self._numbers.with_spectrum, _grams(saved)), step)
        # A process may have been killed after it wrote the line of a snapshot, before next.npz became last.npz.
        for name in (NEXT, LAST):
            if self._previous is None and (folder.path / name).exists():
                saved = folder.load(name)
                if saved["step"] == step:
                    self._previous = step, self._pool.map(self._numbers.with_spectrum, _grams(saved))

    def submit(self, snapshot: Snapshot) -> None:
        """Takes a snapshot, and does not wait for anything."""
        if self._queue.is_full():
            self._warn_of_queue(f"step {snapshot.step} waits on the disk, because a compiled loop must not wait")
        self._queue.put(self._record, snapshot)

    def make_room(self, step: int) -> None:
        """Waits until another snapshot has room in the queue, and shows what the worker had to say so far."""
        if self._queue.is_full():
            self._warn_of_queue(f"the call at step {step} waited")
            with self._pool.while_caller_waits():
                while self._queue.is_full():
                    self._queue.wait_for_one()
        self._queue.settle(waits=False)
        self._show_warnings()

    def _warn_of_queue(self, what: str) -> None:
        if not self._warned_of_queue:
            self.warn(
                f"snapshots come faster than their metrics are computed: those that wait take {self._queue.nbytes:,} "
                f"bytes of queue_bytes={self._queue.most_bytes:,}, so {what}. Measure at fewer steps, fewer layers or "
                "a smaller probe, or pass a larger queue_bytes."
            )
        self._warned_of_queue = True

    def prepare(self, products: jax.ShapeDtypeStruct) -> None:
        """Begins to compile the metrics for products of this shape, while the model is compiled."""
        self._queue.start(lambda: self._prepare(products.shape[1], products.dtype))

    def _prepare(self, n: int, dtype: Any) -> None:
        with _in_width_of(dtype):
            self._numbers.prepare(n, dtype)

    def refuse_other_training(self, step: int, products: Any) -> None:
        """Refuses kernels that differ from the first snapshot of a run folder that goes on.

        Raises:
            ValueError: they differ by more than rounding.
        """
        if self.reference is None:
            return
        if self.reference.differs_from(grams_of_products(jax.device_get(products))):
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

    def settle(self) -> None:
        """Waits until all snapshots are recorded, and shows what the worker has to say."""
        with self._pool.while_caller_waits():
            self._queue.settle(waits=True)
        self._show_warnings()

    def _show_warnings(self) -> None:
        # A writer that flushes the tracker has no use for them.
        if not any(writer.is_here for writer in self._writers):
            while self._messages:
                warnings.warn(self._messages.popleft(), stacklevel=5)

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
            self._queue.close()
            self._pool.close()
            if self._kept is not None:
                self._kept.catch_up()
            if self._folder is not None:
                self._folder.close()
            self._previous = self.reference = None
        self.settle()

    def warn(self, message: str) -> None:
        """Queues the warning for the caller's thread; raised here, ``-W error`` would kill the worker."""
        self._messages.append(message)

    def _record(self, snapshot: Snapshot) -> None:
        # Threads of BLAS that wait for work would take the cores from the threads that train.
        with one_blas_thread():
            self._dtype = self._dtype or snapshot.products.matrix.dtype
            with _in_width_of(self._dtype):
                self._record_now(snapshot.as_dtype(self._dtype))

    def _record_now(self, snapshot: Snapshot) -> None:
        step, products = snapshot.step, snapshot.products
        self._prepare(products.matrix.shape[1], products.matrix.dtype)
        grams = self._pool.map(self._numbers.gram, map(Product, *products))
        flaws = [flaw_of(gram) for gram in grams]
        reference, said = self._refer(snapshot, grams, flaws)
        before, previous = self._previous or (np.nan, grams)
        steps = repeat(on_cpu(np.asarray(step - before, products.matrix.dtype)), len(grams))
        values = self._pool.map(self._numbers, grams, reference.grams, previous, steps)
        row = self._row(snapshot, flaws, values) | said
        self._previous = step, grams
        if self._folder is not None:
            row |= self._keep(snapshot, grams)
            self._save(NEXT, snapshot, grams, step=step)
            self._folder.append(row)
            self._folder.next_becomes_last()
        self._history.rows.append(row)
        numbers = {}
        for key, value in row.items():
            if key != "step" and key not in LISTS:
                numbers[self._prefix + key if key.startswith(PREFIX) else key] = value
        for writer in self._writers:
            writer.write_scalars(step, numbers)

    def _refer(self, snapshot: Snapshot, grams: Sequence[DenseGram], flaws: Sequence[str]) -> tuple[Reference, Row]:
        """The reference of each layer, which may be this snapshot, and what the row says of it."""
        step, is_first = snapshot.step, self.reference is None
        reference = self.reference or Reference.none_yet(step, grams)
        counts = self._since is None or step >= self._since
        taken = reference.lacks() & [counts and not flaw for flaw in flaws]
        self.reference = reference = reference.taking(step, grams, taken)
        all_of = zip(snapshot.shapes, flaws, reference.lacks().tolist(), strict=True)
        new = [(layer, flaw, lacks) for layer, flaw, lacks in all_of if flaw and (layer, flaw) not in self._warned_of]
        self._warned_of.update((layer, flaw) for layer, flaw, _ in new)
        for message in messages_of(new, step, reference.first_step, self._since):
            self.warn(message)
        if is_first and self._folder is not None:
            shapes = {name: list(shape) for name, shape in snapshot.shapes.items()}
            self._folder.describe({**self._folder.about, "layers": shapes})
        if is_first or taken.any():
            self._save(REFERENCE, snapshot, reference.grams, **reference.to_save())
        # The rule goes without saying: the first snapshot is the reference of all layers, and a later one of none.
        if (taken == is_first).all():
            return reference, {}
        return reference, {REFERENCE_OF: list(compress(snapshot.shapes, taken))}

    def _row(self, snapshot: Snapshot, flaws: Sequence[str], values: Sequence[Mapping[str, Any]]) -> Row:
        row: Row = {"step": snapshot.step, "seconds": round(snapshot.seconds, 3)}
        row |= snapshot.scalars
        for layer, numbers in zip(snapshot.shapes, values, strict=True):
            row |= {key_of(layer, metric): float(numbers[metric]) for metric in self.metrics}
        diverged = [layer for layer, flaw in zip(snapshot.shapes, flaws, strict=True) if flaw == NOT_FINITE]
        return {**row, DIVERGED: diverged} if diverged else row

    def _save(self, name: str, snapshot: Snapshot, grams: Sequence[DenseGram], **others: Any) -> None:
        """Saves Grams of all layers in the run folder; what the disk refuses is saved with a later snapshot."""
        if self._folder is None:
            return
        kernels, centered = (np.stack([getattr(gram, form) for gram in grams]) for form in ("matrix", "centered"))
        arrays = {"kernels": kernels, "centered": centered, "targets": self._targets, **others}
        arrays |= to_save("exponents", exponents_of(grams))
        self._folder.save(name, layers=list(snapshot.shapes), **arrays)

    def _keep(self, snapshot: Snapshot, grams: Sequence[DenseGram]) -> Row:
        """Keeps the kernels if it should, and returns what the row says of them."""
        if self._kept is None:
            return {}
        kept = {
            layer: snapshot.features.get(layer, gram.matrix) for layer, gram in zip(snapshot.shapes, grams, strict=True)
        }
        try:
            self._kept.append(len(self._history.rows), snapshot.step, kept, exponents_of(grams))
        except (ValueError, OSError) as error:
            # TensorStore reports errors of the disk as either of these.
            if not self._keeping_failed:
                self.warn(f"the kernels of step {snapshot.step} are not kept: {error}; training goes on.")
            self._keeping_failed = True
        return {KEPT_CHECKSUMS: checksums(kept, exponents_of(grams))}


def _in_width_of(dtype: Any) -> AbstractContextManager[object]:
    """Lets JAX compute in the dtype of a run, even if ``jax_enable_x64`` is off in the meantime."""
    return jax.enable_x64(True) if dtype.itemsize > 4 else nullcontext()


def _grams(saved: Mapping[str, np.ndarray]) -> Iterator[DenseGram]:
    given = zip(saved["kernels"], saved["centered"], exponents_in(saved, "exponents"), strict=True)
    return (on_cpu(DenseGram(kernel, centered, exponent=exponent or None)) for kernel, centered, exponent in given)
