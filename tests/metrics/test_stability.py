"""How many digits are left in float32 where some are easily lost; what has no answer is nan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compiled import (
    alignment,
    bures_distance,
    centered_kernel_velocity,
    cka,
    class_separation,
    condition_number,
    effective_rank,
    kernel_distance,
    neural_collapse,
    participation_ratio,
    power_law_exponent,
    regression_accuracy,
    relative_change,
    stable_rank,
    target_alignment,
    von_neumann_entropy,
)

from nngp_plugins.metrics import FeatureGram

from . import oracles

FORMS = {"features": FeatureGram, "dense": lambda phi: jnp.matmul(phi, phi.T, precision="highest")}
SHAPES = pytest.mark.parametrize("shape", [(60, 5), (12, 20)], ids=["N>D", "N<D"])


def gram(phi):
    return FeatureGram(jnp.asarray(phi, jnp.float32))


def rounded(phi):
    """The nearest features that float32 holds, as float64."""
    return np.asarray(phi, np.float32).astype(float)


CENTRED = {
    "alignment": alignment,
    "kernel_distance": lambda a, b: kernel_distance(a, b, center=True),
    "velocity": lambda a, b: centered_kernel_velocity(a, b, 1),
    "cka": cka,
    "bures_distance": lambda a, b: bures_distance(a.center(), b.center()),
    "participation_ratio": lambda a, b: participation_ratio(a.center()),
    "stable_rank": lambda a, b: stable_rank(a.center()),
    "entropy": lambda a, b: von_neumann_entropy(a.center()),
    "target_alignment": lambda a, b: target_alignment(a, np.arange(a.n) % 3),
    "class_separation": lambda a, b: class_separation(a, np.arange(a.n) % 3),
    "nc2_angles": lambda a, b: neural_collapse(a, np.arange(a.n) % 3)["nc2_angles"],
}


@jax.jit
def centred(a, b):
    return {name: metric(a, b) for name, metric in CENTRED.items()}


@pytest.mark.every(3)
@SHAPES
@pytest.mark.parametrize("form", [lambda a: a, FeatureGram.by_entries], ids=["features", "by entries"])
def test_an_offset_of_1000(shape, form):
    """Centred metrics are those without the offset, but for the digits that the features themselves lose."""
    phi = np.random.default_rng(0).normal(size=shape)
    psi = phi + np.random.default_rng(1).normal(size=shape)
    # the offset is a power of two and the features are cut to what is left beside it
    phi, psi = ((np.float32(f) + np.float32(1024)).astype(float) for f in (phi, psi))
    expected = centred(form(gram(phi - 1024)), form(gram(psi - 1024)))
    for name, measured in centred(form(gram(phi)), form(gram(psi))).items():
        # the mean itself is rounded by 1e-4, which is much beside the means of classes
        rel = 1e-3 if name == "nc2_angles" else 1e-4
        assert float(measured) == pytest.approx(float(expected[name]), rel=rel, abs=1e-6), name


class TestSmallChanges:
    @pytest.mark.every(6)
    @pytest.mark.parametrize("form", FORMS)
    @SHAPES
    @pytest.mark.parametrize("size", [1e-4, 1e-8])
    def test_where_the_reference_is_zero(self, form, shape, size):
        # diag(1, ..., 1, 0) and diag(1, ..., 1, size): the change is size / sqrt(D − 1), the distance half its square
        d = min(shape)
        psi = np.zeros(shape)
        psi[np.arange(d - 1), np.arange(d - 1)] = 1
        phi = psi.copy()
        phi[d - 1, d - 1] = np.sqrt(size)
        a, b = (FORMS[form](jnp.asarray(f, jnp.float32)) for f in (phi, psi))
        assert float(relative_change(a, b)) == pytest.approx(size / np.sqrt(d - 1), rel=1e-3)
        expected = size**2 / (d - 1) / 2
        assert float(kernel_distance(a, b)) == pytest.approx(expected, rel=1e-3)
        assert float(kernel_distance(b, a)) == pytest.approx(expected, rel=1e-3)

    @SHAPES
    @pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    def test_of_random_features(self, shape, size):
        rng = np.random.default_rng(3)
        psi = rng.normal(size=shape) + 0.3
        phi, psi = rounded(psi + size * rng.normal(size=shape)), rounded(psi)
        a, b = gram(phi), gram(psi)
        assert float(relative_change(a, b)) == pytest.approx(oracles.relative_change(phi, psi), rel=1e-3)
        assert float(kernel_distance(a, b)) == pytest.approx(oracles.kernel_distance(phi, psi), rel=1e-3)
        # centring rounds each feature once more, by 1e-7
        expected = oracles.kernel_distance(phi, psi, center=True)
        rel = 1e-3 if size > 1e-5 else 0.1
        assert float(kernel_distance(a, b, center=True)) == pytest.approx(expected, rel=rel)

    @SHAPES
    @pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4, 1e-5])
    def test_bures_distance(self, shape, size):
        rng = np.random.default_rng(3)
        psi = rng.normal(size=shape)
        phi, psi = rounded(psi + size * rng.normal(size=shape)), rounded(psi)
        # rounding moves the features by 1e-6
        expected = oracles.procrustes(phi, psi)
        assert float(bures_distance(gram(phi), gram(psi))) == pytest.approx(expected, rel=1e-3, abs=2e-5)

    def test_of_dense_kernels(self):
        # entries hold 1e-7 of the kernel, so changes down to 1e-5 have two digits
        rng = np.random.default_rng(3)
        psi = rng.normal(size=(30, 40))
        for size, rel in ((1e-3, 1e-3), (1e-5, 0.05)):
            k, l = ((f @ f.T).astype(np.float32) for f in (psi + size * rng.normal(size=psi.shape), psi))  # noqa: E741
            wide_k, wide_l = k.astype(np.longdouble), l.astype(np.longdouble)
            cosine = np.sum(wide_k * wide_l) / np.sqrt(np.sum(wide_k**2) * np.sum(wide_l**2))
            assert float(kernel_distance(k, l)) == pytest.approx(float(1 - cosine), rel=rel)

    @SHAPES
    def test_rotated_features_have_not_changed(self, shape):
        rng = np.random.default_rng(3)
        phi = rng.normal(size=shape)
        q, _ = np.linalg.qr(rng.normal(size=(shape[1], shape[1])))
        a, b = gram(phi @ q), gram(phi)
        assert 0 <= float(relative_change(a, b)) < 1e-5
        assert 0 <= float(kernel_distance(a, b)) < 1e-10
        assert 0 <= float(kernel_distance(a, b, center=True)) < 1e-10
        assert 0 <= float(bures_distance(a, b)) < 1e-4

    @SHAPES
    @pytest.mark.parametrize("factor", [1e-6, 1e-2, 1e6])
    def test_sizes_of_kernels_do_not_count(self, shape, factor):
        phi, psi = np.random.default_rng(3).normal(size=(2, *shape))
        expected = oracles.kernel_distance(phi, psi)
        assert float(kernel_distance(gram(factor * phi), gram(psi))) == pytest.approx(expected, rel=1e-4)
        assert float(kernel_distance(gram(phi), gram(factor * psi))) == pytest.approx(expected, rel=1e-4)
        assert float(kernel_distance(gram(factor * phi), gram(factor * psi))) == pytest.approx(expected, rel=1e-4)
        assert float(alignment(gram(phi), gram(factor * psi), center=False)) == pytest.approx(1 - expected, rel=1e-4)


class TestDuplicates:
    @pytest.mark.parametrize("form", FORMS)
    def test_each_example_twice(self, form):
        # with every example twice, means over pairs stay what they are, and nothing is singular
        rng = np.random.default_rng(0)
        phi, psi = (np.repeat(f, 2, axis=0) for f in rng.normal(size=(2, 12, 20)))
        y = np.repeat(np.arange(12) % 3, 2)
        a, b = (FORMS[form](jnp.asarray(f, jnp.float32)) for f in (phi, psi))
        assert float(alignment(a, b)) == pytest.approx(oracles.cka_oracle(oracles.hsic_biased)(phi, psi), rel=2e-4)
        assert float(bures_distance(a, b)) == pytest.approx(oracles.procrustes(phi, psi), rel=2e-4)
        assert float(class_separation(a, y)) == pytest.approx(oracles.nc1(phi, y), rel=2e-4)
        assert float(effective_rank(a)) == pytest.approx(np.exp(oracles.entropy(oracles.eigenvalues(phi))), rel=2e-4)
        assert float(power_law_exponent(a, (2, 12))) == pytest.approx(oracles.power_law_exponent(phi, 2, 12), rel=2e-4)
        # the twin of the example left out has the answer
        assert float(regression_accuracy(a, y)) == oracles.regression_accuracy(phi @ phi.T, y, 1e-3) == 1

    def test_all_examples_equal(self):
        same = gram(np.full((10, 3), 0.7))
        assert float(effective_rank(same)) == pytest.approx(1, abs=1e-5)
        assert float(participation_ratio(same)) == pytest.approx(1)
        assert float(stable_rank(same)) == pytest.approx(1)
        assert float(kernel_distance(same, same)) == pytest.approx(0, abs=1e-7)
        assert float(condition_number(same)) > 1e12


@pytest.mark.every(6)
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_two_or_three_examples(form, n):
    phi, psi = np.random.default_rng(n).normal(size=(2, n, 4))
    a, b = (FORMS[form](jnp.asarray(f, jnp.float32)) for f in (phi, psi))
    y = np.arange(n) % 2
    assert float(alignment(a, b)) == pytest.approx(oracles.cka_oracle(oracles.hsic_biased)(phi, psi), rel=1e-3)
    assert float(kernel_distance(a, b)) == pytest.approx(oracles.kernel_distance(phi, psi), rel=1e-3)
    assert float(bures_distance(a, b)) == pytest.approx(oracles.procrustes(phi, psi), rel=1e-3)
    assert float(class_separation(a, y)) == pytest.approx(oracles.nc1(phi, y), rel=1e-3, abs=1e-6)
    assert float(regression_accuracy(a, y)) == pytest.approx(oracles.regression_accuracy(phi @ phi.T, y, 1e-3))
    assert float(power_law_exponent(a, (1, n))) == pytest.approx(oracles.power_law_exponent(phi, 1, n), rel=1e-3)
    with pytest.raises(ValueError, match=rf"this metric needs N >= 4 examples, got N={n}\."):
        cka(a, b)
