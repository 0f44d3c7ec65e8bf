"""Findings of histories whose answers are known: each list is whole, so that nothing else is said."""

import math

import numpy as np
import pytest

import nngp_plugins as nngp

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
NAN = math.nan
FALLS = [2.0, 1.9, 1.7, 1.2, 0.6, 0.3, 0.2, 0.15, 0.12, 0.1]


def history(layers, steps=STEPS, **scalars):
    """A history of layers by name, each with the values of its metrics by name."""
    rows = []
    for i, step in enumerate(steps):
        row = {"step": step, "seconds": float(i), **{name: values[i] for name, values in scalars.items()}}
        for layer, metrics in layers.items():
            row |= {f"kernel/{layer}/{name}": float(values[i]) for name, values in metrics.items()}
        rows.append(row)
    return nngp.History(rows)


def to(first, last, at=5):
    """A curve that stays at its first value up to snapshot ``at``, and then has its last one."""
    return [first] * at + [last] * (len(STEPS) - at)


def lazy():
    layers = {
        "a": {"cka": np.linspace(1, 0.991, 10), "relative_change": np.linspace(0, 0.0301, 10)},
        "b": {"cka": [1] * 10, "relative_change": [0] * 10},
    }
    return history(layers, loss=FALLS), [
        "No kernel moved far: both kernels stayed at CKA 0.99 or more.",
        "Training was lazy: the loss fell from 2 to 0.1 while all kernels stayed near their reference (CKA at least "
        "0.99, relative change at most 0.04).",
    ]


def rich():
    layers = {
        "conv": {"cka": np.linspace(1, 0.9361, 10), "target_alignment": to(0.2, 0.25)},
        "head": {"cka": [1, 0.9, 0.8, 0.4, 0.2, 0.16, 0.16, 0.16, 0.16, 0.16], "target_alignment": to(0.1, 0.9, at=6)},
        "dense": {"cka": [1, 0.95, 0.9, 0.6, 0.4, 0.28, 0.28, 0.28, 0.28, 0.28], "target_alignment": to(0.1, 0.5)},
    }
    return history(layers, loss=FALLS), [
        "The kernels of `head` (CKA 1 → 0.16) and `dense` (CKA 1 → 0.28) moved, mostly in steps 0 – 4; that of the "
        "other layer stayed at CKA 0.93 or more.",
        "Training was rich: the loss fell from 2 to 0.1, and the alignment with the targets rose in `head` (0.1 → 0.9) "
        "and `dense` (0.1 → 0.5).",
        "The kernel of `head` turned to the targets after the loss fell: at step 32, with half of its gain in "
        "alignment made, the loss had made 95% of its fall.",
    ]


def silent_alignment():
    layers = {"w": {"cka": to(1, 0.5, at=2), "target_alignment": to(0.1, 0.7, at=2)}}
    return history(layers, loss=FALLS), [
        "The kernel of `w` (CKA 1 → 0.5) moved, mostly in steps 1 – 2.",
        "Training was rich: the loss fell from 2 to 0.1, and the alignment with the targets rose in `w` (0.1 → 0.7).",
        "The kernel of `w` turned to the targets before the loss fell: at step 2, with half of its gain in alignment "
        "made, the loss had made 16% of its fall.",
    ]


def away_from_the_targets():
    """The fall is steady, which is one phase."""
    layers = {"w": {"cka": np.linspace(1, 0.4, 50), "target_alignment": np.linspace(0.3, 0.25, 50)}}
    return history(layers, steps=range(50), loss=np.geomspace(2, 0.1, 50)), [
        "The kernel of `w` (CKA 1 → 0.4) moved.",
        "Training was not lazy, but no kernel that moved turned to the targets: the loss fell from 2 to 0.1, and the "
        "alignment went 0.3 → 0.25 in `w`, where it gained most.",
    ]


def collapsed():
    layers = {
        "a": {"cka": to(1, 0.3, at=1), "effective_rank": to(12, 1.1), "stable_rank": to(6, 1.05)},
        "b": {"cka": [1] * 10, "effective_rank": [1.2] * 10, "class_separation": to(3, 0.01)},
    }
    layers["a"]["kernel_distance"] = to(0, 0.0056)
    return history(layers), [
        "The kernel of `a` (CKA 1 → 0.3) moved, mostly in steps 0 – 1; that of the other layer stayed at CKA 1.",
        "No loss of two or more snapshots was logged, so that lazy and rich training cannot be told apart.",
        "The kernel of `a` collapsed to about one direction: effective rank 12 → 1.1.",
        "The classes collapsed onto their means in `b`: NC1 3 → 0.01.",
        "For `a`, CKA 0.3 and kernel distance 0.0056 do not contradict each other: only CKA centres the kernels, and "
        "one direction makes up most of this one (stable rank 1.05), beside which kernel distance hardly sees the "
        "change.",
    ]


def diverged():
    found = history({"a": {"cka": to(1, NAN)}, "b": {"cka": to(1, 0.5, at=6)}}, loss=to(2.0, math.inf, at=4))
    for row in found.rows[5:]:
        row["diverged"] = ["a"]
    return found, [
        "The run diverged at step 16: the kernel of `a` is not finite.",
        "The loss is not finite at step 8, the first of 6 such snapshots.",
        "What is said of movement is about the steps before 8.",
        "No kernel moved far: both kernels stayed at CKA 1.",
        "The loss did not fall by half (2 → 2), so that lazy and rich training cannot be told apart.",
    ]


def zero_layer():
    layers = {
        "late": {"cka": to(NAN, 1), "scale": to(0, 1), "effective_rank": to(NAN, 3)},
        "never": {"cka": [NAN] * 10, "scale": [0] * 10, "effective_rank": [NAN] * 10},
        "stem": {"cka": [1] * 10, "scale": [1] * 10, "effective_rank": [3] * 10},
    }
    found = history(layers, loss=FALLS)
    found.rows[0]["reference_of"], found.rows[5]["reference_of"] = ["stem"], ["late"]
    return found, [
        "No kernel moved far: both kernels stayed at CKA 1.",
        "Training was lazy: the loss fell from 2 to 0.1 while all kernels that could be compared stayed near their "
        "reference (CKA at least 1).",
        "The kernel of `late` is zero at steps 0 – 8, so that its metrics are nan there. It is compared with its "
        "kernel of step 16.",
        "The kernel of `never` is zero at every snapshot, so that its metrics are nan there.",
    ]


def two_phases():
    cka = [1, 0.8, 0.7, 0.7, 0.69, 0.69, 0.69, 0.5, 0.3, 0.3]
    return history({"w": {"cka": cka}}, steps=[0, 5, 10, 40, 80, 120, 150, 160, 170, 300], loss=FALLS), [
        "The kernel of `w` (CKA 1 → 0.3) moved.",
        "They moved in two phases, up to step 10 and from step 150 on; in between, their mean CKA changed by at most "
        "0.01.",
        "Training was not lazy: the loss fell from 2 to 0.1 while kernels moved. Their alignment with targets was not "
        "measured, so that it is not known what they moved towards.",
    ]


def came_back():
    return history({"w": {"cka": [1, 0.9, 0.5, 0.7, 0.9, 0.95, 0.97, 0.97, 0.97, 0.97]}}, loss=[2.0] * 10), [
        "The kernel of `w` fell to CKA 0.5 at step 2, and came back to 0.97.",
        "The loss did not fall by half (2 → 2), so that lazy and rich training cannot be told apart.",
    ]


def size_alone():
    layers = {"w": {"cka": [1] * 10, "relative_change": to(0, 18), "scale": to(0.5, 9.5)}}
    return history(layers, loss=FALLS), [
        "No kernel moved far: the kernel stayed at CKA 1.",
        "The loss fell from 2 to 0.1; the kernels kept their shape (CKA at least 1) but not their size (relative "
        "change up to 18).",
        "The kernel of `w` grew by a factor of ten or more: scale 0.5 → 9.5.",
    ]


def between():
    layers = {"w": {"cka": to(1, 0.92), "power_law_exponent": [NAN] * 10, "own": [NAN, 1, NAN, *[1] * 7]}}
    return history(layers, loss=FALLS), [
        "No kernel moved far: the kernel stayed at CKA 0.92 or more.",
        "Training was between lazy and rich: the loss fell from 2 to 0.1, and the lowest CKA to a reference was 0.92.",
        "`power_law_exponent` of `w` cannot be computed at any snapshot: its window of ranks reaches eigenvalues that "
        "are rounding error.",
        "`own` of `w` cannot be computed at 2 of 10 snapshots: its function returned nan.",
    ]


def first_velocity():
    return history({"w": {"kernel_velocity": [NAN, *[0.1] * 9], "cka": [1] * 10}}, loss=[-1.0] * 10), [
        "No kernel moved far: the kernel stayed at CKA 1.",
        "No loss of two or more snapshots was logged, so that lazy and rich training cannot be told apart.",
    ]


def one_snapshot():
    return history({"w": {"cka": [1]}}, steps=[3], loss=[2.0]), [
        "There is one snapshot, of step 3, so that nothing can be said about movement."
    ]


@pytest.mark.parametrize(
    "case",
    [
        lazy,
        rich,
        silent_alignment,
        away_from_the_targets,
        collapsed,
        diverged,
        zero_layer,
        two_phases,
        came_back,
        size_alone,
        between,
        first_velocity,
        one_snapshot,
        lambda: (nngp.History(), ["The run holds no snapshot yet."]),
    ],
)
def test_the_numbers_support_these_sentences_and_no_other(case):
    run, said = case()
    assert nngp.report.findings(run) == said


def test_names_of_layers_stay_within_their_quotes():
    (first, *_) = nngp.report.findings(history({"a`b\x1b[2J": {"cka": to(1, 0.5)}}))
    assert first.startswith("The kernel of `a'b\\x1b[2J` (CKA 1 → 0.5) moved")


def test_runs_are_compared_by_the_last_layer_that_all_have():
    broken = history({"w": {"cka": to(1, 0.01)}})
    broken.rows[5]["diverged"] = ["w"]
    runs = {
        "broken": broken,
        "slow": history({"w": {"cka": to(1, 0.95)}, "x": {"cka": to(1, 0.9)}}),
        "fast": history({"w": {"cka": to(1, 0.2)}}),
        "none": history({"w": {"cka": [NAN] * 10}}),
    }
    said = "The kernel of `w` moved farthest in `fast` (CKA 0.2) and least in `slow` (CKA 0.95)."
    assert nngp.report.findings(nngp.compare(runs)) == [said]
    assert nngp.report.findings(nngp.compare({"a": runs["slow"], "b": runs["slow"]})) == []
