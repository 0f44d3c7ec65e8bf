"""What is not a kernel is refused by name; a kernel of nothing is nan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import kernel

from nngp_plugins.metrics import (
    DenseGram,
    FeatureGram,
    alignment,
    bures_distance,
    centered_kernel_velocity,
    cka,
    class_block_means,
    class_separation,
    condition_number,
    effective_rank,
    eigenvector_overlap,
    features,
    gulp,
    kernel_distance,
    log_marginal_likelihood,
    mutual_knn,
    neural_collapse,
    participation_ratio,
    power_law_exponent,
    regression_accuracy,
    relative_change,
    scale,
    spectrum,
    stable_rank,
    target_alignment,
    von_neumann_entropy,
)

SINGLE = [scale, effective_rank]
PAIR = [cka, relative_change, lambda a, b: cka(a, b, debiased=False)]
Y = np.array([0, 1, 0, 1])
OF_CLASSES = [class_block_means, class_separation, neural_collapse, regression_accuracy]
OF_TARGETS = [*OF_CLASSES, target_alignment, log_marginal_likelihood]
MORE_SINGLE = [
    condition_number,
    participation_ratio,
    spectrum,
    stable_rank,
    von_neumann_entropy,
    lambda a: power_law_exponent(a, (1, 2)),
    *(lambda a, m=m: m(a, Y) for m in OF_TARGETS),
]
MORE_PAIR = [
    alignment,
    lambda a, b: alignment(a, b, center=False),
    bures_distance,
    kernel_distance,
    lambda a, b: kernel_distance(a, b, center=True),
    lambda a, b: centered_kernel_velocity(a, b, 1),
    lambda a, b: eigenvector_overlap(a, b, 1),
]


@pytest.mark.parametrize(
    ("metric", "shape"),
    [
        *((scale, shape) for shape in [(3, 4), (4,), (2, 4, 4), ()]),
        *((metric, (4, 3)) for metric in [*SINGLE, *MORE_SINGLE]),
        *((lambda a, m=m: m(a, jnp.eye(4)), (4, 3)) for m in [*PAIR, *MORE_PAIR]),
    ],
)
def test_not_a_kernel(metric, shape):
    told = r"a kernel has shape \(N, N\), got .*; wrap features \(N, D\) as nngp\.metrics\.FeatureGram\(phi\), and make"
    with pytest.raises(ValueError, match=told):
        metric(jnp.asarray(np.ones(shape, np.float32)))


@pytest.mark.parametrize("metric", [*PAIR, *MORE_PAIR])
@pytest.mark.parametrize(
    "other", [jnp.eye(5), DenseGram(jnp.eye(5)), FeatureGram(jnp.ones((5, 2)))], ids=["array", "dense", "features"]
)
def test_other_examples(metric, other):
    for pair in ((jnp.eye(4), other), (other, jnp.eye(4))):
        with pytest.raises(ValueError, match=r"both kernels must be on the same examples, got N=\d and N=\d\."):
            metric(*pair)


@pytest.mark.parametrize(("debiased", "least"), [(True, 4), (False, 2)])
def test_too_few_examples(debiased, least):
    with pytest.raises(ValueError, match=rf"this metric needs N >= {least} examples, got N={least - 1}\."):
        cka(jnp.eye(least - 1), jnp.eye(least - 1), debiased=debiased)
    if not debiased:
        with pytest.raises(ValueError, match=r"this metric needs N >= 2 examples, got N=1\."):
            alignment(jnp.eye(1), jnp.eye(1))
    enough = FeatureGram(jnp.asarray(np.random.default_rng(0).normal(size=(least, 2)), jnp.float32))
    assert float(cka(enough, enough, debiased=debiased)) == pytest.approx(1)


def test_neighbours_and_ridge():
    with pytest.raises(ValueError, match=r"k=0 must be 1 or more neighbours\."):
        mutual_knn(jnp.eye(4), jnp.eye(4), k=0)
    with pytest.raises(ValueError, match=r"this metric needs N >= 5 examples, got N=4\."):
        mutual_knn(jnp.eye(4), jnp.eye(4), k=4)
    with pytest.raises(ValueError, match=r"ridge=0 must be positive; it is relative to the trace"):
        gulp(jnp.eye(4), jnp.eye(4), ridge=0)


def test_unknown_of():
    told = r"of='variance' must be 'eigenvalues' \(of the kernel\) or 'singular_values' \(of the features\)\."
    with pytest.raises(ValueError, match=told):
        effective_rank(jnp.eye(4), of="variance")


class TestTargets:
    @pytest.mark.parametrize("metric", OF_TARGETS)
    @pytest.mark.parametrize(
        "y", [np.arange(5) % 2, np.eye(3), np.zeros((4, 2, 1)), 1, np.zeros((3, 1)), []], ids=np.shape
    )
    def test_other_examples(self, metric, y):
        told = r"y of shape \(.*\) must be labels \(N,\) or one-hot \(N, C\) of the N=4 examples\."
        with pytest.raises(ValueError, match=told):
            metric(jnp.eye(4), y)

    @pytest.mark.parametrize("metric", OF_CLASSES)
    @pytest.mark.parametrize(
        "y",
        [[0.5, 1, 0, 1], np.ones((4, 2)), np.zeros((4, 2)), 2 * np.eye(4), np.full((4, 2), 0.5)],
        ids=["numbers", "two", "none", "double", "soft"],
    )
    def test_not_classes(self, metric, y):
        told = r"y must be labels \(N,\) or one-hot \(N, C\), with a single 1 in each row\."
        with pytest.raises(ValueError, match=told):
            metric(jnp.eye(4), np.asarray(y))

    @pytest.mark.parametrize("metric", OF_TARGETS)
    def test_labels_that_jit_traces(self, metric):
        told = r"y holds labels that jit traces; pass them one-hot, \(N, C\), or as a constant\."
        with pytest.raises(TypeError, match=told):
            jax.jit(metric)(jnp.eye(4), jnp.asarray(Y))

    def test_words_in_columns(self):
        with pytest.raises(TypeError, match=r"y holds <U3; pass labels \(N,\), or numbers \(N, C\)\."):
            target_alignment(jnp.eye(2), np.array([["ant", "bee"], ["cat", "dog"]]))

    def test_single_class(self):
        with pytest.raises(ValueError, match=r"neural collapse needs two classes or more, and y holds a single one\."):
            neural_collapse(jnp.eye(4), np.zeros(4))

    @pytest.mark.parametrize("shape", [(4, 2), (3, 1), (2,), (3, 2, 1), (2, 3)])
    def test_classifier(self, shape):
        told = (
            rf"classifier of shape \({str(shape)[1:-1]}\) must be \(D, C\) with D=3 features and a column for each of 2"
        )
        with pytest.raises(ValueError, match=told):
            neural_collapse(FeatureGram(jnp.ones((4, 3))), Y, classifier=jnp.ones(shape))

    def test_classifier_of_a_kernel(self):
        told = r"classifier= needs features: pass FeatureGram\(phi\), as a kernel does not know its axes\."
        with pytest.raises(ValueError, match=told):
            neural_collapse(jnp.eye(4), Y, classifier=jnp.ones((4, 2)))

    @pytest.mark.parametrize("shape", [(3, 2), (4, 1), (4,), (2, 4)])
    def test_logits(self, shape):
        told = rf"logits of shape \({str(shape)[1:-1]}\) must be \(N, C\) with N=4 and a column for each of 2 classes\."
        with pytest.raises(ValueError, match=told):
            neural_collapse(jnp.eye(4), Y, logits=jnp.ones(shape))


def test_complex_features():
    told = "metrics are defined for real features, got complex64; pass the real and imaginary parts"
    with pytest.raises(TypeError, match=told):
        features(jnp.ones((4, 2), jnp.complex64))


@pytest.mark.parametrize("zero", [jnp.zeros((5, 5)), FeatureGram(jnp.zeros((5, 2)))], ids=["dense", "features"])
class TestZeroKernel:
    """By eager calls; those of one program are in test_degenerate."""

    @pytest.mark.parametrize("debiased", [True, False])
    def test_cka(self, zero, debiased):
        other = FeatureGram(jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32))
        for pair in ((zero, zero), (zero, other), (other, zero)):
            assert np.isnan(cka(*pair, debiased=debiased))

    def test_effective_rank(self, zero):
        for of in ("eigenvalues", "singular_values"):
            assert np.isnan(effective_rank(zero, of=of))

    def test_relative_change(self, zero):
        other = FeatureGram(jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32))
        assert np.isnan(relative_change(zero, zero))
        # a head that starts at zero, as in Haiku's ResNets, is a reference that nothing can be relative to
        assert np.isnan(relative_change(other, zero))
        assert float(relative_change(zero, other)) == pytest.approx(1)

    def test_scale(self, zero):
        assert float(scale(zero)) == 0


@pytest.mark.every(6)
@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("value", [1.0, 0.1, 1000.3])
@pytest.mark.parametrize("form", [FeatureGram, kernel], ids=["features", "dense"])
def test_cka_of_constant_features(debiased, value, form):
    # no example differs from another; what rounding leaves of the mean is no geometry
    constant = form(jnp.full((100, 3), value))
    other = form(jnp.asarray(np.random.default_rng(0).normal(size=(100, 3)), jnp.float32))
    for pair in ((constant, constant), (constant, other), (other, constant)):
        assert np.isnan(cka(*pair, debiased=debiased))


@pytest.mark.every(6)
@pytest.mark.parametrize("form", [FeatureGram, kernel], ids=["features", "dense"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize(
    "metric",
    [
        scale,
        effective_rank,
        lambda a: effective_rank(a, of="singular_values"),
        *(lambda a, m=m: m(a, jnp.eye(8)) for m in PAIR),
    ],
    ids=["scale", "effective_rank", "RankMe", "cka", "relative_change", "cka biased"],
)
def test_one_bad_feature_is_never_a_finite_number(metric, bad, form):
    phi = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32).at[2, 1].set(bad)
    assert not np.isfinite(metric(form(phi)))
