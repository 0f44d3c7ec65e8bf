"""What a tracker logs of every layer unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jax import Array

from ._gram import Gram
from ._similarity import cka, relative_change
from ._spectrum import effective_rank, scale

Metric = Callable[[Gram, Gram], Array]
"""Takes the Gram of a layer and the Gram of the same layer at the first snapshot, returns a scalar."""


def _scale(a: Gram, reference: Gram) -> Array:
    return scale(a)


def _effective_rank(a: Gram, reference: Gram) -> Array:
    return effective_rank(a)


DEFAULT: Mapping[str, Metric] = MappingProxyType(
    {"cka": cka, "relative_change": relative_change, "effective_rank": _effective_rank, "scale": _scale}
)
"""CKA to the first snapshot (debiased), relative change since it, effective rank, and scale."""
