"""Writes chunks as files; each one is safe on the disk before the ledger lists it."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._layout import checksum_of, place, reason
from ._ledger import Chunk
from ._resume import OpenStore, StoreJob

CHUNKS_IN_FLIGHT = 4


class ChunkWriter:
    """Writes the chunks of a part. What ``owns`` says, a subclass decides."""

    def __init__(self, store: OpenStore, job: StoreJob):
        self._store, self._job = store, job
        self._arrays: list[Any] = []
        self._pending: deque[tuple[Chunk, Any]] = deque()
        # One chunk of an earlier run is computed again, to see that f still gives the same numbers.
        self._to_compare = next(filter(self.owns, reversed(store.listed)), None)

    def owns(self, chunk: Chunk) -> bool:
        """Whether a chunk belongs to the part of this process."""
        raise NotImplementedError

    def needs(self, chunk: Chunk) -> bool:
        """Whether a chunk is to be computed."""
        return self.owns(chunk) and (chunk == self._to_compare or chunk not in self._store.listed)

    def is_wanted(self) -> bool:
        """Whether a chunk of the part is missing."""
        sizes = [layout.grid for layout in self._job.layouts]
        every = ((array, *chunk) for array, grid in enumerate(sizes) for chunk in product(*map(range, grid)))
        return any(chunk not in self._store.listed and self.owns(chunk) for chunk in every)

    def __enter__(self) -> ChunkWriter:
        try:
            kind = self._job.kind
            self._arrays = [layout.open(self._store.root, kind, create=True) for layout in self._job.layouts]
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._record(0)
        except OSError:
            # If the block failed already, its error says more.
            if error is None:
                raise

    def put(self, chunk: Chunk, image: np.ndarray) -> None:
        """Begins to write a chunk if it is missing, and lists the chunks that are safe by now."""
        layout, image = self._job.layouts[chunk[0]], np.ascontiguousarray(image)
        array = self._arrays[chunk[0]][place(layout, chunk[1:])]
        if chunk == self._to_compare:
            self._compare(array, image)
        if chunk not in self._store.listed:
            # TensorStore would read a file that is there already, and that may be damaged.
            with suppress(OSError):
                layout.file(self._store.root, chunk[1:]).unlink()
            self._pending.append((chunk, array.write(image)))
        self._record(CHUNKS_IN_FLIGHT)

    def _compare(self, array: Any, image: np.ndarray) -> None:
        unit, path = self._job.kind.unit, str(self._store.root)
        try:
            stored = array.read().result()
        except ValueError as error:
            raise ValueError(
                f"path={path!r} holds a damaged {unit}: {reason(error)}; {self._job.kind.opener}(path).verify() lists "
                "what to delete and compute again."
            ) from error
        if stored.tobytes() != image.tobytes():
            raise ValueError(
                f"path={path!r} holds {unit}s of another f: one of them, computed again, has other numbers. "
                "Pass the f it was begun with, or another path."
            )
        self._to_compare = None

    def _record(self, keep: int) -> None:
        """Waits until at most ``keep`` chunks are on their way, and lists the others in the ledger."""
        safe: list[tuple[Chunk, str]] = []
        failed: Exception | None = None
        while len(self._pending) > keep:
            chunk, written = self._pending.popleft()
            try:
                written.result()
                layout = self._job.layouts[chunk[0]]
                safe.append((chunk, checksum_of(layout.file(self._store.root, chunk[1:]), layout.chunk_bytes)))
            except (ValueError, OSError, RuntimeError) as error:
                failed = error
        if safe:
            self._store.append(safe)
        if failed:
            raise self._failed(failed) from failed

    def _failed(self, error: Exception) -> OSError:
        return OSError(
            f"a {self._job.kind.unit} could not be written to {str(self._store.root)!r}: {reason(error)}. What is "
            "written stays; run the same call again to go on."
        )


@partial(jax.jit, static_argnums=1)
def finite_rows(leaves: list[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Which examples, along these axes, are finite."""
    return [
        jnp.isfinite(leaf).all(axis=[other for other in range(leaf.ndim) if other != axis])
        for leaf, axis in zip(leaves, axes, strict=True)
    ]


def refuse_non_finite(finite: np.ndarray, first: int, name: str, argument: str) -> None:
    """Refuses an output that is not finite.

    Args:
        finite: which examples are.
        first: the number of the first example.
        name: the output, as messages call it.
        argument: the argument that the inputs were passed as.

    Raises:
        ValueError: names the output and the examples.
    """
    if finite.all():
        return
    bad = [int(i) for i in first + np.flatnonzero(~finite)]
    more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
    raise ValueError(f"{name} of f is NaN or infinite for {argument} examples {', '.join(map(str, bad[:10]))}{more}.")
