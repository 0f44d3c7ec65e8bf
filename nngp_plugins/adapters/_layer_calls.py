"""From the layer calls that an adapter recorded in a forward pass to named layers in forward order."""

from __future__ import annotations

import difflib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

LayerCall = tuple[str, Any]
"""The path of a layer and what it returned in one call."""


class CallRecord:
    """Collects the calls of layers in forward order.

    Calls inside an inner transformation (the body of a ``scan``, ``vmap`` or ``remat``) are left out, because their
    values are tracers that cannot leave the transformation.

    Attributes:
        calls: the calls recorded so far.
    """

    def __init__(self) -> None:
        self.calls: list[LayerCall] = []
        self._trace = _trace_state()

    def __call__(self, path: str, value: Any) -> None:
        """Records what the layer at ``path`` returned."""
        if _trace_state() == self._trace:
            self.calls.append((path, value))


def _trace_state() -> Any:
    """Returns an object that compares equal within one transformation and unequal between two."""
    try:
        from jax.extend.core import get_opaque_trace_state
    except ImportError:  # JAX before 0.10 has it in jax.core.
        from jax.core import get_opaque_trace_state
    typed: Callable[..., Any] = get_opaque_trace_state
    return typed(convention="nngp")


def select_layers(
    calls: Sequence[LayerCall], outputs: Any, x: Any, patterns: Sequence[str]
) -> OrderedDict[str, jax.Array]:
    """Returns the activations whose names match, in forward order; the model's own outputs come last.

    The result is an ``OrderedDict``, because ``jit`` sorts the keys of a plain dict.
    """
    layers = OrderedDict(_name_arrays(calls))
    own_outputs = OrderedDict(_name_arrays([("output", outputs)]))
    named = {**layers, **{name: y for name, y in own_outputs.items() if name not in layers}}
    rows = {name: y.shape[0] if y.ndim else None for name, y in named.items()}
    matching = _matching_names(rows, _batch_size(x, outputs), patterns)
    selected = OrderedDict((name, y) for name, y in layers.items() if name in matching)
    for name, y in own_outputs.items():
        if name in matching and not any(y is activation for activation in selected.values()):
            selected[name] = y
    return selected


def _batch_size(x: Any, outputs: Any) -> int | None:
    """Returns the length of axis 0 that all inputs and an output share; otherwise that of the first output."""
    input_lengths, output_lengths = _axis_0_lengths(x), _axis_0_lengths(outputs)
    if len(set(input_lengths)) == 1 and input_lengths[0] in output_lengths:
        return input_lengths[0]
    return output_lengths[0] if output_lengths else None


def _axis_0_lengths(tree: Any) -> list[int]:
    return [leaf.shape[0] for leaf in jax.tree.leaves(tree) if getattr(leaf, "ndim", 0)]


def _matching_names(rows: Mapping[str, int | None], batch: int | None, patterns: Sequence[str]) -> set[str]:
    """Returns the names that match a pattern, have one row for each example, and match no ``!`` pattern.

    Args:
        rows: the length of axis 0 of each named array; None for a scalar.
        batch: number of examples.
        patterns: ``fnmatch`` patterns; a pattern with ``!`` in front excludes names.
    """
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    names = [name for name in rows if rows[name] == batch]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(_no_match_message(pattern, names, rows, batch))
    matching = {name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted or ["*"])}
    matching -= {name for name in matching if any(fnmatchcase(name, pattern) for pattern in excluded)}
    if not matching:
        raise ValueError(f"layers({', '.join(map(repr, patterns))}) leaves no layer of {', '.join(map(repr, names))}.")
    return matching


def _no_match_message(pattern: str, names: Sequence[str], rows: Mapping[str, int | None], batch: int | None) -> str:
    """Says why a pattern selects nothing: what it matches is not batched, or it matches nothing at all."""
    for name, length in rows.items():
        if fnmatchcase(name, pattern):
            shape = "it is a scalar" if length is None else f"its axis 0 has length {length}"
            return (
                f"layers({pattern!r}) matches {name!r}, which does not have one row for each of {batch} examples: "
                f"{shape}."
            )
    closest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3] or ["none"]
    return f"layers({pattern!r}) matches no layer; the closest are {', '.join(map(repr, closest))}."


def _name_arrays(calls: Sequence[LayerCall]) -> Iterator[tuple[str, jax.Array]]:
    """Names every array: ``name#1`` for a second call, ``name/0`` inside a tuple."""
    times_called: Counter[str] = Counter()
    for path, value in calls:
        call_name = f"{path}#{times_called[path]}" if times_called[path] else path
        times_called[path] += 1
        for key_path, y in jax.tree_util.tree_leaves_with_path(value):
            if hasattr(y, "ndim"):
                inside = jax.tree_util.keystr(key_path, simple=True, separator="/")
                yield "/".join(filter(None, [call_name, inside])), y
