"""Kernels without geometry, and features with nan or inf, give nan: never an exception, never a made-up number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import (
    DEFAULT,
    FeatureGram,
    alignment,
    bures_distance,
    centered_kernel_velocity,
    class_block_means,
    class_separation,
    condition_number,
    distance_correlation,
    eigenvector_overlap,
    gulp,
    kernel_distance,
    log_marginal_likelihood,
    mutual_knn,
    neural_collapse,
    of_targets,
    participation_ratio,
    power_law_exponent,
    regression_accuracy,
    relative_change,
    rsa,
    scale,
    spectrum,
    stable_rank,
    target_alignment,
    von_neumann_entropy,
)

pytestmark = pytest.mark.once

Y = np.arange(12) % 3
LOGITS = np.random.default_rng(7).normal(size=(12, 3))
FORMS = {"features": lambda phi: FeatureGram(jnp.asarray(phi)), "dense": lambda phi: jnp.asarray(phi @ phi.T)}

# A kernel has one shape, whatever features it is of.
EACH = pytest.mark.parametrize(
    ("form", "d"), [("features", 3), ("dense", 3), pytest.param("features", 14, marks=pytest.mark.exhaustive)]
)

CENTRED = {
    "alignment": alignment,
    "kernel_distance centred": lambda a, b: kernel_distance(a, b, center=True),
    "centered_kernel_velocity": lambda a, b: centered_kernel_velocity(a, b, 2.0),
    "rsa": rsa,
    "rsa of values": lambda a, b: rsa(a, b, ranks=False),
    "distance_correlation": distance_correlation,
    "mutual_knn": mutual_knn,
    "gulp": gulp,
}
PAIRS = {
    **CENTRED,
    "alignment uncentred": lambda a, b: alignment(a, b, center=False),
    "kernel_distance": kernel_distance,
    "eigenvector_overlap": lambda a, b: eigenvector_overlap(a, b, 2),
}
OF_CLASSES = {
    "target_alignment": lambda a: target_alignment(a, Y),
    "class_separation": lambda a: class_separation(a, Y),
    "neural_collapse": lambda a: neural_collapse(a, Y, logits=LOGITS),
}
SINGLES = {
    **OF_CLASSES,
    "entropy": von_neumann_entropy,
    "participation_ratio": participation_ratio,
    "stable_rank": stable_rank,
    "power_law_exponent": lambda a: power_law_exponent(a, (1, 3)),
    "condition_number": condition_number,
    "regression_accuracy": lambda a: regression_accuracy(a, Y),
    "log_marginal_likelihood": lambda a: log_marginal_likelihood(a, Y),
}
DEFINED_AT_ZERO = {
    "scale": scale,
    "spectrum": spectrum,
    "class_block_means": lambda a: class_block_means(a, Y),
}


def features(shape=(12, 3)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def spoilt_by(bad, shape=(12, 3)):
    """Features with a bad one."""
    phi = features(shape)
    phi[2, 1] = bad
    return phi


def singles(metrics):
    return lambda a: {name: metric(a) for name, metric in metrics.items()}


def pairs(metrics):
    return lambda a, b: {name: metric(a, b) for name, metric in metrics.items()}


# These are compiled once for each form and shape, and shared by all tests of this file.
OF_ONE = jax.jit(singles({**SINGLES, **DEFINED_AT_ZERO}))
OF_TWO = jax.jit(pairs({**PAIRS, "bures_distance": bures_distance, "relative_change": relative_change}))


def finite(values):
    """The finite numbers among nested metrics; every test expects none."""
    leaves = jax.tree_util.tree_leaves_with_path(values)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves if np.isfinite(leaf).any()}


@EACH
class TestZeroKernel:
    def test_single(self, form, d):
        measured = OF_ONE(FORMS[form](np.zeros((12, d), np.float32)))
        for name in DEFINED_AT_ZERO:
            assert np.all(np.asarray(measured.pop(name)) == 0)
        assert finite(measured) == {}
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(measured))

    def test_pair(self, form, d):
        """Only the distance in units of features has a value: how large the other features are."""
        zero, other = (FORMS[form](phi) for phi in (np.zeros((12, d), np.float32), features((12, d))))
        size = np.linalg.norm(features((12, d)))
        for pair, distance in (((zero, zero), 0), ((zero, other), size), ((other, zero), size)):
            measured = OF_TWO(*pair)
            assert float(measured.pop("bures_distance")) == pytest.approx(distance, rel=1e-4, abs=0)
            del measured["relative_change"]
            assert finite(measured) == {}


@pytest.mark.parametrize("value", [1.0, 0.1, 1000.3])
@EACH
def test_constant_features(form, value, d):
    # a kernel of one entry has no centred geometry; what rounding leaves of the mean is none
    constant, other = FORMS[form](np.full((12, d), value, np.float32)), FORMS[form](features((12, d)))
    for pair in ((constant, constant), (constant, other), (other, constant)):
        measured = OF_TWO(*pair)
        assert finite({name: measured[name] for name in CENTRED}) == {}
        if pair[0] is pair[1]:
            assert float(measured["kernel_distance"]) == pytest.approx(0, abs=1e-6)
    measured = OF_ONE(constant)
    assert finite({name: measured[name] for name in OF_CLASSES}) == {}
    assert float(measured["participation_ratio"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of a kernel that NumPy forms
@EACH
class TestOneBadFeature:
    def test_single(self, form, d, bad):
        spoilt = FORMS[form](spoilt_by(bad, (12, d)))
        assert finite(OF_ONE(spoilt)) == {}

    def test_pair(self, form, d, bad):
        spoilt, good = FORMS[form](spoilt_by(bad, (12, d))), FORMS[form](features((12, d)))
        for pair in ((spoilt, good), (good, spoilt), (spoilt, spoilt)):
            assert finite(OF_TWO(*pair)) == {}


@pytest.mark.parametrize("spoilt", [spoilt_by(np.nan), np.zeros((12, 3), np.float32)], ids=["bad", "zero"])
def test_a_classifier_says_nothing_of_bad_features(spoilt):
    assert finite(neural_collapse(FORMS["features"](spoilt), Y, classifier=np.ones((3, 3)))) == {}


@pytest.mark.parametrize("where", ["logits", "classifier"])
def test_a_bad_last_layer(where):
    more = {"logits": LOGITS, "classifier": np.ones((3, 3))}
    more[where] = np.array(more[where])
    more[where][1, 1] = np.nan
    measured = neural_collapse(FeatureGram(features()), Y, **more)
    assert np.isnan(measured["nc4" if where == "logits" else "nc3"])
    assert np.isfinite(measured["nc3" if where == "logits" else "nc4"])


def test_bad_targets():
    y = np.random.default_rng(0).normal(size=12)
    y[3] = np.nan
    gram = FeatureGram(features())
    for metric in (target_alignment, log_marginal_likelihood):
        assert np.isnan(metric(gram, y))


@pytest.mark.parametrize("shape", [(12, 1), (2, 5), (60, 55)], ids=str)
def test_default_metrics_of_small_layers(shape):
    # a head with one output has one eigenvalue, which is no power law
    gram = FORMS["features"](features(shape))
    metrics = {**DEFAULT, **of_targets(np.arange(shape[0]) % 2)}
    if shape[0] < 4:
        del metrics["cka"]  # refuses, as debiased
    measured = jax.jit(lambda a, b: {name: metric(a, b) for name, metric in metrics.items()})(gram, gram)
    for name, value in measured.items():
        assert value.shape == (), name
        if shape[0] > 4 and shape[1] > 1:
            assert np.isfinite(value), name
