"""Findings about movement: which layers moved and when, and whether training was lazy or rich."""

from __future__ import annotations

import numpy as np

from ._run import Numbers, at_least, at_most, first_and_last, listed, plain, quoted, sentence

MOVED = 0.9
"""A kernel has moved if its last CKA to the reference is below this."""
_NEAR = 0.95
_SMALL_CHANGE = 0.2
_TURNED = 0.1
_REST, _RESTS_FOR = 0.05, 0.2
_BOTH_PHASES = 0.25


def movement(run: Numbers) -> list[str]:
    """Which layers moved, by how much and when; and which came back."""
    cka, ends = run.metric("cka"), run.ends("cka")
    if cka is None or ends is None:
        return []
    known = [i for i, end in enumerate(ends[:, 1]) if np.isfinite(end)]
    low = {i: float(np.nanmin(cka[:, i])) for i in known}
    moved = movers(run)
    back = [i for i in known if i not in moved and low[i] < MOVED and ends[i, 1] - low[i] >= _TURNED]
    stayed = [i for i in known if i not in moved and i not in back]
    floor = at_least(min(low[i] for i in stayed)) if stayed else ""
    kept = f"stayed at CKA {floor}{' or more' * (floor != '1')}"
    said = []
    if moved:
        parts = [f"{quoted(run.layers[i])} (CKA {plain(ends[i, 0])} → {plain(ends[i, 1])})" for i in moved]
        when, rest = _when(run, cka[:, moved])
        others = f"those of the other {len(stayed)} layers" if len(stayed) > 1 else "that of the other layer"
        still = f"; {others} {kept}" if stayed else ""
        said = [f"The kernel{'s' * (len(moved) > 1)} of {listed(parts)} moved{when}{still}.", *rest]
    elif stayed:
        which = {1: "one kernel", 2: "both kernels"}.get(len(stayed), f"all {len(stayed)} kernels")
        said = [f"No kernel moved far: {'the kernel' if len(run.layers) == 1 else which} {kept}."] if not back else []
    for i in back:
        step = run.steps[np.nanargmin(cka[:, i])]
        said.append(
            f"The kernel of {quoted(run.layers[i])} fell to CKA {plain(low[i])} at step {step:,}, and came back to "
            f"{plain(ends[i, 1])}."
        )
    return said


def movers(run: Numbers) -> list[int]:
    """The layers whose kernel moved, the farthest first."""
    ends = run.ends("cka")
    if ends is None:
        return []
    order = np.argsort(ends[:, 1], kind="stable")
    return [int(i) for i in order if ends[i, 1] < MOVED]


def _when(run: Numbers, cka: np.ndarray) -> tuple[str, list[str]]:
    """When the layers moved: "mostly in steps 4 – 20", or a sentence about two phases; empty if all the time."""
    if np.isnan(cka).any():
        # A layer that has its reference later than others has no common clock with them.
        return "", []
    fall = cka[0] - cka
    if phases := _two_phases(run.steps, fall.mean(axis=1)):
        return "", [phases]
    window = _window(run.steps, fall)
    return ("", []) if window is None else (f", mostly in steps {window[0]:,} – {window[1]:,}", [])


def _window(steps: np.ndarray, fall: np.ndarray) -> tuple[int, int] | None:
    """The shortest steps in which each layer makes at least half of its fall ``(S, L)``; None if that is no news."""
    best: tuple[int, int] | None = None
    for i, first in enumerate(steps):
        enough = np.flatnonzero(((fall[i:] - fall[i]) >= fall[-1] / 2).all(axis=1))
        if enough.size:
            last = steps[i + enough[0]]
            if best is None or last - first < best[1] - best[0]:
                best = int(first), int(last)
    is_news = best is not None and best[1] - best[0] <= (steps[-1] - steps[0]) / 2
    return best if is_news else None


def _two_phases(steps: np.ndarray, fall: np.ndarray) -> str:
    """A sentence about a rest between two falls; empty if there is none.

    A rest takes at least a fifth of the run and four snapshots, in which the mean CKA changes by at most a twentieth of
    its whole fall. At least a quarter of the fall comes before it, and a quarter after it.
    """
    best: tuple[int, int] | None = None
    for i in range(len(steps)):
        for j in range(i + 3, len(steps)):
            part = fall[i : j + 1]
            if np.ptp(part) > _REST * fall[-1]:
                break
            rests = steps[j] - steps[i] >= _RESTS_FOR * (steps[-1] - steps[0])
            rests &= part.min() >= _BOTH_PHASES * fall[-1] and part.max() <= (1 - _BOTH_PHASES) * fall[-1]
            if rests and (best is None or steps[j] - steps[i] > steps[best[1]] - steps[best[0]]):
                best = i, j
    if best is None:
        return ""
    i, j = best
    change = at_most(float(np.ptp(fall[i : j + 1])))
    return (
        f"They moved in two phases, up to step {steps[i]:,} and from step {steps[j]:,} on; in between, their mean CKA "
        f"changed by at most {change}."
    )


def regime(run: Numbers) -> list[str]:
    """Whether training was lazy or rich, as far as the loss, CKA and the alignment with the targets say it."""
    cka, loss = run.metric("cka"), run.loss
    if cka is None or not np.isfinite(cka).any():
        return []
    if loss is None:
        return ["No loss of two or more snapshots was logged, so that lazy and rich training cannot be told apart."]
    first, last = first_and_last(loss)
    if last > first / 2:
        return [
            f"The loss did not fall by half ({plain(first)} → {plain(last)}), so that lazy and rich training cannot "
            "be told apart."
        ]
    fell = f"the loss fell from {plain(first)} to {plain(last)}"
    moved = movers(run)
    return [_rich(run, fell, moved) if moved else _lazy(run, fell, float(np.nanmin(cka)))]


def _lazy(run: Numbers, fell: str, low: float) -> str:
    change = run.metric("relative_change")
    most = np.nan if change is None or np.isnan(change).all() else float(np.nanmax(change))
    near = low >= _NEAR and not most > _SMALL_CHANGE
    if near:
        small = "" if np.isnan(most) else f", relative change at most {at_most(most)}"
        which = f"all kernels{_compared(run)} stayed near their reference"
        return f"Training was lazy: {fell} while {which} (CKA at least {at_least(low)}{small})."
    if low >= _NEAR:
        return sentence(
            f"{fell}; the kernels kept their shape (CKA at least {at_least(low)}) but not their size (relative change "
            f"up to {plain(most)})"
        )
    return f"Training was between lazy and rich: {fell}, and the lowest CKA to a reference was {plain(low)}."


def _compared(run: Numbers) -> str:
    """What to say besides of "all kernels" if some have no CKA, such as those that are zero."""
    cka = run.metric("cka")
    return "" if cka is None or np.isfinite(cka).any(axis=0).all() else " that could be compared"


def _rich(run: Numbers, fell: str, moved: list[int]) -> str:
    ends = run.ends("target_alignment")
    if ends is None or np.isnan(ends[moved]).all():
        return (
            f"Training was not lazy: {fell} while kernels moved. Their alignment with targets was not measured, so "
            "that it is not known what they moved towards."
        )
    gain = ends[:, 1] - ends[:, 0]
    turned = sorted((i for i in moved if gain[i] >= _TURNED), key=lambda i: -gain[i])
    if turned:
        parts = [f"{quoted(run.layers[i])} ({plain(ends[i, 0])} → {plain(ends[i, 1])})" for i in turned]
        return f"Training was rich: {fell}, and the alignment with the targets rose in {listed(parts, 3)}."
    i = max(moved, key=lambda i: gain[i] if np.isfinite(gain[i]) else -np.inf)
    return (
        f"Training was not lazy, but no kernel that moved turned to the targets: {fell}, and the alignment went "
        f"{plain(ends[i, 0])} → {plain(ends[i, 1])} in {quoted(run.layers[i])}, where it gained most."
    )


def order(run: Numbers) -> list[str]:
    """Whether the kernel turned to the targets before the loss fell, with it, or after."""
    alignment, ends, loss = run.metric("target_alignment"), run.ends("target_alignment"), run.loss
    if alignment is None or ends is None or loss is None:
        return []
    (before, after), gain = first_and_last(loss), np.nan_to_num(ends[:, 1] - ends[:, 0], nan=-np.inf)
    i = int(gain.argmax())
    if gain[i] < _TURNED or after > before / 2:
        return []
    half = int(np.argmax(np.nan_to_num(alignment[:, i], nan=-np.inf) >= ends[i].mean()))
    share = (before - loss[half]) / (before - after)
    if not np.isfinite(share):
        return []
    when = "before the loss fell" if share <= 0.25 else "after the loss fell" if share >= 0.75 else "as the loss fell"
    done = "not fallen" if share <= 0 else f"made {min(share, 1):.0%} of its fall"
    return [
        f"The kernel of {quoted(run.layers[i])} turned to the targets {when}: at step {run.steps[half]:,}, with half "
        f"of its gain in alignment made, the loss had {done}."
    ]
