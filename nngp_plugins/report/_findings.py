"""Findings: what a run shows, in sentences that its numbers support."""

from __future__ import annotations

import numpy as np

from ..history import Comparison, History
from ._gaps import gaps
from ._moves import movement, order, regime
from ._run import Numbers, kernels_of, plain, quoted, sentence
from ._states import states

_APART = 0.1


def findings(history: History | Comparison) -> list[str]:
    """What a run shows, in words: which layers moved and when, lazy or rich, collapsed or diverged, what is unknown.

    Every sentence names the numbers that it rests on, and nothing is said that they do not support. A kernel "moved" if
    its last CKA to its reference is below 0.9; "mostly" is at least half. Training was "lazy" if the loss fell by half
    or more while no CKA fell below 0.95 and no relative change rose above 0.2; it was "rich" if the loss fell as much
    and a kernel that moved gained 0.1 or more of alignment with the targets. A kernel "collapsed" if its effective rank
    at least halved, to 1.5 or less. After a divergence, only the steps before it count.

    Args:
        history: the snapshots, such as ``tracker.history`` or ``nngp.History.load("runs/mlp")``; also of a run that
            goes on. Of several runs, as :func:`compare` returns them, it says what differs most.

    Returns:
        Sentences, the most important one first. Names of layers and metrics stand between backquotes.

    Source: lazy and rich training, Chizat et al., "On Lazy Training in Differentiable Programming", NeurIPS 2019;
    alignment before the loss falls, Atanasov et al., "Neural Networks as Kernel Learners: The Silent Alignment Effect",
    ICLR 2022; classes that collapse onto their means, Papyan et al., PNAS 2020.

    Example:
        >>> import nngp_plugins as nngp
        >>> rows = [
        ...     {"step": step, "seconds": 0.0, "loss": 2.0 / (1 + step), "kernel/dense/cka": 1 - 0.001 * step}
        ...     for step in range(10)
        ... ]
        >>> nngp.report.findings(nngp.History(rows))[0]
        'No kernel moved far: the kernel stayed at CKA 0.99 or more.'
    """
    if isinstance(history, Comparison):
        return _compared(history)
    history = History(history.rows, run=history.run)
    if not history.rows:
        return ["The run holds no snapshot yet."]
    said, end = _divergence(history)
    run = Numbers.of(history, end)
    if len(run.steps) > 1:
        said += [*movement(run), *regime(run), *order(run), *states(run)]
    elif end is None:
        said.append(f"There is one snapshot, of step {run.steps[0]:,}, so that nothing can be said about movement.")
    return said + gaps(history)


def _divergence(history: History) -> tuple[list[str], int | None]:
    """What to say of a run that diverged, and the first step whose numbers do not count."""
    said, ends = [], []
    if (step := history.diverged) is not None:
        first = history.diverged_layers
        at_first = [layer for layer, at in first.items() if at == step]
        verb = "are" if len(at_first) > 1 else "is"
        later = len(first) - len(at_first)
        more = f", and {later} more later" if later else ""
        said.append(f"The run diverged at step {step:,}: {kernels_of(at_first)} {verb} not finite{more}.")
        ends.append(step)
    loss = history.scalar("loss") if "loss" in history.scalars else np.zeros(0)
    # A loss that was not logged at a snapshot is nan, too.
    bad = [
        row["step"] for row, value in zip(history.rows, loss, strict=False) if "loss" in row and not np.isfinite(value)
    ]
    if bad:
        said.append(f"The loss is not finite at step {bad[0]:,}, the first of {len(bad)} such snapshots.")
        ends.append(bad[0])
    if not ends:
        return [], None
    if min(ends) > history.steps[0]:
        said.append(sentence(f"what is said of movement is about the steps before {min(ends):,}"))
    return said, min(ends)


def _compared(runs: Comparison) -> list[str]:
    """In which run the last layer that all have moved farthest, and least; runs that diverged are left out."""
    histories = {
        name: history for name, history in runs.runs.items() if "cka" in history.metrics and history.diverged is None
    }
    shared = [layer for layer in runs.layers if all(layer in history.layers for history in histories.values())]
    if not shared:
        return []
    layer, last = shared[-1], dict[str, float]()
    for name, history in histories.items():
        value = history.metric("cka")[-1, history.layers.index(layer)]
        if np.isfinite(value):
            last[name] = float(value)
    if len(last) < 2 or max(last.values()) - min(last.values()) < _APART:
        return []
    low, high = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    return [
        f"The kernel of {quoted(layer)} moved farthest in {quoted(low)} (CKA {plain(last[low])}) and least in "
        f"{quoted(high)} (CKA {plain(last[high])})."
    ]
