"""Which targets are labels and which are numbers: one rule for metrics, trackers and reports."""

import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp
from nngp_plugins.history import StoredRun
from nngp_plugins.metrics import FeatureGram, class_separation, labels_of, of_targets, target_alignment

from . import oracles

N = 12
PHI = np.random.default_rng(0).normal(size=(N, 5))
CLASSES = np.arange(N) % 3
AGES = np.round(30 + 9 * PHI[:, 0])
MULTI_HOT = np.eye(3)[CLASSES] + np.eye(3)[(CLASSES + 1) % 3] * (np.arange(N) > 5)[:, None]
# The labels that targets stand for.
LABELS = {
    "integers": (CLASSES, CLASSES),
    "integers, a column": (CLASSES[:, None], CLASSES),
    "unsigned bytes": (CLASSES.astype(np.uint8), CLASSES),
    "negative integers": (CLASSES - 2, CLASSES),
    "whole floats": (CLASSES.astype(np.float32), CLASSES),
    "whole floats of two bytes": (jnp.asarray(CLASSES, jnp.bfloat16), CLASSES),
    "strings": (np.array(["ant", "bee", "cat"])[CLASSES], CLASSES),
    "strings, a column": (np.array(["ant", "bee", "cat"])[CLASSES][:, None], CLASSES),
    "booleans": (CLASSES > 0, CLASSES > 0),
    "booleans, a column": ((CLASSES > 0)[:, None], CLASSES > 0),
    "one-hot floats": (np.eye(3)[CLASSES], CLASSES),
    "one-hot integers": (np.eye(3, dtype=int)[CLASSES], CLASSES),
    "one-hot booleans": (np.eye(3, dtype=bool)[CLASSES], CLASSES),
}
# The columns of numbers that targets stand for.
NUMBERS = {
    "floats": (PHI[:, 1], PHI[:, 1:2]),
    "floats, a column": (PHI[:, 1:2], PHI[:, 1:2]),
    "whole floats, a column": (AGES[:, None], AGES[:, None]),
    "whole floats of two bytes, a column": (jnp.asarray(CLASSES[:, None], jnp.bfloat16), CLASSES[:, None]),
    "ones and zeros, a column": (np.ones((N, 1)) * (CLASSES > 0)[:, None], (CLASSES > 0)[:, None]),
    "columns of floats": (PHI[:, 1:4], PHI[:, 1:4]),
    "columns of whole floats": (np.round(9 * PHI[:, 1:4]), np.round(9 * PHI[:, 1:4])),
    "probabilities": (np.full((N, 4), 0.25) + 0.1 * np.eye(4)[CLASSES], 0.25 + 0.1 * np.eye(4)[CLASSES]),
    "multi-hot floats": (MULTI_HOT, MULTI_HOT),
    "multi-hot integers": (MULTI_HOT.astype(int), MULTI_HOT),
    "multi-hot booleans": (MULTI_HOT.astype(bool), MULTI_HOT),
}
REFUSED = {
    "ids of tokens": np.random.default_rng(1).integers(0, 30_000, (N, 7)),
    "signs": np.where(np.eye(3, dtype=int)[CLASSES] > 0, 1, -1),
    "two labels of each example": np.stack([CLASSES, CLASSES + 1], axis=1),
}
TOLD = r"integers of shape \(12, \d\) in {} are neither one-hot nor multi-hot, but may be ids of tokens; pass a label"
KNOWN = ["target_alignment", "log_marginal_likelihood"]
OF_CLASSES = ["target_alignment", "class_separation", "regression_accuracy", "log_marginal_likelihood"]


def tracked(y, run=None):
    """The metrics of targets that a tracker logs."""
    probe = jnp.asarray(PHI * np.sqrt(PHI.shape[1]), jnp.float32)
    with nngp.KernelTracker(lambda w, x: {"h": x * w}, probe, targets=y, run=run) as tracker:
        tracker(0, jnp.float32(1))
    row = {name.rpartition("/")[2]: value for name, value in tracker.history.rows[0].items()}
    return {name: row[name] for name in OF_CLASSES if name in row}


def gram():
    return FeatureGram(jnp.asarray(PHI, jnp.float32))


def alignment_of(columns):
    """The alignment of the Gram with targets, by its definition."""
    return oracles.cka_oracle(oracles.hsic_biased)(PHI, columns)


@pytest.mark.parametrize("kind", LABELS)
def test_labels(kind):
    y, labels = LABELS[kind]
    names = labels_of(y)
    assert names.shape == (N,)
    np.testing.assert_array_equal(np.unique(names, return_inverse=True)[1], np.unique(labels, return_inverse=True)[1])
    assert float(class_separation(gram(), y)) == pytest.approx(oracles.nc1(PHI, labels), rel=1e-3)
    assert float(target_alignment(gram(), y)) == pytest.approx(alignment_of(oracles.one_hot(labels)), rel=1e-3)
    assert list(of_targets(y)) == OF_CLASSES


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "kind", ["integers, a column", "whole floats of two bytes", "strings, a column", "booleans", "one-hot floats"]
)
def test_a_tracker_of_labels(kind, tmp_path):
    y, labels = LABELS[kind]
    measured = tracked(y, tmp_path)
    assert list(measured) == OF_CLASSES
    assert measured["target_alignment"] == pytest.approx(alignment_of(oracles.one_hot(labels)), rel=1e-3)
    stored = StoredRun.load(tmp_path)
    assert stored.has_classes
    np.testing.assert_array_equal(stored.targets, labels_of(y))


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers(kind):
    y, columns = NUMBERS[kind]
    assert labels_of(y) is None
    with pytest.raises(ValueError, match=r"y must be labels \(N,\) or one-hot \(N, C\), with a single 1 in each row\."):
        class_separation(gram(), y)
    assert float(target_alignment(gram(), y)) == pytest.approx(alignment_of(np.asarray(columns, float)), rel=1e-3)
    assert list(of_targets(y)) == KNOWN


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "kind", ["floats", "whole floats of two bytes, a column", "probabilities", "multi-hot integers"]
)
def test_a_tracker_of_numbers(kind, tmp_path):
    y, columns = NUMBERS[kind]
    measured = tracked(y, tmp_path)
    assert list(measured) == KNOWN
    assert measured["target_alignment"] == pytest.approx(alignment_of(np.asarray(columns, float)), rel=1e-3)
    stored = StoredRun.load(tmp_path)
    assert not stored.has_classes
    np.testing.assert_allclose(stored.targets, columns[:, 0] if columns.shape[1] == 1 else np.zeros(0), rtol=1e-2)


@pytest.mark.parametrize("kind", REFUSED)
def test_integers_in_columns(kind):
    for call in (labels_of, of_targets, lambda y: target_alignment(gram(), y)):
        with pytest.raises(ValueError, match=TOLD.format("y")):
            call(REFUSED[kind])
    with pytest.raises(ValueError, match=TOLD.format("targets")):
        tracked(REFUSED[kind])


def test_floats_that_are_not_finite_are_numbers():
    for bad in (np.nan, np.inf):
        y = CLASSES.astype(float)
        y[3] = bad
        assert labels_of(y) is None
