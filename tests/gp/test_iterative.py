"""Kernels whose factor does not fit into memory, by conjugate gradients, against their formulas in float64 NumPy."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp
from nngp_plugins.metrics import DenseGram, FeatureGram

N, M = 400, 5
BUDGET = 16 * N * N - 1
"""One byte less than what a factor takes."""


def kernels(width, dtype=np.float64):
    """Of training examples, of test and training examples, and of test examples; the eigenvalues fall by 24 decades."""
    phi = normal(0, N + M, width, dtype=np.float64) * np.geomspace(1, 1e-12, width)
    kernel = phi @ phi.T
    return kernel[:N, :N].astype(dtype), kernel[N:, :N], kernel[N:, N:]


class OnDisk:
    """A kernel that may be read in tiles only, as one that does not fit into memory; the last ones are smaller."""

    def __init__(self, kernel, block_rows=150):
        self.kernel, self.shape, self.dtype, self.block_rows = kernel, kernel.shape, kernel.dtype, block_rows
        self.reads = Counter()

    def __getitem__(self, key):
        for axis in key:
            start, stop, step = axis.indices(len(self.kernel))
            assert start % self.block_rows == 0
            assert stop - start <= self.block_rows
            assert step == 1
        self.reads[tuple(axis.start for axis in key)] += 1
        return self.kernel[key]


@pytest.mark.parametrize(("width", "nugget"), [(20, 1e-6), (20, 1e-1), (800, 1e-4)])  # the first two are singular
def test_the_formulas(width, nugget):
    kernel, k, k_test = kernels(width)
    y = np.stack([np.sin(kernel[0]), 1e6 * normal(1, N), np.zeros(N)], axis=1)
    ridged = kernel + nugget * np.trace(kernel) / N * np.eye(N)
    ours = nngp.gp.fit(OnDisk(kernel), y, nugget=nugget, memory_budget=BUDGET)
    left = np.linalg.norm(y - ridged @ ours.weights, axis=0)[:2] / np.linalg.norm(y, axis=0)[:2]
    np.testing.assert_allclose(ours.residual, left.max(), atol=2e-8)
    assert 0 < ours.residual < 1e-7
    expected = k @ np.linalg.solve(ridged, y)
    sizes = np.array([1, 1e6, 1])
    np.testing.assert_allclose(ours.mean(k) / sizes, expected / sizes, rtol=0, atol=1e-6)
    covariance = k_test - k @ np.linalg.solve(ridged, k.T)
    size = np.max(np.diag(k_test))
    np.testing.assert_allclose(ours.covariance(k, k_test), covariance, rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(ours.variance(k, np.diag(k_test)), np.diag(covariance), rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose([ours.noise, ours.nugget], [nugget * np.trace(kernel) / N, nugget])


def test_a_kernel_on_the_disk_and_one_that_jax_holds(tmp_path):
    x, test, params = normal(0, N, 6), normal(1, M, 6), normal(2, 6, 500)
    labels = np.array(["far", "near"])[np.int32(np.abs(x[:, 0]) < 0.7)]
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: jax.nn.relu(x @ params))
    options = {"batch_size": 100, "tile_size": 100, "progress": False}
    store = nngp.write_kernel(kernel_fn, x, None, params, tmp_path / "kernel", **options)
    k, diagonal = kernel_fn(test, x, params), jnp.diagonal(kernel_fn(test, None, params))
    exact = nngp.gp.fit(store, labels, nugget=1e-2)
    assert exact.residual is None
    for kernel in (store, store["kernel"], DenseGram(jnp.asarray(store[...]))):
        ours = nngp.gp.fit(kernel, labels, nugget=1e-2, memory_budget=BUDGET)
        assert ours.residual < 1e-7
        np.testing.assert_allclose(ours.probabilities(k, diagonal), exact.probabilities(k, diagonal), atol=1e-5)
        assert list(ours.predict(k)) == list(exact.predict(k))


def test_tiles_that_fit_are_kept():
    """The check for symmetry reads a tile once, and the first product once more."""
    kernel, _, _ = kernels(20, np.float32)
    y = normal(1, N, dtype=np.float64)
    preconditioner = 4 * 8 * N * (N // 4)
    two_tiles = 2 * 150 * 150 * kernel.itemsize
    all_kept, some_kept, in_memory = OnDisk(kernel), OnDisk(kernel), kernel
    whole, part, held = (
        nngp.gp.fit(matrix, y, nugget=1e-3, memory_budget=budget)
        for matrix, budget in [(all_kept, BUDGET), (some_kept, preconditioner + two_tiles), (in_memory, BUDGET)]
    )
    upper = [(i, j) for i in (0, 150, 300) for j in (0, 150, 300) if i <= j]
    assert {all_kept.reads[tile] for tile in upper} == {2}
    assert [tile for tile in upper if some_kept.reads[tile] == 2] == [(0, 0), (0, 150)]
    assert some_kept.reads[300, 300] > 3
    ridged = np.float64(kernel) + whole.noise * np.eye(N)
    for posterior in (whole, part, held):
        expected = np.linalg.solve(ridged, y)
        np.testing.assert_allclose(posterior.weights[:, 0], expected, rtol=0, atol=1e-7 * np.abs(expected).max())
        assert posterior.residual < 1e-7


def test_large_tiles_are_converted_in_several_strips():
    phi, y = normal(0, 1000, 20), normal(1, 1000, dtype=np.float64)
    kernel = phi @ phi.T
    ours = nngp.gp.fit(OnDisk(kernel, 500), y, nugget=1e-2, memory_budget=16 * 1000**2 - 1)
    expected = np.linalg.solve(np.float64(kernel) + ours.noise * np.eye(1000), y)
    np.testing.assert_allclose(ours.weights[:, 0], expected, rtol=0, atol=1e-5)


def test_a_residual_that_is_too_large_is_said():
    kernel, _, _ = kernels(20)
    y = normal(1, N, dtype=np.float64)
    with pytest.warns(RuntimeWarning, match=r"left a relative residual of \de-0\d with nugget=1e-09, .* larger nugget"):
        ours = nngp.gp.fit(kernel, y, nugget=1e-9, memory_budget=BUDGET)
    ridged = kernel + ours.noise * np.eye(N)
    np.testing.assert_allclose(ours.residual, np.linalg.norm(y - ridged @ ours.weights[:, 0]) / np.linalg.norm(y), 0.5)


def test_what_needs_a_factor_is_refused():
    kernel, _, _ = kernels(800)
    y = normal(1, N, dtype=np.float64)
    ours = nngp.gp.fit(kernel, y, memory_budget=BUDGET)
    for method in (ours.log_marginal_likelihood, ours.leave_one_out):
        with pytest.raises(ValueError, match=rf"{method.__name__} needs a factor .* pass features with D < N, fewer"):
            method()
    for options, message in [
        ({"select": "lml"}, r"select='lml' needs the eigenvectors of the kernel, 3.84e\+06 bytes, .*fewer examples"),
        ({"nugget": 0}, r"nugget=0 is not above the rounding error of the kernel, .*; pass a larger nugget"),
        ({"nugget": 1e-16}, r"nugget=1e-16 is not above the rounding error of the kernel, \de-1\d in the same unit"),
        ({"memory_budget": 0}, r"memory_budget=0 must be a positive number of bytes, or None"),
    ]:
        with pytest.raises(ValueError, match=message):
            nngp.gp.fit(kernel, y, **({"memory_budget": BUDGET} | options))
    wide = r"features of shape \(400, 500\) need matrices \(400, 400\) of 2.56e\+06 bytes, more.* nngp.write_kernel"
    with pytest.raises(ValueError, match=wide):
        nngp.gp.fit(FeatureGram(normal(0, N, 500)), y, memory_budget=BUDGET)
    assert nngp.gp.fit(FeatureGram(normal(0, N, 9)), y, memory_budget=BUDGET).weights.shape == (9, 1)


def test_other_matrices_are_refused():
    kernel, _, _ = kernels(800)
    one_nan, one_sided, indefinite = kernel.copy(), kernel.copy(), kernel - np.eye(N)
    one_nan[399, 7] = np.nan
    one_sided[399, 7] += 1
    for matrix, message in [
        (one_nan, "the kernel holds NaN or infinity"),
        (one_sided, "kernel is not symmetric: K and its transpose differ by 1"),
        (indefinite, r"the kernel has the eigenvalue -[01]\S* beside its largest"),
        (0 * kernel, "the kernel is zero"),
        (np.diag(np.where(np.arange(N) < 3, -0.5, 1)), r"kernel has (an eigenvalue of at most|the eigenvalue) -0\.\d+"),
    ]:
        for budget in (BUDGET, None):
            with pytest.raises(ValueError, match=message):
                nngp.gp.fit(matrix, normal(1, N), nugget=1e-8, memory_budget=budget)
