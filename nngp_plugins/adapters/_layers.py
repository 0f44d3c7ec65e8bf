"""From the calls that an adapter saw in a forward pass to named layers in forward order."""

from __future__ import annotations

import difflib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
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


def select(calls: Sequence[Call], outputs: Any, x: Any, patterns: Sequence[str]) -> OrderedDict[str, jax.Array]:
    """The activations whose names match, in forward order, the model's own output last.

    An ``OrderedDict`` because ``jit`` sorts the keys of a plain dict.
    """
    batch = _batch(x, outputs)
    layers = OrderedDict(_name_calls(calls))
    own = OrderedDict(_name_calls([("output", outputs)]))
    named = [*layers.items(), *((name, y) for name, y in own.items() if name not in layers)]
    matching = _matching({name: y.shape[0] if y.ndim else None for name, y in named}, batch, patterns)
    chosen = OrderedDict((name, y) for name, y in layers.items() if name in matching)
    for name, y in own.items():
        if name in matching and not any(y is layer for layer in chosen.values()):
            chosen[name] = y
    return chosen


def _batch(x: Any, outputs: Any) -> int | None:
    """Number of examples: that of all inputs where outputs have it too, else of the first output."""
    inputs, sizes = ([y.shape[0] for y in jax.tree.leaves(tree) if getattr(y, "ndim", 0)] for tree in (x, outputs))
    return inputs[0] if len(set(inputs)) == 1 and inputs[0] in sizes else next(iter(sizes), None)


def _matching(rows: Mapping[str, int | None], batch: int | None, patterns: Sequence[str]) -> set[str]:
    """The names with a row for each example that match a pattern, and none of those that begin with ``!``."""
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    names = [name for name in rows if rows[name] == batch]
    for pattern in wanted:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        if other := next((name for name in rows if fnmatchcase(name, pattern)), None):
            raise ValueError(
                f"layers({pattern!r}) matches {other!r}, which has no row for each of {batch} examples along axis 0 "
                f"but {rows[other] or 'no axis'}."
            )
        closest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3] or ["none"]
        raise ValueError(f"layers({pattern!r}) matches no layer; the closest are {', '.join(map(repr, closest))}.")
    matching = {name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted or ["*"])}
    matching -= {name for name in matching if any(fnmatchcase(name, pattern) for pattern in excluded)}
    if not matching:
        raise ValueError(f"layers({', '.join(map(repr, patterns))}) leaves no layer of {', '.join(map(repr, names))}.")
    return matching


def _name_calls(calls: Sequence[Call]) -> Iterator[tuple[str, jax.Array]]:
    """Names every array: ``name#1`` for a second call, ``name/0`` inside a tuple."""
    seen: Counter[str] = Counter()
    for path, value in calls:
        call = f"{path}#{seen[path]}" if seen[path] else path
        seen[path] += 1
        for inside, y in jax.tree_util.tree_leaves_with_path(value):
            if hasattr(y, "ndim"):
                yield "/".join(filter(None, [call, jax.tree_util.keystr(inside, simple=True, separator="/")])), y
