"""Gaussian processes against their formulas in float64 NumPy and against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gp.oracles import process
from helpers.arrays import normal
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

import nngp_plugins as nngp
from nngp_plugins.metrics import DenseGram, FeatureGram, StreamedGram

N, M = 40, 7


def data(width, columns=None, dtype=np.float64, seed=0):
    phi, test = normal(seed, N, width, dtype=dtype), normal(seed + 1, M, width, dtype=dtype)
    return phi, normal(seed + 2, *((N,) if columns is None else (N, columns)), dtype=dtype), test


def dense(matrix, wrap=DenseGram):
    with jax.enable_x64(True):
        return wrap(jnp.asarray(matrix))


def assert_is(posterior, test_arguments, own_arguments, expected, rtol):
    mean, covariance = expected["mean"], expected["covariance"]
    size = np.max(np.abs(mean))
    np.testing.assert_allclose(posterior.mean(test_arguments), mean, rtol=0, atol=rtol * size)
    diagonal = [np.diag(own) for own in own_arguments]
    np.testing.assert_allclose(posterior.variance(test_arguments, *diagonal), np.diag(covariance), rtol=rtol)
    np.testing.assert_allclose(
        posterior.covariance(test_arguments, *own_arguments), covariance, rtol=0, atol=rtol * np.max(covariance)
    )
    np.testing.assert_allclose(posterior.log_marginal_likelihood(), expected["log_marginal_likelihood"], rtol=rtol)
    left_out = posterior.leave_one_out()
    size = np.max(np.abs(expected["left_out_mean"]))
    np.testing.assert_allclose(left_out.mean, expected["left_out_mean"], rtol=0, atol=rtol * size)
    np.testing.assert_allclose(left_out.variance, expected["left_out_variance"], rtol=rtol)


@pytest.mark.parametrize("columns", [None, 3])
@pytest.mark.parametrize("width", [6, 60], ids=["narrow", "wide"])
@pytest.mark.parametrize("nugget", [1e-4, 1e-1])
def test_the_formulas(width, columns, nugget):
    phi, y, test = data(width, columns)
    expected = process(phi, y, test, nugget)
    assert_is(nngp.gp.fit(FeatureGram(phi), y, nugget=nugget), test, (), expected, 1e-7)
    for kernel in (phi @ phi.T, dense(phi @ phi.T)):
        assert_is(nngp.gp.fit(kernel, y, nugget=nugget), test @ phi.T, (test @ test.T,), expected, 1e-7)


@pytest.mark.parametrize("width", [12, 60], ids=["narrow", "wide"])
def test_float32_features_with_a_condition_number_of_1e6(width):
    """The features are what is rounded; 1e-3 is asked for, and nothing is lost after them."""
    phi, y, test = data(width, dtype=np.float32)
    phi = phi * np.geomspace(1, 1e-3, width, dtype=np.float32)
    kernel = np.float64(phi) @ np.float64(phi).T
    nugget = 1e-6 * np.linalg.eigvalsh(kernel)[-1] * N / np.trace(kernel)
    assert_is(
        nngp.gp.fit(FeatureGram(jnp.asarray(phi)), y, nugget=nugget), test, (), process(phi, y, test, nugget), 1e-6
    )


def test_scikit_learn():
    phi, y, test = data(6)
    ridge = 0.01 * np.sum(phi**2) / N
    theirs = GaussianProcessRegressor(DotProduct(0, "fixed"), alpha=ridge, optimizer=None).fit(phi, y)
    ours = nngp.gp.fit(FeatureGram(phi), y, nugget=0.01)
    mean, covariance = theirs.predict(test, return_cov=True)
    np.testing.assert_allclose(ours.mean(test), mean, rtol=1e-8)
    np.testing.assert_allclose(ours.covariance(test), covariance, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(ours.log_marginal_likelihood(), theirs.log_marginal_likelihood_value_, rtol=1e-8)


def test_many_examples_from_a_memory_map(tmp_path):
    """More than one block of rows, the last one smaller."""
    n = 9001
    phi, y = normal(0, n, 3), normal(1, n)
    stored = np.memmap(tmp_path / "phi", phi.dtype, "w+", shape=phi.shape)
    stored[:] = phi
    ours = nngp.gp.fit(FeatureGram(stored), y, nugget=0.1)
    exact = np.float64(phi)
    ridge = 0.1 * np.sum(exact**2) / n
    weights = np.linalg.solve(exact.T @ exact + ridge * np.eye(3), exact.T @ y)
    np.testing.assert_allclose(ours.weights[:, 0], weights, rtol=1e-10)
    hat = np.sum(exact * np.linalg.solve(exact.T @ exact + ridge * np.eye(3), exact.T).T, axis=1)
    expected = y - (y - exact @ weights) / (1 - hat)
    np.testing.assert_allclose(ours.leave_one_out().mean, expected, atol=1e-10)
    residual = y - exact @ weights
    logs = np.sum(np.log(np.linalg.eigvalsh(exact.T @ exact) + ridge)) + (n - 3) * np.log(ridge)
    fit = (np.float64(y) @ residual) / ridge
    np.testing.assert_allclose(ours.log_marginal_likelihood(), -0.5 * (fit + logs + n * np.log(2 * np.pi)), rtol=1e-10)


@pytest.mark.parametrize("width", [6, 60], ids=["narrow", "wide"])
def test_the_best_likelihood(width):
    phi, y, test = data(width)
    y = 3 * phi[:, 0] + (8 if width > N else 0.5) * y

    def loss(logs):
        return -process(phi, y, test, *np.exp(logs))["log_marginal_likelihood"]

    best = minimize(loss, np.log([0.1, 1.0]), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    for kernel in (FeatureGram(phi), phi @ phi.T):
        ours = nngp.gp.fit(kernel, y, select="lml")
        np.testing.assert_allclose(ours.log_marginal_likelihood(), -best.fun, rtol=1e-8)
        np.testing.assert_allclose([ours.nugget, ours.scale], np.exp(best.x), rtol=1e-3)
    expected = process(phi, y, test, ours.nugget, ours.scale)
    assert_is(nngp.gp.fit(FeatureGram(phi), y, select="lml"), test, (), expected, 1e-5)


@pytest.mark.parametrize("width", [6, 60], ids=["narrow", "wide"])
def test_the_least_error_of_left_out_examples(width):
    phi, y, test = data(width, 2)
    y = 3 * phi[:, :2] + 0.5 * y

    def error(nugget):
        return np.mean((process(phi, y, test, nugget)["left_out_mean"] - y) ** 2)

    for kernel in (FeatureGram(phi), phi @ phi.T):
        ours = nngp.gp.fit(kernel, y, select="loo")
        assert error(ours.nugget) <= min(map(error, np.logspace(-6, 1, 15))) * (1 + 1e-6)
        left_out = ours.leave_one_out()
        np.testing.assert_allclose(np.mean((left_out.mean - y) ** 2 / left_out.variance[:, None]), 1)


@pytest.mark.parametrize("width", [6, 60], ids=["narrow", "wide"])
def test_duplicates_without_noise_have_the_answer_of_the_pseudo_inverse(width):
    phi, y, test = data(width)
    phi = np.concatenate([phi[:20], phi[:20]])
    phi[:, 0] = 0  # of which only test examples have something, so that it keeps the variance of the prior
    kernel, cross = phi @ phi.T, test @ phi.T
    inverse = np.linalg.pinv(kernel, rcond=1e-10, hermitian=True)
    variance = np.sum(test**2, axis=1) - np.sum(cross @ inverse * cross, axis=1)
    by_features, by_entries = nngp.gp.fit(FeatureGram(phi), y, nugget=0), nngp.gp.fit(kernel, y, nugget=0)
    for ours, arguments in ((by_features, (test,)), (by_entries, (cross, np.sum(test**2, axis=1)))):
        np.testing.assert_allclose(ours.mean(arguments[0]), cross @ inverse @ y, atol=1e-8)
        np.testing.assert_allclose(ours.variance(*arguments), variance, atol=1e-8)
        with pytest.raises(ValueError, match=r"log_marginal_likelihood is not defined for nugget=0.*singular"):
            ours.log_marginal_likelihood()
    with pytest.raises(ValueError, match="leave_one_out has no answer for nugget=0"):
        by_entries.leave_one_out()
    tiny = nngp.gp.fit(FeatureGram(phi), y, nugget=1e-9)
    np.testing.assert_allclose(tiny.mean(test), cross @ inverse @ y, atol=1e-4)


def test_without_noise_a_kernel_of_full_rank_goes_through_its_targets():
    phi, y, _ = data(60)
    kernel = phi @ phi.T
    ours = nngp.gp.fit(kernel, y, nugget=0)
    np.testing.assert_allclose(ours.mean(kernel), y, atol=1e-8)
    expected = process(phi, y, phi, 0.0)
    np.testing.assert_allclose(ours.log_marginal_likelihood(), expected["log_marginal_likelihood"], rtol=1e-8)
    np.testing.assert_allclose(ours.leave_one_out().mean, expected["left_out_mean"], rtol=1e-6)


def test_an_example_that_nothing_else_says_anything_of():
    phi = np.zeros((5, 2))
    phi[:4, 0], phi[4, 1] = [1, 2, 3, 4], 1
    posterior = nngp.gp.fit(FeatureGram(phi), np.array([1.1, 2, 3, 4, 5]), nugget=0)
    with pytest.raises(ValueError, match="leave_one_out has no answer for example 4: with nugget=0"):
        posterior.leave_one_out()


def test_a_nugget_below_rounding_is_said():
    phi, y, test = data(6, dtype=np.float32)
    kernel = phi @ phi.T
    with pytest.warns(RuntimeWarning, match=r"nugget=1e-08 is below the rounding error of the kernel"):
        ours = nngp.gp.fit(kernel, y, nugget=1e-8)
    exact = np.linalg.lstsq(np.float64(phi), np.float64(y), rcond=None)[0]
    np.testing.assert_allclose(ours.mean(test @ phi.T), test @ exact, atol=1e-3)
    assert np.isfinite(ours.variance(test @ phi.T, np.sum(test**2, axis=1))).all()
    with pytest.warns(RuntimeWarning, match="below the rounding error"):
        same = nngp.gp.fit(np.ones((N, N), np.float32), y, nugget=1e-9)
    with pytest.raises(ValueError, match=r"log_marginal_likelihood is not defined for nugget=.*singular"):
        same.log_marginal_likelihood()


@pytest.mark.parametrize("width", [3, 60], ids=["narrow", "wide"])
def test_samples_have_the_mean_and_the_covariance(width):
    phi, y, test = data(width, 2)
    n = 4000
    expected = process(phi, y, test, 0.1)
    by_features, by_entries = nngp.gp.fit(FeatureGram(phi), y, nugget=0.1), nngp.gp.fit(phi @ phi.T, y, nugget=0.1)
    key = jax.random.key(0)
    for samples in (by_features.sample(key, test, n), by_entries.sample(key, test @ phi.T, test @ test.T, n)):
        assert samples.shape == (n, M, 2)
        deviation = np.sqrt(np.diag(expected["covariance"]) / n)[:, None]
        assert np.abs((samples.mean(axis=0) - expected["mean"]) / deviation).max() < 5
        covariance = np.cov(samples[..., 0].T)
        assert np.abs(covariance - expected["covariance"]).max() < 5 * np.sqrt(2 / n) * expected["covariance"].max()


def test_labels_are_regressed_on_one_hot():
    phi, _, test = data(6)
    labels = np.array(["cat", "dog", "owl"])[np.argmax(phi[:, :3], axis=1)]
    ours = nngp.gp.fit(FeatureGram(phi), labels, nugget=0.01)
    one_hot = np.float64(labels[:, None] == ["cat", "dog", "owl"]) - 1 / 3
    expected = process(phi, one_hot, test, 0.01)
    np.testing.assert_allclose(ours.mean(test), expected["mean"], atol=1e-6)
    assert list(ours.classes) == ["cat", "dog", "owl"]
    assert list(ours.predict(test)) == [ours.classes[c] for c in np.argmax(expected["mean"], axis=1)]
    noise = np.random.default_rng(0).normal(size=(100_000, M, 3))
    draws = expected["mean"] + noise * np.sqrt(np.diag(expected["covariance"])[:, None] + ours.noise)
    shares = np.mean(np.argmax(draws, axis=2)[:, :, None] == np.arange(3), axis=0)
    np.testing.assert_allclose(ours.probabilities(test), shares, atol=0.01)
    dense = nngp.gp.fit(phi @ phi.T, labels, nugget=0.01)
    np.testing.assert_allclose(
        dense.probabilities(test @ phi.T, np.sum(test**2, axis=1)), ours.probabilities(test), rtol=1e-6, atol=1e-12
    )


def test_labels_are_those_of_trackers():
    phi, _, test = data(6)
    labels = np.argmax(phi[:, :3], axis=1)
    as_integers = nngp.gp.fit(FeatureGram(phi), labels)
    for y in (np.float32(labels), np.eye(3)[labels], labels[:, None]):
        ours = nngp.gp.fit(FeatureGram(phi), y)
        assert list(ours.classes) == [0, 1, 2]
        np.testing.assert_array_equal(ours.mean(test), as_integers.mean(test))
    absent = nngp.gp.fit(FeatureGram(phi), np.eye(4)[labels])
    assert list(absent.classes) == [0, 1, 2, 3]
    numbers = nngp.gp.fit(FeatureGram(phi), np.float32(labels[:, None]))
    np.testing.assert_allclose(numbers.mean(test), process(phi, 1.0 * labels, test, 1e-3)["mean"][:, None], rtol=1e-6)


class Stored:
    """Features that may be read in slices of a few rows only, as those of a store that does not fit in memory."""

    def __init__(self, phi, block_rows):
        self.phi, self.shape, self.dtype, self.block_rows = phi, phi.shape, phi.dtype, block_rows
        self.read = 0

    def __getitem__(self, rows):
        start, stop, _ = rows.indices(len(self.phi))
        assert start % self.block_rows == 0
        assert stop - start <= max(5000, self.shape[1])
        self.read += stop - start
        return self.phi[rows]


@pytest.mark.parametrize("shape", [(9001, 5), (20, 30)], ids=["narrow", "wide"])
def test_features_that_are_read_block_by_block(shape):
    phi, test = normal(0, *shape), normal(1, M, shape[1])
    y = 3 * np.sin(phi[:, 0]) + normal(2, shape[0])
    stored = Stored(phi, 1000)
    for options in ({"nugget": 0.1}, {"select": "loo"}):
        ours, held = (nngp.gp.fit(gram, y, **options) for gram in (StreamedGram(stored), FeatureGram(phi)))
        for method in ("mean", "variance"):
            np.testing.assert_allclose(getattr(ours, method)(test), getattr(held, method)(test), rtol=1e-8)
        np.testing.assert_allclose(ours.log_marginal_likelihood(), held.log_marginal_likelihood(), rtol=1e-8)
        for left_out, expected in zip(ours.leave_one_out(), held.leave_one_out(), strict=True):
            np.testing.assert_allclose(left_out, expected, rtol=1e-8)
    stored.read = 0
    nngp.gp.fit(StreamedGram(stored), y, nugget=0.1)
    assert stored.read == shape[0]


def test_stored_features(tmp_path):
    x, params, test, y = normal(0, 50, 3), normal(1, 3, 5), normal(2, M, 5), normal(3, 50)
    options = {"batch_size": 20, "block_size": 20, "progress": False}
    store = nngp.write_features(lambda params, x: x @ params, x, params, tmp_path / "features", **options)
    ours, held = (nngp.gp.fit(gram, y, nugget=0.1) for gram in (nngp.gram(store), FeatureGram(store[:])))
    np.testing.assert_allclose(ours.mean(test), held.mean(test), rtol=1e-8)
    np.testing.assert_allclose(ours.mean(test), process(store[:], y, test, 0.1)["mean"], rtol=1e-6)


@pytest.mark.parametrize("batch_size", [0, 16])
@pytest.mark.parametrize("width", [5, 64], ids=["narrow", "wide"])
def test_from_model_runs_each_example_once(width, batch_size):
    rows = []

    def f(params, x):
        jax.debug.callback(lambda n: rows.append(int(n)), len(x))
        return jnp.tanh(x @ params)

    params, x, test, y = normal(0, 4, width), normal(1, 48, 4), normal(2, 16, 4), normal(3, 48)
    ours = nngp.gp.from_model(f, params, x, y, nugget=0.1, batch_size=batch_size)
    jax.effects_barrier()
    if not batch_size:  # in batches, a few rows run twice to see that they do not depend on each other
        assert sum(rows) == 48
    phi, phi_test = (np.tanh(a @ params) / np.sqrt(width) for a in (x, test))
    expected = process(phi, y, phi_test, 0.1)
    np.testing.assert_allclose(ours.mean(test), expected["mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.variance(test), np.diag(expected["covariance"]), rtol=1e-3)
    np.testing.assert_allclose(ours.leave_one_out().mean, expected["left_out_mean"], rtol=1e-3, atol=1e-4)


def test_bad_input():
    phi, y, test = data(6)
    gram, fit = FeatureGram(phi), nngp.gp.fit
    for arguments, options, message in [
        ((gram, y[:3]), {}, r"y of shape \(3,\) must be labels \(N,\) or one-hot \(N, C\) of the N=40 examples"),
        ((gram, np.arange(2 * N).reshape(N, 2)), {}, r"integers of shape \(40, 2\) in y are neither one-hot nor"),
        ((StreamedGram(phi).center(), y), {}, r"kernel is centred; pass the features as they are stored"),
        ((gram, np.ones(N, int)), {}, r"y holds the single label"),
        ((gram, np.where(np.arange(N) == 3, np.nan, y)), {}, r"y holds NaN or infinity, first in examples 3"),
        ((gram, y), {"nugget": -1e-3}, r"nugget=-0.001 must be 0 or more"),
        ((gram, y), {"select": "mll"}, r"select='mll' must be 'lml', 'loo' or None"),
        ((gram, y), {"select": "lml", "nugget": 0.1}, r"nugget=0.1 and select='lml' were both given"),
        ((gram, 0 * y[:, None]), {"select": "lml"}, r"select='lml' finds no scale, because y is zero"),
        ((phi, y), {}, r"kernel has shape \(40, 6\); pass \(N, N\), or wrap features"),
        ((normal(0, N, N), y), {}, r"kernel is not symmetric: .* If these are features, wrap them"),
        ((np.zeros((N, N)), y), {}, r"the kernel is zero"),
        ((FeatureGram(np.full((N, 2), np.nan)), y), {}, r"the kernel holds NaN or infinity"),
        ((np.full((N, N), np.nan), y), {}, r"the kernel holds NaN or infinity"),
        ((np.diag(np.arange(N) - 3.0), y), {}, r"the kernel has the eigenvalue -3 beside its largest, 36"),
        ((np.diag(np.arange(N) - 3.0), y), {"nugget": 0}, r"the kernel has the eigenvalue -3"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(*arguments, **options)
    with pytest.raises(TypeError, match=r"y holds complex128"):
        fit(gram, y + 1j)
    with pytest.raises(TypeError, match=r"gp.fit decides by values, so it cannot run inside jit"):
        jax.jit(lambda phi: fit(FeatureGram(phi), y).weights)(phi)
    posterior = fit(gram, y)
    with pytest.raises(ValueError, match=r"test has shape \(7, 5\); pass features \(M, D\) with 6 columns"):
        posterior.mean(test[:, :5])
    with pytest.raises(TypeError, match=r"test is a DenseGram; pass features \(M, D\)"):
        posterior.mean(dense(test @ test.T))
    with pytest.raises(ValueError, match=r"y held numbers, not labels, so there are no classes to predict"):
        posterior.predict(test)
    by_entries = fit(phi @ phi.T, y)
    with pytest.raises(ValueError, match=r"k has shape \(7, 6\); pass the kernel of test and training examples"):
        by_entries.mean(test)
    with pytest.raises(ValueError, match=r"diagonal has shape \(3,\); pass K\[i, i\] of the M=7 test examples"):
        by_entries.variance(test @ phi.T, np.ones(3))
    with pytest.raises(ValueError, match=r"f has 2 outputs, .*; choose one"):
        nngp.gp.from_model(lambda params, x: {"a": x, "b": x}, None, phi, y)
