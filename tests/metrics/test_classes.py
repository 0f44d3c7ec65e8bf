"""How a kernel arranges classes, against loops over examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

from nngp_plugins.metrics import FeatureGram, class_block_means, class_separation, neural_collapse, target_alignment

from . import oracles

pytestmark = pytest.mark.once

FORMS = {"features": lambda phi: FeatureGram(jnp.asarray(phi)), "dense": lambda phi: jnp.asarray(phi @ phi.mT)}
SHAPES = [(30, 7), (12, 24)]


def classified(shape, seed=0):
    """Features of three unbalanced classes, float64, and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(shape[0]) ** 2 % 3  # 0 and 1 only
    y[::4] = 2
    return rng.normal(size=shape) + rng.normal(size=(3, shape[1]))[y], y


METRICS = {
    "target_alignment": (
        target_alignment,
        lambda phi, y: oracles.cka_oracle(oracles.hsic_biased)(phi, oracles.one_hot(y)),
    ),
    "class_block_means": (class_block_means, lambda phi, y: oracles.class_block_means(phi @ phi.T, y)),
    "class_separation": (class_separation, oracles.nc1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=["N>D", "N<D"])
class TestOracle:
    def test_float64(self, shape, form):
        phi, y = classified(shape)
        # Labels or one-hot, each with every shape and form.
        labels = y if (shape in SHAPES[:1]) == (form == "features") else oracles.one_hot(y)
        with jax.enable_x64(True):
            measured = jax.jit(lambda gram: measure(gram, labels))(FORMS[form](phi))
        for name, (_, oracle) in METRICS.items():
            np.testing.assert_allclose(measured[name], oracle(phi, y), rtol=1e-9, err_msg=name)

    def test_jit_and_vmap_over_a_stack(self, shape, form):
        phi, y = classified(shape)
        stack = np.stack([phi, phi[:, ::-1] ** 2, 0.1 * phi])
        grams = FORMS[form](np.float32(stack))
        # labels as a constant, and traced where they are one-hot
        both = jax.jit(jax.vmap(lambda gram, one_hot: (measure(gram, y), measure(gram, one_hot)), in_axes=(0, None)))
        measured, traced = both(grams, np.float32(oracles.one_hot(y)))
        for name, (_, oracle) in METRICS.items():
            expected = [oracle(phi, y) for phi in stack]
            np.testing.assert_allclose(measured[name], expected, rtol=2e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(traced[name], expected, rtol=2e-4, atol=1e-5, err_msg=name)


def measure(gram, y):
    return {name: metric(gram, y) for name, (metric, _) in METRICS.items()}


class TestTargetAlignment:
    @pytest.mark.parametrize("width", [None, 1, 2])
    def test_real_targets(self, width):
        phi, _ = classified((30, 7))
        y = np.random.default_rng(1).normal(size=30 if width is None else (30, width))
        expected = oracles.cka_oracle(oracles.hsic_biased)(phi, y.reshape(30, -1))
        gram = FeatureGram(jnp.asarray(phi, jnp.float32))
        assert float(target_alignment(gram, y)) == pytest.approx(expected, rel=2e-4)
        assert float(target_alignment(gram, jnp.asarray(y))) == pytest.approx(expected, rel=2e-4)

    def test_labels_have_no_order(self):
        phi, y = classified((30, 7))
        gram = FeatureGram(jnp.asarray(phi, jnp.float32))
        names = np.array(["cat", "ant", "bee"])[y]
        renamed = [target_alignment(gram, other) for other in (y, names, 2.0 * y, y[:, None], np.array([7, -1, 3])[y])]
        np.testing.assert_allclose(renamed, float(renamed[0]), rtol=1e-5)


class TestNeuralCollapse:
    @pytest.mark.every(6)
    @pytest.mark.parametrize("shape", SHAPES, ids=["N>D", "N<D"])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_by_hand(self, shape, dtype):
        phi, y = classified(shape)
        rng = np.random.default_rng(2)
        classifier, logits = rng.normal(size=(shape[1], 3)), rng.normal(size=(shape[0], 3)) + 2 * oracles.one_hot(y)
        expected = oracles.neural_collapse(phi, y, classifier, logits)
        assert 0.1 < expected["nc4"] < 0.9
        with jax.enable_x64(dtype == jnp.float64):
            more = {"classifier": jnp.asarray(classifier, dtype), "logits": jnp.asarray(logits, dtype)}
            measured = neural_collapse(FeatureGram(jnp.asarray(phi, dtype)), y, **more)
        assert float(measured.pop("nc4")) == pytest.approx(expected.pop("nc4"))  # a fraction
        rel = 2e-4 if dtype == jnp.float32 else 1e-9
        assert {name: float(value) for name, value in measured.items()} == pytest.approx(expected, rel=rel)

    def test_by_its_kernel(self):
        phi, y = classified((30, 7))
        logits = np.random.default_rng(2).normal(size=(30, 3))
        expected = oracles.neural_collapse(phi, y, np.ones((7, 3)), logits)
        del expected["nc3"]
        measured = neural_collapse(jnp.asarray(phi @ phi.T, jnp.float32), y, logits=logits)
        assert {name: float(value) for name, value in measured.items()} == pytest.approx(expected, rel=2e-4)

    def test_jit(self):
        phi, y = classified((30, 7))
        rng = np.random.default_rng(2)
        classifier, logits = rng.normal(size=(7, 3)), rng.normal(size=(30, 3))
        expected = oracles.neural_collapse(phi, y, classifier, logits)
        of = jax.jit(lambda phi, y, w, z: neural_collapse(FeatureGram(phi), y, classifier=w, logits=z))
        measured = of(*(jnp.asarray(m, jnp.float32) for m in (phi, oracles.one_hot(y), classifier, logits)))
        assert {name: float(value) for name, value in measured.items()} == pytest.approx(expected, rel=2e-4)

    def test_collapsed(self):
        # a simplex with the classifier on it, and the network as sure as the nearest mean
        y = np.arange(12) % 4
        simplex = np.eye(4) - 1 / 4
        gram = FeatureGram(jnp.asarray(simplex[y] + 3, jnp.float32))
        measured = neural_collapse(gram, y, classifier=simplex, logits=jnp.asarray(simplex[y]))
        assert list(measured) == ["nc1", "nc2_norms", "nc2_angles", "nc3", "nc4"]
        np.testing.assert_allclose(list(measured.values()), 0, atol=1e-6)

    def test_labels_are_columns_of_the_classifier(self):
        # of classes 0, 2 and 5 of a network that knows seven
        phi, y = classified((30, 7))
        names = np.array([0, 2, 5])
        rng = np.random.default_rng(2)
        classifier, logits = rng.normal(size=(7, 7)), rng.normal(size=(30, 7))
        expected = oracles.neural_collapse(phi, names[y], classifier, logits)
        gram = FeatureGram(jnp.asarray(phi, jnp.float32))
        for labels in (names[y], 1.0 * names[y], names[y][:, None], np.eye(7)[names[y]]):
            measured = neural_collapse(gram, labels, classifier=classifier, logits=logits)
            assert {name: float(value) for name, value in measured.items()} == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("form", FORMS)
class TestClassesOfOddSizes:
    def test_gaps_and_a_class_without_examples(self, form):
        phi, y = classified((30, 7))
        gram = FORMS[form](np.float32(phi))
        gaps = np.array([0, 2, 5])[y]
        empty = np.eye(6)[gaps]
        for metric, oracle in METRICS.values():
            np.testing.assert_allclose(metric(gram, gaps), oracle(phi, y), rtol=2e-4)
        for name in ("target_alignment", "class_separation"):
            metric, oracle = METRICS[name]
            for measured in (metric(gram, empty), jax.jit(metric)(gram, jnp.asarray(empty, jnp.float32))):
                assert float(measured) == pytest.approx(oracle(phi, y), rel=2e-4)
        means = np.asarray(class_block_means(gram, empty))
        np.testing.assert_allclose(
            means[np.ix_([0, 2, 5], [0, 2, 5])], oracles.class_block_means(phi @ phi.T, y), rtol=2e-4
        )
        assert np.isnan(means[[1, 3, 4]]).all()
        assert np.isnan(means[:, [1, 3, 4]]).all()

    @pytest.mark.parametrize("labels", [np.full(12, 3), np.eye(4)[np.full(12, 3)]], ids=["labels", "one-hot"])
    def test_single_class(self, form, labels):
        gram = FORMS[form](normal(0, 12, 4))
        assert np.isnan(target_alignment(gram, labels))
        assert np.isnan(class_separation(gram, labels))
        with pytest.raises(ValueError, match=r"neural collapse needs two classes or more, and y holds a single one\."):
            neural_collapse(gram, labels)
        if labels.ndim == 2:
            traced = jnp.asarray(labels, jnp.float32)
            assert np.isnan(jax.jit(target_alignment)(gram, traced))
            assert np.isnan(jax.jit(class_separation)(gram, traced))

    def test_one_example_each(self, form):
        gram = FORMS[form](normal(0, 4, 6))
        assert float(class_separation(gram, jnp.arange(4))) == pytest.approx(0, abs=1e-10)
        phi = normal(0, 4, 6)
        np.testing.assert_allclose(class_block_means(gram, jnp.arange(4)), phi @ phi.T, rtol=1e-5, atol=1e-6)

    @pytest.mark.every(6)
    @pytest.mark.parametrize(("n", "d", "count"), [(1000, 9, 10), (500, 3, 10)], ids=["D<C", "D<C-1"])
    def test_more_classes_than_features(self, form, n, d, count):
        # the class means leave directions that are zero but for rounding, which must not be inverted
        rng = np.random.default_rng(0)
        phi, y = np.maximum(rng.normal(size=(n, d)) + 1, 0), rng.integers(0, count, n)
        gram = FORMS[form](np.float32(phi))
        assert float(class_separation(gram, y)) == pytest.approx(oracles.nc1(phi, y), rel=1e-3)
