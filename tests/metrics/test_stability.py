"""How many digits are left in float32 where some are easily lost; what has no answer is nan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import (
    FeatureGram,
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

from . import oracles

pytestmark = pytest.mark.once


def of_entries(phi):
    phi = np.float32(phi)
    return jnp.asarray(phi @ phi.T)


SHAPES = pytest.mark.parametrize("shape", [(60, 5), (12, 20)], ids=["N>D", "N<D"])


def gram(phi):
    return FeatureGram(jnp.asarray(phi, jnp.float32))


FORMS = {"features": gram, "dense": of_entries}


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
@pytest.mark.parametrize("form", [lambda a: a, jax.jit(FeatureGram.by_entries)], ids=["features", "by entries"])
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


@jax.jit
def changes(a, b):
    """Of one program, as each shape compiles it anew."""
    return {
        "change": relative_change(a, b),
        "distance": kernel_distance(a, b),
        "distance back": kernel_distance(b, a),
        "centred distance": kernel_distance(a, b, center=True),
        "cosine": alignment(a, b, center=False),
        "bures_distance": bures_distance(a, b),
    }


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
        found = changes(*(FORMS[form](f) for f in (phi, psi)))
        assert float(found["change"]) == pytest.approx(size / np.sqrt(d - 1), rel=1e-3)
        expected = size**2 / (d - 1) / 2
        assert float(found["distance"]) == pytest.approx(expected, rel=1e-3)
        assert float(found["distance back"]) == pytest.approx(expected, rel=1e-3)

    @SHAPES
    @pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    def test_of_random_features(self, shape, size):
        rng = np.random.default_rng(3)
        psi = rng.normal(size=shape) + 0.3
        phi, psi = rounded(psi + size * rng.normal(size=shape)), rounded(psi)
        found = changes(gram(phi), gram(psi))
        assert float(found["change"]) == pytest.approx(oracles.relative_change(phi, psi), rel=1e-3)
        assert float(found["distance"]) == pytest.approx(oracles.kernel_distance(phi, psi), rel=1e-3)
        # centring rounds each feature once more, by 1e-7
        expected = oracles.kernel_distance(phi, psi, center=True)
        rel = 1e-3 if size > 1e-5 else 0.1
        assert float(found["centred distance"]) == pytest.approx(expected, rel=rel)

    @SHAPES
    @pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4, 1e-5])
    def test_bures_distance(self, shape, size):
        rng = np.random.default_rng(3)
        psi = rng.normal(size=shape)
        phi, psi = rounded(psi + size * rng.normal(size=shape)), rounded(psi)
        # rounding moves the features by 1e-6
        expected = oracles.procrustes(phi, psi)
        assert float(changes(gram(phi), gram(psi))["bures_distance"]) == pytest.approx(expected, rel=1e-3, abs=2e-5)

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
        found = changes(gram(phi @ q), gram(phi))
        assert 0 <= found["change"] < 1e-5
        assert 0 <= found["distance"] < 1e-10
        assert 0 <= found["centred distance"] < 1e-10
        assert 0 <= found["bures_distance"] < 1e-4

    @SHAPES
    @pytest.mark.parametrize("factor", [1e-6, 1e-2, 1e6])
    def test_sizes_of_kernels_do_not_count(self, shape, factor):
        phi, psi = np.random.default_rng(3).normal(size=(2, *shape))
        expected = oracles.kernel_distance(phi, psi)
        for of_phi, of_psi in ((factor, 1), (1, factor), (factor, factor)):
            found = changes(gram(of_phi * phi), gram(of_psi * psi))
            assert float(found["distance"]) == pytest.approx(expected, rel=1e-4)
            assert float(found["cosine"]) == pytest.approx(1 - expected, rel=1e-4)


def several(a, b, y, window):
    """Metrics of each kind, of one program."""

    @jax.jit
    def values(a, b):
        return {
            "alignment": alignment(a, b),
            "bures_distance": bures_distance(a, b),
            "class_separation": class_separation(a, y),
            "effective_rank": effective_rank(a),
            "power_law_exponent": power_law_exponent(a, window),
            "regression_accuracy": regression_accuracy(a, y),
        }

    return {name: float(value) for name, value in values(a, b).items()}


def several_in_float64(phi, psi, y, window):
    return {
        "alignment": oracles.cka_oracle(oracles.hsic_biased)(phi, psi),
        "bures_distance": oracles.procrustes(phi, psi),
        "class_separation": oracles.nc1(phi, y),
        "effective_rank": np.exp(oracles.entropy(oracles.eigenvalues(phi))),
        "power_law_exponent": oracles.power_law_exponent(phi, *window),
        "regression_accuracy": oracles.regression_accuracy(phi @ phi.T, y, 1e-3),
    }


class TestDuplicates:
    @pytest.mark.parametrize("form", FORMS)
    def test_each_example_twice(self, form):
        # with every example twice, means over pairs stay what they are, and nothing is singular
        rng = np.random.default_rng(0)
        phi, psi = (np.repeat(f, 2, axis=0) for f in rng.normal(size=(2, 12, 20)))
        y = np.repeat(np.arange(12) % 3, 2)
        measured = several(FORMS[form](phi), FORMS[form](psi), y, (2, 12))
        assert measured == pytest.approx(several_in_float64(phi, psi, y, (2, 12)), rel=2e-4)
        # the twin of the example left out has the answer
        assert measured["regression_accuracy"] == 1

    def test_all_examples_equal(self):
        metrics = (effective_rank, participation_ratio, stable_rank, condition_number)
        of_one = jax.jit(lambda a: [metric(a) for metric in metrics] + [kernel_distance(a, a)])
        *ranks, condition, distance = map(float, of_one(gram(np.full((10, 3), 0.7))))
        assert ranks == pytest.approx([1, 1, 1], abs=1e-5)
        assert distance == pytest.approx(0, abs=1e-7)
        assert condition > 1e12


@pytest.mark.every(6)
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_two_or_three_examples(form, n):
    phi, psi = np.random.default_rng(n).normal(size=(2, n, 4))
    a, b = (FORMS[form](f) for f in (phi, psi))
    y = np.arange(n) % 2
    expected = several_in_float64(phi, psi, y, (1, n))
    assert several(a, b, y, (1, n)) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    distance = oracles.kernel_distance(phi, psi)
    assert float(kernel_distance(a, b)) == pytest.approx(distance, rel=1e-3)
    with pytest.raises(ValueError, match=rf"this metric needs N >= 4 examples, got N={n}\."):
        cka(a, b)
