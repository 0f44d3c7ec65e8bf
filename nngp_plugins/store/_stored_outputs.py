"""Stored features as the outputs that a kernel is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import as_jax_takes_it
from ..engine import ArrayBackend, Held, HeldLayout, NamedOutputs, Range
from ._layout import describe_layouts
from ._read_features import FeatureStore


class StoredOutputs:
    """The features of one side of a kernel, read from the disk as they are asked for.

    Features are outputs divided by ``sqrt(D)``, and a contraction divides by D, so they are multiplied as they come.

    Attributes:
        outputs: names, shapes and dtypes of the features.
        batch_rows: examples that are read together.

    Raises:
        ValueError: the features are unfinished.
    """

    def __init__(self, store: FeatureStore):
        store.refuse_unfinished()
        named = NamedOutputs.unchecked(store.as_outputs())
        self._features = named.leaves
        structs = (jax.ShapeDtypeStruct(leaf.shape, _read_as(leaf.dtype)) for leaf in named.leaves)
        self.outputs = NamedOutputs(named.structure, named.paths, tuple(structs))
        self.batch_rows: int = named.leaves[0].block_rows

    def held(self, rows: Range, layout: HeldLayout, arrays: ArrayBackend, on_rows: Callable[[int], None]) -> Held:
        """Reads a block; see :meth:`OutputSource.held`."""
        # All blocks have room for whole tiles, so that a tile has the same bytes in any part.
        room = -(-min(layout.block_rows, self._features[0].shape[0]) // layout.tile_rows) * layout.tile_rows
        likes = [self.outputs.leaves[k] for k in layout.leaves]
        in_order = [(0, 1)] * len(likes)
        held = arrays.empty([jax.ShapeDtypeStruct((room, like.shape[1]), like.dtype) for like in likes], in_order)
        for start in range(*rows, self.batch_rows):
            stop = min(start + self.batch_rows, rows[1])
            parts = [self._read(k, start, stop) for k in layout.leaves]
            held = arrays.write(held, parts, start - rows[0], in_order)
            on_rows(stop - start)
        return Held(held, True, 0)

    def _read(self, k: int, start: int, stop: int) -> jax.Array:
        like = self.outputs.leaves[k]
        return jnp.asarray(self._features[k][start:stop].astype(like.dtype) * like.dtype.type(math.sqrt(like.shape[1])))


def _read_as(dtype: Any) -> np.dtype[Any]:
    """float32 for bfloat16, whose digits a product with ``sqrt(D)`` would change."""
    return as_jax_takes_it(np.dtype(np.float64 if dtype == np.float64 else np.float32))


def contents_of(store: FeatureStore | None) -> str | None:
    """What tells stored features from others: all that they were made of, and the checksum of each block.

    The numbers are not read for that: a block with another checksum is refused when it is read.
    """
    if store is None:
        return None
    blocks = sorted([chunk, sorted(checksums)] for chunk, checksums in store._listed.items())
    return json.dumps([store._job["made_of"], describe_layouts(store._layouts), blocks], sort_keys=True)
