"""Findings about what kernels became: collapsed, larger, smaller; and about numbers that seem to disagree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ._moves import MOVED
from ._run import Numbers, kernels_of, listed, plain, quoted, sentence

_ONE_DIRECTION = 1.5
_COLLAPSED_NC1 = 0.05
_FACTOR = 10
_CLOSE = 0.05


def states(run: Numbers) -> list[str]:
    """All findings of this file."""
    return [*_collapsed(run), *_neural_collapse(run), *_sizes(run), *_disagreement(run)]


def _changes(run: Numbers, metric: str, counts: Callable[[float, float], bool]) -> list[int]:
    """The layers whose first and last value of a metric are such."""
    ends = run.ends(metric)
    return [] if ends is None else [i for i, (a, b) in enumerate(ends) if np.isfinite(a) and counts(a, b)]


def _arrows(run: Numbers, metric: str, layers: list[int]) -> str:
    ends = run.ends(metric)
    assert ends is not None
    return listed([f"{plain(ends[i, 0])} → {plain(ends[i, 1])}" for i in layers])


def _collapsed(run: Numbers) -> list[str]:
    layers = _changes(run, "effective_rank", lambda a, b: b <= _ONE_DIRECTION and a >= 2 * b)
    if not layers:
        return []
    names = kernels_of([run.layers[i] for i in layers])
    return [
        sentence(f"{names} collapsed to about one direction: effective rank {_arrows(run, 'effective_rank', layers)}")
    ]


def _neural_collapse(run: Numbers) -> list[str]:
    layers = _changes(run, "class_separation", lambda a, b: b <= _COLLAPSED_NC1 and a >= _FACTOR * b)
    if not layers:
        return []
    names = listed([quoted(run.layers[i]) for i in layers])
    return [f"The classes collapsed onto their means in {names}: NC1 {_arrows(run, 'class_separation', layers)}."]


def _sizes(run: Numbers) -> list[str]:
    said = []
    for verb, counts in (
        ("grew", lambda a, b: a > 0 and b >= _FACTOR * a),
        ("shrank", lambda a, b: a > 0 and b <= a / _FACTOR),
    ):
        if layers := _changes(run, "scale", counts):
            names = kernels_of([run.layers[i] for i in layers])
            said.append(sentence(f"{names} {verb} by a factor of ten or more: scale {_arrows(run, 'scale', layers)}"))
    return said


def _disagreement(run: Numbers) -> list[str]:
    """Layers whose CKA fell while kernel distance stayed near zero, which looks like an error of one of them."""
    cka, distance, rank = (run.ends(name) for name in ("cka", "kernel_distance", "stable_rank"))
    if cka is None or distance is None:
        return []
    said = []
    for i in np.flatnonzero((cka[:, 1] < MOVED) & (distance[:, 1] < _CLOSE)):
        why = "only CKA centres the kernels"
        if rank is not None and rank[i, 1] < 2:
            why += (
                f", and one direction makes up most of this one (stable rank {plain(rank[i, 1])}), beside which kernel "
                "distance hardly sees the change"
            )
        said.append(
            f"For {quoted(run.layers[i])}, CKA {plain(cka[i, 1])} and kernel distance {plain(distance[i, 1])} do not "
            f"contradict each other: {why}."
        )
    return said
