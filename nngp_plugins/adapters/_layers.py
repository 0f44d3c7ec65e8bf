"""From the calls that an adapter saw in a forward pass to named layers in forward order."""

from __future__ import annotations

import difflib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

Call = tuple[str, Any]
"""The path of a layer and what it returned, once for each call."""


class Recorder:
    """Collects the calls of layers in forward order.

    Calls inside an inner transformation (the body of a ``scan``, ``vmap`` or ``remat``) are left out: their values do
    not outlive it.

    Attributes:
        calls: what was recorded so far.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._trace = _trace_state()

    def __call__(self, path: str, value: Any) -> None:
        """Records what the layer at ``path`` returned."""
        if _trace_state() == self._trace:
            self.calls.append((path, value))


def _trace_state() -> Any:
    """Equal within one transformation."""
    try:
        from jax.extend.core import get_opaque_trace_state  # here, for it takes long to import
    except ImportError:  # where JAX before 0.10 has it
        from jax.core import get_opaque_trace_state
    return get_opaque_trace_state(convention="nngp")


def select(calls: Sequence[Call], outputs: Any, patterns: Sequence[str]) -> OrderedDict[str, jax.Array]:
    """The activations whose names match, in forward order, the model's own output last.

    An ``OrderedDict`` because ``jit`` sorts the keys of a plain dict.
    """
    batch = next((y.shape[0] for y in jax.tree.leaves(outputs) if getattr(y, "ndim", 0)), None)
    layers = dict(_name_calls(calls, batch))
    own = dict(_name_calls([("output", outputs)], batch))
    known = [*layers, *(name for name in own if name not in layers)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            closest = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise ValueError(f"layers({pattern!r}) matches no layer; the closest are {', '.join(map(repr, closest))}.")
    chosen = OrderedDict((n, y) for n, y in layers.items() if any(fnmatchcase(n, p) for p in patterns))
    for name, y in own.items():
        seen = any(y is layer for layer in chosen.values())
        if not seen and any(fnmatchcase(name, pattern) for pattern in patterns):
            chosen[name] = y
    return chosen


def _name_calls(calls: Sequence[Call], batch: int | None) -> Iterator[tuple[str, jax.Array]]:
    """Names every array: ``name#1`` for a second call, ``name/0`` inside a tuple; leaves out what has no batch."""
    seen: Counter[str] = Counter()
    for path, value in calls:
        call = f"{path}#{seen[path]}" if seen[path] else path
        seen[path] += 1
        for inside, y in jax.tree_util.tree_leaves_with_path(value):
            if getattr(y, "ndim", 0) and y.shape[0] == batch:
                yield (
                    "/".join(filter(None, [call, jax.tree_util.keystr(inside, simple=True, separator="/")])),
                    y,
                )
