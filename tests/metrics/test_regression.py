"""Kernel regression against leaving each example out, SciPy, and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from nngp_plugins.metrics import FeatureGram, log_marginal_likelihood, regression_accuracy

from . import oracles

pytestmark = pytest.mark.once

FORMS = {"features": lambda phi: FeatureGram(jnp.asarray(phi)), "dense": lambda phi: jnp.asarray(phi @ phi.mT)}


def classified(shape, seed=0):
    """Features of three classes that overlap, float64, and their labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, shape[0])
    return rng.normal(size=shape) + 0.8 * rng.normal(size=(3, shape[1]))[y], y


def likelihood(kernel, targets, nugget):
    covariance = kernel + nugget * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    return sum(scipy.stats.multivariate_normal.logpdf(column, cov=covariance) for column in targets.T)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(30, 7), (16, 24)], ids=["N>D", "N<D"])
class TestOracle:
    @pytest.mark.every(6)
    @pytest.mark.parametrize("nugget", [1e-3, 0.1, 3.0])
    def test_accuracy_is_that_of_leaving_one_out(self, shape, form, nugget):
        fractions = []
        for seed in range(4):
            phi, y = classified(shape, seed)
            fractions.append(oracles.regression_accuracy(phi @ phi.T, y, nugget))
            gram = FORMS[form](np.float32(phi))
            assert float(regression_accuracy(gram, y, nugget)) == pytest.approx(fractions[-1])
        assert len(set(fractions)) > 1
        assert 0.2 < np.mean(fractions) < 0.95

    @pytest.mark.every(6)
    @pytest.mark.parametrize("width", [None, 3])
    def test_likelihood_is_that_of_a_normal_distribution(self, shape, form, width):
        phi, _ = classified(shape)
        y = np.random.default_rng(1).normal(size=shape[0] if width is None else (shape[0], width))
        for nugget in (1e-3, 0.5):
            expected = likelihood(phi @ phi.T, y.reshape(shape[0], -1), nugget)
            measured = log_marginal_likelihood(FORMS[form](np.float32(phi)), y, nugget)
            assert float(measured) == pytest.approx(expected, rel=2e-4)
        with jax.enable_x64(True):
            measured = log_marginal_likelihood(FORMS[form](phi), y, nugget)
        assert float(measured) == pytest.approx(expected, rel=1e-9)

    def test_labels_are_made_one_hot(self, shape, form):
        phi, y = classified(shape)
        expected = likelihood(phi @ phi.T, oracles.one_hot(y), 1e-3)
        with jax.enable_x64(True):
            gram = FORMS[form](phi)
            for labels in (y, oracles.one_hot(y), np.array(["a", "b", "c"])[y]):
                assert float(log_marginal_likelihood(gram, labels)) == pytest.approx(expected, rel=1e-9)

    def test_jit_and_vmap_over_a_stack(self, shape, form):
        stack, (_, y) = np.stack([classified(shape, seed)[0] for seed in range(3)]), classified(shape)
        grams = FORMS[form](np.float32(stack))
        one_hot = np.float32(oracles.one_hot(y))
        accuracy = jax.jit(jax.vmap(regression_accuracy, in_axes=(0, None)))(grams, one_hot)
        expected = [oracles.regression_accuracy(phi @ phi.T, y, 1e-3) for phi in stack]
        np.testing.assert_allclose(accuracy, expected, rtol=1e-6)
        measured = jax.jit(jax.vmap(lambda gram: log_marginal_likelihood(gram, y)))(grams)
        expected = [likelihood(phi @ phi.T, oracles.one_hot(y), 1e-3) for phi in stack]
        np.testing.assert_allclose(measured, expected, rtol=2e-4)


def test_accuracy_of_scikit_learn():
    phi, y = classified((40, 6), seed=5)
    kernel = phi @ phi.T
    ridge = KernelRidge(alpha=0.05 * np.trace(kernel) / 40, kernel="precomputed")
    predicted = cross_val_predict(ridge, kernel, oracles.one_hot(y), cv=LeaveOneOut())
    expected = np.mean(predicted.argmax(axis=1) == y)
    assert 0.4 < expected < 0.95
    assert float(regression_accuracy(jnp.asarray(kernel, jnp.float32), y, 0.05)) == pytest.approx(expected)


@pytest.mark.parametrize("width", [1, 2])
def test_likelihood_of_scikit_learn(width):
    phi, _ = classified((25, 6))
    y = np.random.default_rng(1).normal(size=(25, width))
    noise = 0.05 * np.trace(phi @ phi.T) / 25
    process = GaussianProcessRegressor(DotProduct(0.0, "fixed"), alpha=noise, optimizer=None).fit(phi, y)
    measured = log_marginal_likelihood(FeatureGram(jnp.asarray(phi, jnp.float32)), y, 0.05)
    assert float(measured) == pytest.approx(process.log_marginal_likelihood(), rel=2e-4)


def test_a_nugget_that_jit_traces():
    phi, y = classified((30, 7))
    gram = FeatureGram(jnp.asarray(phi, jnp.float32))
    for metric in (regression_accuracy, log_marginal_likelihood):
        traced = jax.jit(lambda nugget, metric=metric: metric(gram, y, nugget))(0.1)
        assert float(traced) == pytest.approx(float(metric(gram, y, 0.1)), rel=1e-5)


def test_targets_choose_the_kernel_that_made_them():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(60, 4))
    y = phi @ rng.normal(size=(4, 1)) + 0.1 * rng.normal(size=(60, 1))
    own, other = (FeatureGram(jnp.asarray(f, jnp.float32)) for f in (phi, rng.normal(size=(60, 4))))
    assert float(log_marginal_likelihood(own, y, 0.01)) > float(log_marginal_likelihood(other, y, 0.01)) + 50


@pytest.mark.parametrize("nugget", [0, 0.0, -1e-3, float("nan")])
@pytest.mark.parametrize("metric", [regression_accuracy, log_marginal_likelihood])
def test_nugget_must_be_positive(metric, nugget):
    with pytest.raises(ValueError, match=rf"nugget={nugget} must be positive; it is relative to tr K / N\."):
        metric(jnp.eye(4), jnp.array([0, 1, 0, 1]), nugget)
