"""Identities of the metrics of change, spectrum, classes and regression, on random examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, normal, rotated
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


def gram(phi):
    return FeatureGram(jnp.asarray(phi))


def entries(phi):
    return DenseGram(jnp.asarray(phi @ phi.T))


def turned(seed, phi, factor=1.0):
    """The features rotated and scaled."""
    return gram(np.float32(factor) * np.asarray(rotated(seed, phi)))


centering = pytest.mark.parametrize("center", [False, True])


@partial(jax.jit, static_argnums=2)
def cosine_and_distance(a, b, center):
    return alignment(a, b, center=center), kernel_distance(a, b, center=center), centered_kernel_velocity(a, b, 4.0)


class TestSimilarity:
    @centering
    @few
    @given(seeds, shapes, factors)
    def test_alignment_and_distance(self, center, seed, shape, factor):
        phi, psi = normal(seed, *shape), normal(seed + 1, *shape)
        a, b = gram(phi), gram(psi)
        moved = gram(np.float32(factor) * np.asarray(rotated(seed, phi)) + np.float32(2 * center))

        def of(*pair):
            return map(float, cosine_and_distance(*pair, center))

        cosine, distance, velocity = of(a, b)
        assert 0 <= cosine <= 1.00001
        close(distance, 1 - cosine)
        if center:
            close(velocity, distance / 4)
        back, distance_back, _ = of(b, a)
        close(back, cosine)
        close(distance_back, distance)
        of_moved, _, _ = of(moved, b)
        close(of_moved, cosine, rtol=1e-3, atol=1e-4)
        of_itself, distance_of_itself, _ = of(moved, a)
        close(of_itself, 1)
        assert 0 <= distance_of_itself < 1e-5
        assert [*of(a, a)][1] == 0

    @few
    @given(seeds, shapes, factors)
    def test_bures_distance(self, seed, shape, factor):
        phi, psi, chi = (normal(seed + i, *shape) for i in range(3))
        a, b, c, near = gram(phi), gram(psi), gram(chi), turned(seed, phi)
        assert 0 <= float(bures_distance(a, near)) < 1e-4
        ab, bc, ac = (float(bures_distance(*pair)) for pair in ((a, b), (b, c), (a, c)))
        assert ac <= ab + bc
        close(bures_distance(b, near), ab, rtol=1e-3)
        # of a multiple, the difference of the sizes; of all, that of Frobenius at most
        size = np.linalg.norm(phi)
        scaled = gram(np.float32(factor) * phi)
        close(bures_distance(scaled, a), abs(factor - 1) * size, rtol=1e-3, atol=1e-4 * size)
        assert ab <= np.linalg.norm(phi - psi) + 1e-4


def of_rank_one(a):
    """The metrics of a single eigenvalue."""
    return {
        "participation_ratio": participation_ratio(a),
        "stable_rank": stable_rank(a),
        "entropy": von_neumann_entropy(a),
    }


@jax.jit
def of_one(a):
    """The metrics of a spectrum, of one program."""
    return of_rank_one(a) | {
        "effective_rank": effective_rank(a),
        "condition_number": condition_number(a),
        "power_law_exponent": power_law_exponent(a, (1, 4)),
        "spectrum": spectrum(a),
    }


class TestSpectrum:
    def test_identity(self):
        values = of_one(DenseGram(jnp.asarray(3 * np.eye(6), jnp.float32)))
        for name in ("effective_rank", "participation_ratio", "stable_rank"):
            close(values[name], 6)
        close(values["entropy"], np.log(6))
        close(values["condition_number"], 1)

    @few
    @given(seeds)
    def test_rank_one(self, seed):
        phi = normal(seed, 6, 1)
        values = of_rank_one(gram(phi)), of_one(entries(phi))
        for of in values:
            close([of["participation_ratio"], of["stable_rank"]], 1)
            close(of["entropy"], 0, atol=1e-4)

    @few
    @given(seeds, shapes, factors)
    def test_ranks_are_bounded_and_free_of_scale_and_rotation(self, seed, shape, factor):
        phi = normal(seed, *shape)
        values, moved = (jax.device_get(of_one(each)) for each in (gram(phi), turned(seed, phi, factor)))
        close(values["entropy"], np.log(values["effective_rank"]))
        ranks = [float(values[name]) for name in ("stable_rank", "participation_ratio", "effective_rank")]
        assert 1 <= ranks[0] <= ranks[1] + 1e-4 <= ranks[2] + 2e-4 <= min(shape) + 3e-4  # of Rényi entropies
        for name in ("stable_rank", "participation_ratio", "entropy"):
            close(moved[name], values[name], rtol=1e-3)
        close(moved["condition_number"], values["condition_number"], rtol=1e-2)
        close(moved["power_law_exponent"], values["power_law_exponent"], rtol=1e-2)
        close(values["spectrum"].sum(), np.sum(phi**2))
        close(moved["spectrum"], factor**2 * values["spectrum"], rtol=1e-2, atol=1e-4 * factor**2)

    @few
    @given(seeds, st.floats(0.2, 3))
    def test_power_law_returns_its_exponent(self, seed, exponent):
        q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 9)))
        values = np.arange(1, 10) ** -exponent
        phi = np.float32(q * np.sqrt(values))
        for each in (gram(phi), entries(phi)):
            close(power_law_exponent(each, (2, 7)), exponent, rtol=5e-3)

    @few
    @given(seeds, shapes, st.sampled_from([1, 3]))
    def test_overlap(self, seed, shape, k):
        a, b = gram(normal(seed, *shape)), gram(normal(seed + 1, *shape))
        overlap = float(eigenvector_overlap(a, b, k))
        assert 0 <= overlap <= 1.00001
        close(eigenvector_overlap(b, a, k), overlap)
        close(eigenvector_overlap(a, a, k), 1)


@jax.jit
def of_one_hot(a, y):
    metrics = (target_alignment, class_separation, class_block_means, regression_accuracy, log_marginal_likelihood)
    return {metric.__name__: metric(a, y) for metric in metrics} | {"scale": scale(a)}


def of_classes(a, y):
    """The metrics of labels, of one program."""
    return of_one_hot(a, np.float32(oracles.one_hot(y)))


class TestTargets:
    @few
    @given(seeds, shapes, factors)
    def test_classes(self, seed, shape, factor):
        phi, y = normal(seed, *shape), np.arange(shape[0]) % 3
        values, moved = (jax.device_get(of_classes(each, y)) for each in (gram(phi), turned(seed, phi, factor)))
        assert 0 <= values["target_alignment"] <= 1.00001
        close(moved["target_alignment"], values["target_alignment"], rtol=1e-3)
        close(moved["class_separation"], values["class_separation"], rtol=1e-2)
        means = values["class_block_means"]
        close(means, means.T)
        close(means.mean(), np.mean(phi @ phi.T))  # of balanced classes
        close(np.asarray(class_block_means(gram(phi), np.zeros(shape[0])))[0, 0], np.mean(phi @ phi.T))

    @few
    @given(seeds, shapes)
    def test_of_the_kernel_of_the_classes(self, seed, shape):
        y = np.random.default_rng(seed).permutation(np.arange(shape[0]) % 3)
        values = of_classes(gram(np.float32(oracles.one_hot(y))), y)
        close(values["target_alignment"], 1)
        close(values["class_separation"], 0)
        close(values["regression_accuracy"], 1)

    @few
    @given(seeds, shapes, st.sampled_from([1e-3, 0.1]))
    def test_leave_one_out_is_brute_force(self, seed, shape, nugget):
        phi, y = normal(seed, *shape), np.arange(shape[0]) % 3
        expected = oracles.regression_accuracy(phi.astype(float) @ phi.T, y, nugget)
        for each in (gram(phi), entries(phi)):
            assert float(regression_accuracy(each, y, nugget)) == pytest.approx(expected)

    @few
    @given(seeds, shapes, factors)
    def test_likelihood_of_scaled_targets(self, seed, shape, factor):
        # both scaled by as much, the density is divided by factor^N
        phi, y = normal(seed, *shape), np.random.default_rng(seed + 1).normal(size=shape[0])
        first = float(log_marginal_likelihood(gram(phi), y, 0.1))
        scaled = float(log_marginal_likelihood(gram(np.float32(factor) * phi), factor * y, 0.1))
        close(scaled, first - shape[0] * np.log(factor), rtol=1e-3, atol=1e-3)

    @few
    @given(seeds, shapes)
    def test_order_of_the_examples_does_not_count(self, seed, shape):
        rng = np.random.default_rng(seed)
        order, y = rng.permutation(shape[0]), np.arange(shape[0]) % 3
        phi = normal(seed, *shape)
        values, shuffled = of_classes(gram(phi), y), of_classes(gram(phi[order]), y[order])
        for name in ("target_alignment", "class_separation", "class_block_means", "log_marginal_likelihood", "scale"):
            close(shuffled[name], values[name], rtol=2e-3)
