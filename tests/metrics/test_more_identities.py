"""Identities of the metrics of change, spectrum, classes and regression, on random examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, jax_normal as normal, kernel, rotated
from helpers.compiled import (
    alignment,
    bures_distance,
    condition_number,
    effective_rank,
    eigenvector_overlap,
    kernel_distance,
    participation_ratio,
    power_law_exponent,
    scale,
    spectrum,
    stable_rank,
    von_neumann_entropy,
)
from hypothesis import given, settings, strategies as st

from nngp_plugins.metrics import (
    DenseGram,
    FeatureGram,
    centered_kernel_velocity,
    class_block_means,
    class_separation,
    log_marginal_likelihood,
    regression_accuracy,
    target_alignment,
)

from . import oracles

pytestmark = pytest.mark.once
# Few shapes, as each new one compiles; no database, as the examples are the same every time.
few = settings(deadline=None, max_examples=10, derandomize=True, database=None)
shapes = st.sampled_from([(6, 9), (12, 4)])
seeds = st.integers(0, 2**32 - 1)
factors = st.floats(0.01, 100)
centering = pytest.mark.parametrize("center", [False, True])


@partial(jax.jit, static_argnums=3)
def cosines(a, b, moved, center):
    return [alignment(*pair, center=center) for pair in ((a, b), (b, a), (moved, b), (moved, a))]


@partial(jax.jit, static_argnums=3)
def distances(a, b, moved, center):
    return [kernel_distance(*pair, center=center) for pair in ((a, b), (b, a), (moved, a), (a, a))]


class TestSimilarity:
    @centering
    @few
    @given(seeds, shapes, factors)
    def test_alignment_and_distance(self, center, seed, shape, factor):
        phi, psi = normal(seed, *shape), normal(seed + 1, *shape)
        a, b, moved = FeatureGram(phi), FeatureGram(psi), FeatureGram(factor * rotated(seed, phi) + 2 * center)
        cosine, back, of_moved, of_itself = cosines(a, b, moved, center)
        assert 0 <= cosine <= 1.00001
        close(back, cosine)
        close(of_moved, cosine, rtol=1e-3, atol=1e-4)
        close(of_itself, 1)
        distance, back, of_moved, of_itself = distances(a, b, moved, center)
        close(distance, 1 - cosine)
        close(back, distance)
        assert 0 <= of_moved < 1e-5
        assert of_itself == 0
        if center:
            close(centered_kernel_velocity(a, b, factor), distance / factor)

    @few
    @given(seeds, shapes, factors)
    def test_bures_distance(self, seed, shape, factor):
        a, b, c = (FeatureGram(normal(seed + i, *shape)) for i in range(3))
        near = FeatureGram(rotated(seed, a.phi))
        assert 0 <= float(bures_distance(a, near)) < 1e-4
        ab, bc, ac = (float(bures_distance(*pair)) for pair in ((a, b), (b, c), (a, c)))
        assert ac <= ab + bc
        close(bures_distance(b, near), ab, rtol=1e-3)
        # of a multiple, the difference of the sizes; of all, that of Frobenius at most
        size = jnp.linalg.norm(a.phi)
        close(bures_distance(FeatureGram(factor * a.phi), a), abs(factor - 1) * size, rtol=1e-3, atol=1e-4 * size)
        assert ab <= float(jnp.linalg.norm(a.phi - b.phi)) + 1e-4


class TestSpectrum:
    @pytest.mark.parametrize("n", [2, 7])
    def test_identity(self, n):
        identity = 3 * jnp.eye(n)
        for metric in (effective_rank, participation_ratio, stable_rank):
            close(metric(identity), n)
        close(von_neumann_entropy(identity), np.log(n))
        close(condition_number(identity), 1)

    @few
    @given(seeds)
    def test_rank_one(self, seed):
        phi = normal(seed, 6, 1)
        for gram in (FeatureGram(phi), DenseGram(kernel(phi))):
            for metric in (participation_ratio, stable_rank):
                close(metric(gram), 1)
            close(von_neumann_entropy(gram), 0, atol=1e-4)

    @few
    @given(seeds, shapes, factors)
    def test_ranks_are_bounded_and_free_of_scale_and_rotation(self, seed, shape, factor):
        gram, moved = (FeatureGram(f(normal(seed, *shape))) for f in (lambda p: p, lambda p: factor * rotated(seed, p)))
        entropy = von_neumann_entropy(gram)
        close(entropy, jnp.log(effective_rank(gram)))
        values = [float(m(gram)) for m in (stable_rank, participation_ratio, effective_rank)]
        assert 1 <= values[0] <= values[1] + 1e-4 <= values[2] + 2e-4 <= min(shape) + 3e-4  # of Rényi entropies
        for metric in (stable_rank, participation_ratio, von_neumann_entropy):
            close(metric(moved), metric(gram), rtol=1e-3)
        close(condition_number(moved), condition_number(gram), rtol=1e-2)
        close(power_law_exponent(moved, (1, 4)), power_law_exponent(gram, (1, 4)), rtol=1e-2)
        close(spectrum(gram).sum(), gram.trace())
        close(spectrum(moved), factor**2 * spectrum(gram), rtol=1e-2, atol=1e-4 * factor**2)

    @few
    @given(seeds, st.floats(0.2, 3))
    def test_power_law_returns_its_exponent(self, seed, exponent):
        q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 9)))
        values = np.arange(1, 10) ** -exponent
        phi = jnp.asarray(q * np.sqrt(values), jnp.float32)
        for gram in (FeatureGram(phi), DenseGram(kernel(phi))):
            close(power_law_exponent(gram, (2, 7)), exponent, rtol=5e-3)

    @few
    @given(seeds, shapes, st.sampled_from([1, 3]))
    def test_overlap(self, seed, shape, k):
        a, b = FeatureGram(normal(seed, *shape)), FeatureGram(normal(seed + 1, *shape))
        overlap = float(eigenvector_overlap(a, b, k))
        assert 0 <= overlap <= 1.00001
        close(eigenvector_overlap(b, a, k), overlap)
        close(eigenvector_overlap(a, a, k), 1)


class TestTargets:
    @few
    @given(seeds, shapes, factors)
    def test_classes(self, seed, shape, factor):
        phi, y = normal(seed, *shape), np.arange(shape[0]) % 3
        gram, moved = FeatureGram(phi), FeatureGram(factor * rotated(seed, phi))
        assert 0 <= float(target_alignment(gram, y)) <= 1.00001
        close(target_alignment(moved, y), target_alignment(gram, y), rtol=1e-3)
        close(class_separation(moved, y), class_separation(gram, y), rtol=1e-2)
        means = class_block_means(gram, y)
        close(means, means.T)
        close(means.mean(), gram.dense().mean())  # of balanced classes
        close(class_block_means(gram, np.zeros(shape[0]))[0, 0], gram.dense().mean())

    @few
    @given(seeds, shapes)
    def test_of_the_kernel_of_the_classes(self, seed, shape):
        y = np.random.default_rng(seed).permutation(np.arange(shape[0]) % 3)
        ideal = FeatureGram(jnp.asarray(oracles.one_hot(y), jnp.float32))
        close(target_alignment(ideal, y), 1)
        close(class_separation(ideal, y), 0)
        close(regression_accuracy(ideal, y), 1)

    @few
    @given(seeds, shapes, st.sampled_from([1e-3, 0.1]))
    def test_leave_one_out_is_brute_force(self, seed, shape, nugget):
        phi, y = normal(seed, *shape), np.arange(shape[0]) % 3
        expected = oracles.regression_accuracy(np.asarray(kernel(phi), float), y, nugget)
        for gram in (FeatureGram(phi), DenseGram(kernel(phi))):
            assert float(regression_accuracy(gram, y, nugget)) == pytest.approx(expected)

    @few
    @given(seeds, shapes, factors)
    def test_likelihood_of_scaled_targets(self, seed, shape, factor):
        # both scaled by as much, the density is divided by factor^N
        phi, y = normal(seed, *shape), np.random.default_rng(seed + 1).normal(size=shape[0])
        first = float(log_marginal_likelihood(FeatureGram(phi), y, 0.1))
        scaled = float(log_marginal_likelihood(FeatureGram(factor * phi), factor * y, 0.1))
        close(scaled, first - shape[0] * np.log(factor), rtol=1e-3, atol=1e-3)

    @few
    @given(seeds, shapes)
    def test_order_of_the_examples_does_not_count(self, seed, shape):
        rng = np.random.default_rng(seed)
        order, y = rng.permutation(shape[0]), np.arange(shape[0]) % 3
        gram = FeatureGram(normal(seed, *shape))
        shuffled = gram.take(order)
        for metric in (target_alignment, class_separation, class_block_means, log_marginal_likelihood):
            close(metric(shuffled, y[order]), metric(gram, y), rtol=2e-3)
        close(scale(shuffled), scale(gram))
