"""Findings about what could not be measured: every nan of a history has its reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..history import DIVERGED, History, key_of
from ..metrics import entry_of
from ._run import kernels_of, listed, quoted, sentence

ZERO = "its kernel is zero"
NO_REFERENCE = "it has no reference yet"
FIRST = "there is no snapshot before"
NOT_FINITE = "its kernel is not finite"
_REASONS = {
    "cka": "its kernel is constant, or a multiple of the identity",
    "power_law_exponent": "its window of ranks reaches eigenvalues that are rounding error",
    "class_separation": "the means of its classes hardly differ, or there is one class",
    "target_alignment": "its kernel is constant, or the targets are",
    "regression_accuracy": "the regression leaves the range of float32",
    "log_marginal_likelihood": "the regression leaves the range of float32",
    "kernel_velocity": "a kernel before it is zero or not finite",
}


def reasons(history: History) -> dict[tuple[str, str], dict[str, list[int]]]:
    """Why numbers are nan.

    Returns:
        For each metric and layer that has a nan, the steps of each reason.
    """
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    references, layers = history.reference_steps, history.layers
    for metric in history.metrics:
        for layer in layers:
            key = key_of(layer, metric)
            for i, row in enumerate(history.rows):
                if key in row and np.isnan(row[key]):
                    why = _reason(history, metric, layer, i, references.get(layer))
                    found.setdefault((metric, layer), {}).setdefault(why, []).append(int(row["step"]))
    return found


def _reason(history: History, metric: str, layer: str, i: int, reference: int | None) -> str:
    row, entry = history.rows[i], entry_of(metric)
    if layer in row.get(DIVERGED, ()):
        return NOT_FINITE
    if row.get(key_of(layer, "scale")) == 0:
        return ZERO
    if metric == "kernel_velocity":
        return FIRST if i == 0 else _REASONS[metric]
    if entry is not None and entry.relative_to_reference and (reference is None or row["step"] < reference):
        return NO_REFERENCE
    return _REASONS.get(metric, "its function returned nan")


def gaps(history: History) -> list[str]:
    """A sentence for each reason, with the layers and the metrics that it concerns.

    The first snapshot has no velocity in any run, and a run that diverged says so itself: neither has a sentence.
    """
    by_cause: dict[tuple[str, tuple[int, ...]], dict[str, list[str]]] = {}
    for (metric, layer), causes in reasons(history).items():
        for why, at in causes.items():
            if why not in (FIRST, NOT_FINITE):
                by_cause.setdefault((why, tuple(at)), {}).setdefault(layer, []).append(metric)
    # A kernel that is zero has no metrics, and which of them were asked for is no news.
    zero: dict[tuple[int, ...], list[str]] = {}
    said: dict[str, list[str]] = {}
    for (why, steps), layers in by_cause.items():
        for layer, metrics in layers.items():
            if why == ZERO:
                if layer not in (taken := zero.setdefault(steps, [])):
                    taken.append(layer)
            else:
                names = listed([f"`{metric}`" for metric in metrics])
                said.setdefault(f"{names} of {{}} cannot be computed {_at(history, steps)}: {why}", []).append(layer)
    sentences = [_zero(history, steps, layers) for steps, layers in _widest(zero).items()]
    return sentences + [sentence(text.format(listed([quoted(name) for name in names]))) for text, names in said.items()]


def _widest(zero: dict[tuple[int, ...], list[str]]) -> dict[tuple[int, ...], list[str]]:
    """Each layer once, with the most steps: a metric that was nan for another reason too has fewer."""
    most: dict[str, tuple[int, ...]] = {}
    for steps, layers in zero.items():
        for layer in layers:
            most[layer] = max(most.get(layer, ()), steps, key=len)
    again: dict[tuple[int, ...], list[str]] = {}
    for layer, steps in most.items():
        again.setdefault(steps, []).append(layer)
    return again


def _zero(history: History, steps: tuple[int, ...], layers: Sequence[str]) -> str:
    are, their, they = ("are", "their", "They are") if len(layers) > 1 else ("is", "its", "It is")
    when = _at(history, steps).replace("any", "every")
    said = sentence(f"{kernels_of(layers)} {are} zero {when}, so that {their} metrics are nan there")
    references = {history.reference_steps.get(layer) for layer in layers}
    if len(references) == 1 and (step := references.pop()) is not None and step > steps[-1]:
        said += f" {they} compared with {their} kernel of step {step:,}."
    return said


def _at(history: History, steps: tuple[int, ...]) -> str:
    known = history.steps.tolist()
    if len(steps) == len(known):
        return "at any snapshot" if len(known) > 1 else "at the only snapshot"
    if len(steps) == 1:
        return f"at step {steps[0]:,}"
    first = known.index(steps[0])
    if known[first : first + len(steps)] == list(steps):
        return f"at steps {steps[0]:,} – {steps[-1]:,}"
    return f"at {len(steps)} of {len(known)} snapshots"
