"""Kernels of networks in other people's Gaussian processes and kernel methods."""

import contextlib
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal
from sklearn.base import clone
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from sklearn.kernel_ridge import KernelRidge
from sklearn.manifold import TSNE
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import estimator_checks_generator

import nngp_plugins as nngp
from nngp_plugins.gp.sklearn import NNGPFeatures

N, NUGGET = 30, 0.05
X, TEST, Y = normal(0, N, 4), normal(1, 6, 4), normal(2, N, dtype=np.float64)
PARAMS = normal(3, 4, 20)


def of_any_width(params, x):
    """A network for the inputs of all checks; these pickle it."""
    return jnp.tanh(x) * params


class Network:
    """A layer that counts the rows it is run on."""

    def __init__(self):
        self.rows = 0

    def __call__(self, params, x):
        jax.debug.callback(self._count, x[:, 0])
        return jnp.tanh(x @ params)

    def _count(self, column):
        self.rows += len(column)


@pytest.fixture
def network():
    """A network that must have run each of the N examples exactly once."""
    network = Network()
    yield network
    jax.effects_barrier()
    assert network.rows == N


@pytest.fixture
def tinygp():
    return pytest.importorskip("tinygp")


@pytest.fixture
def gpx():
    return pytest.importorskip("gpjax")


def likelihood():
    phi = np.tanh(np.float64(X) @ PARAMS) / np.sqrt(20)
    ridge = NUGGET * np.sum(phi**2) / N
    covariance = phi @ phi.T + ridge * np.eye(N)
    log_det = np.linalg.slogdet(covariance)[1]
    return ridge, -0.5 * (Y @ np.linalg.solve(covariance, Y) + log_det + N * np.log(2 * np.pi))


def features(network):
    """The features, which the linear kernel of every library takes."""
    with jax.enable_x64(True):
        return np.asarray(nngp.metrics.features(network(np.float64(PARAMS), jnp.asarray(np.float64(X)))))


def test_our_likelihood(network):
    with jax.enable_x64(True):
        ours = nngp.gp.from_model(network, jnp.asarray(np.float64(PARAMS)), np.float64(X), Y, nugget=NUGGET)
    np.testing.assert_allclose(ours.log_marginal_likelihood(), likelihood()[1], rtol=1e-8)


def test_likelihood_of_scikit_learn(network):
    theirs = GaussianProcessRegressor(DotProduct(0, "fixed"), alpha=likelihood()[0], optimizer=None)
    theirs.fit(features(network), Y)
    np.testing.assert_allclose(theirs.log_marginal_likelihood_value_, likelihood()[1], rtol=1e-8)


def test_likelihood_of_tinygp(tinygp, network):
    with jax.enable_x64(True):
        kernel = tinygp.kernels.DotProduct()
        theirs = tinygp.GaussianProcess(kernel, jnp.asarray(features(network)), diag=likelihood()[0])
        np.testing.assert_allclose(theirs.log_probability(jnp.asarray(Y)), likelihood()[1], rtol=1e-8)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_likelihood_of_gpjax(gpx, network):
    with jax.enable_x64(True):
        data = gpx.Dataset(X=jnp.asarray(features(network)), y=jnp.asarray(Y)[:, None])
        prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=gpx.kernels.Linear(), jitter=0.0)
        noise = gpx.likelihoods.Gaussian(obs_stddev=jnp.sqrt(likelihood()[0]))
        theirs = gpx.objectives.conjugate_mll(prior * noise, data)
        np.testing.assert_allclose(theirs, likelihood()[1], rtol=1e-8)


def test_features_pass_the_checks_of_scikit_learn():
    estimator = NNGPFeatures(of_any_width, 2.0)
    for _, check in estimator_checks_generator(estimator):
        with contextlib.suppress(unittest.SkipTest):  # of what is not installed, as for array API
            check(clone(estimator))


def test_features_in_a_pipeline():
    network, labels = NNGPFeatures(lambda params, x: jnp.tanh(x @ params), PARAMS, batch_size=7), np.int32(Y > 0)
    phi = network.fit(X).transform(X)
    np.testing.assert_allclose(phi, np.tanh(X @ PARAMS) / np.sqrt(20), rtol=1e-5, atol=1e-6)
    assert list(network.get_feature_names_out()[:2]) == ["nngpfeatures0", "nngpfeatures1"]
    search = GridSearchCV(make_pipeline(network, SVC(kernel="linear")), {"svc__C": [1.0, 100.0]}, cv=2)
    by_hand = SVC(kernel="linear", **{"C": search.fit(X, labels).best_params_["svc__C"]}).fit(phi, labels)
    np.testing.assert_array_equal(search.predict(TEST), by_hand.predict(network.transform(TEST)))
    images = np.ones((3, 2, 2))
    assert NNGPFeatures(lambda params, x: x * params, 2.0).fit_transform(images).shape == (3, 4)


def test_precomputed_kernels():
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: jnp.tanh(x @ params))
    kernel, cross = (np.asarray(kernel_fn(x, X, PARAMS), np.float64) for x in (X, TEST))
    labels = np.int32(Y > 0)
    ridge = KernelRidge(alpha=0.1, kernel="precomputed").fit(kernel, Y).predict(cross)
    ours = nngp.gp.fit(kernel, Y, nugget=0.1 * N / np.trace(kernel))
    np.testing.assert_allclose(ours.mean(cross), ridge, rtol=1e-6)
    phi, phi_test = (np.tanh(np.float64(x) @ PARAMS) / np.sqrt(20) for x in (X, TEST))
    by_features = SVC(kernel="linear").fit(phi, labels).decision_function(phi_test)
    by_kernel = SVC(kernel="precomputed").fit(kernel, labels).decision_function(cross)
    np.testing.assert_allclose(by_kernel, by_features, atol=1e-2)
    components = KernelPCA(2, kernel="precomputed").fit_transform(kernel)
    centered = phi - phi.mean(axis=0)
    np.testing.assert_allclose(
        np.sum(components**2, axis=0), np.linalg.svd(centered, compute_uv=False)[:2] ** 2, rtol=1e-4
    )
    two = np.exp(-np.abs(np.sign(X[:, :1]) - np.sign(X[:, 0])))
    found = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(two)
    assert len(set(zip(found, np.sign(X[:, 0]), strict=True))) == 2
    distances = np.sqrt(np.maximum(np.diag(kernel)[:, None] + np.diag(kernel) - 2 * kernel, 0))
    embedded = TSNE(metric="precomputed", init="random", perplexity=5, max_iter=250, random_state=0)
    assert np.isfinite(embedded.fit_transform(distances)).all()
