"""Rows: the numbers of one snapshot each, under the names that writers use."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import chain
from typing import Any

Row = dict[str, Any]
"""One snapshot: ``step``, ``seconds``, the user's scalars, and ``kernel/<layer>/<metric>``, each a number.

If kernels are not finite, ``diverged`` is the list of their layers; other rows do not have it. ``reference_of`` is the
list of the layers whose reference is this snapshot. Without it, the first snapshot is that of all layers, and a later
one that of none. ``kept_crc32`` are the checksums of the kernels that a run keeps, one for each layer in forward order.
"""

PREFIX = "kernel/"
DIVERGED = "diverged"
REFERENCE_OF = "reference_of"
KEPT_CHECKSUMS = "kept_crc32"
CHECKSUM = "crc32"
LISTS = {DIVERGED: (str, "layers"), REFERENCE_OF: (str, "layers"), KEPT_CHECKSUMS: (int, "checksums")}
"""What a row holds besides numbers, by name: lists, the type of their items, and what these are."""
_OWN_NAMES = ("step", "seconds", *LISTS, CHECKSUM)


def key_of(layer: str, metric: str) -> str:
    """The name of a metric of a layer in a row."""
    return f"{PREFIX}{layer}/{metric}"


def is_own_name(name: str, metrics: Container[str]) -> bool:
    """Whether a scalar of this name would take the place of a number of the tracker."""
    return name in metrics or name in _OWN_NAMES or name == "layer" or name.startswith(PREFIX)


def layers_of(rows: Sequence[Row]) -> list[str]:
    """The names of the layers, in forward order."""
    return list(dict.fromkeys(name.removeprefix(PREFIX).rpartition("/")[0] for name in _kernel_names(rows)))


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The names of the metrics."""
    return list(dict.fromkeys(name.rpartition("/")[2] for name in _kernel_names(rows)))


def scalars_of(rows: Sequence[Row]) -> list[str]:
    """The names of the scalars that were given to the tracker, such as ``loss``."""
    return [name for name in _names(rows) if not name.startswith(PREFIX) and name not in _OWN_NAMES]


def diverged_layers_of(rows: Sequence[Row]) -> dict[str, int]:
    """The layers whose kernel was not finite, each with the first such step."""
    first: dict[str, int] = {}
    for row in rows:
        for layer in row.get(DIVERGED, ()):
            first.setdefault(layer, int(row["step"]))
    return first


def reference_steps_of(rows: Sequence[Row]) -> dict[str, int]:
    """The step of the reference of each layer that has one, in forward order."""
    layers, steps = layers_of(rows), dict[str, int]()
    for i, row in enumerate(rows):
        for layer in row.get(REFERENCE_OF, () if i else layers):
            steps[layer] = int(row["step"])
    return {layer: steps[layer] for layer in layers if layer in steps}


def _names(rows: Sequence[Row]) -> dict[str, None]:
    return dict.fromkeys(chain.from_iterable(rows))


def _kernel_names(rows: Sequence[Row]) -> list[str]:
    return [name for name in _names(rows) if name.startswith(PREFIX)]
