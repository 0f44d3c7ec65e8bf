"""Snapshots on their way from the device to the worker that records them, in order and within bounds."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from ..history import write_npz
from ._pool import as_here


class _Job(NamedTuple):
    """Work that one thread does in order, and the bytes of host memory that it holds until then."""

    future: Future[None]
    nbytes: int


class Snapshot(NamedTuple):
    """What was measured at a step.

    Attributes:
        step: the training step.
        seconds: the seconds since the run began.
        scalars: the scalars that were given to the tracker.
        shapes: the shape of each layer without the batch axis, in forward order.
        products: what :func:`product_from_first` makes of each layer, ``(L, N, N)``, with the exponents ``(L,)``.
        features: the features ``(N, D)`` of layers that keep them in place of their kernels.
    """

    step: int
    seconds: float
    scalars: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    products: Any
    features: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.products, self.features)))

    def fetched(self) -> Snapshot:
        """The same in host memory, as soon as the device has computed it."""
        # JAX's strict modes refuse a copy that starts by itself, and allow that of device_get.
        products, features, scalars = jax.device_get((self.products, self.features, dict(self.scalars)))
        in_order = {name: float(scalars[name]) for name in self.scalars}
        return self._replace(products=products, features=features, scalars=in_order)

    def as_dtype(self, dtype: Any) -> Snapshot:
        """The same in the dtype of the run; ``jax_enable_x64`` may have changed since the first snapshot."""
        matrix = self.products.matrix
        if matrix.dtype == dtype:
            return self
        features = {name: phi.astype(dtype) for name, phi in self.features.items()}
        return self._replace(products=self.products._replace(matrix=matrix.astype(dtype)), features=features)


class _OnDisk(NamedTuple):
    """A snapshot whose arrays wait in a temporary file, which vanishes when it is closed."""

    snapshot: Snapshot
    structure: Any
    file: BinaryIO

    @classmethod
    def of(cls, snapshot: Snapshot) -> Snapshot | _OnDisk:
        """The snapshot on the disk; in memory, if the disk has no room."""
        leaves, structure = jax.tree.flatten((snapshot.products, snapshot.features))
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115  # It is closed when it is read.
            write_npz(file, {f"arr_{i}": leaf for i, leaf in enumerate(leaves)})
        except OSError:
            return snapshot
        return cls(snapshot._replace(products=None, features={}), structure, file)

    def loaded(self) -> Snapshot:
        """The snapshot in memory."""
        with self.file as file:
            file.seek(0)
            arrays = np.load(file)
            products, features = self.structure.unflatten(arrays[f"arr_{i}"] for i in range(len(arrays.files)))
        return self.snapshot._replace(products=products, features=features)


class Queue:
    """Snapshots that wait to be recorded.

    A thread fetches each snapshot as soon as it is measured, so that the device holds none that waits. Another one, the
    worker, takes them in order.

    Args:
        most_bytes: the bytes of host memory that snapshots may take together.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self._fetcher = ThreadPoolExecutor(1, "kernel-tracker-fetch")
        self._worker = ThreadPoolExecutor(1, "kernel-tracker")
        self._jobs: deque[_Job] = deque()
        self._lock = Lock()

    def start(self, work: Callable[[], object]) -> None:
        """Gives the worker something to do that is no snapshot."""
        self._jobs.append(_Job(self._worker.submit(as_here(work)), 0))

    def put(self, record: Callable[[Snapshot], None], snapshot: Snapshot) -> None:
        """Fetches a snapshot, and gives it to the worker, which records it. One that has no room waits on the disk."""
        has_room, nbytes = not self.is_full(), snapshot.nbytes
        fetched = self._fetcher.submit(
            as_here(snapshot.fetched if has_room else lambda: _OnDisk.of(snapshot.fetched()))
        )

        def work() -> None:
            found = fetched.result()
            record(found.loaded() if isinstance(found, _OnDisk) else found)

        self._jobs.append(_Job(self._worker.submit(as_here(work)), nbytes if has_room else 0))

    @property
    def nbytes(self) -> int:
        """The bytes of all snapshots that are not recorded yet."""
        return sum(job.nbytes for job in self._jobs.copy() if not job.future.done())

    def is_full(self) -> bool:
        """Whether another snapshot of the size of the last one has no room."""
        return 0 < self.nbytes > self.most_bytes - max((job.nbytes for job in self._jobs.copy()), default=0)

    def wait_for_one(self) -> None:
        """Waits until the worker has done one thing more."""
        if unfinished := [job.future for job in self._jobs.copy() if not job.future.done()]:
            wait(unfinished[:1])

    def settle(self, *, waits: bool) -> None:
        """Raises the error of the first snapshot that failed.

        Args:
            waits: whether to wait for all snapshots, or to look only at those that are recorded.
        """
        if waits:
            wait([job.future for job in self._jobs.copy()])
        while True:
            # A writer that flushes the tracker does so in a thread of its own.
            with self._lock:
                if not self._jobs or not self._jobs[0].future.done():
                    return
                job = self._jobs.popleft()
            job.future.result()

    def close(self) -> None:
        """Ends the threads when all is done."""
        self._fetcher.shutdown()
        self._worker.shutdown()
