"""Identities that define the metrics and the Gram objects, on random examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, normal, rotated
from helpers.compiled import (
    cka,
    effective_rank,
    relative_change,
    scale,
)
from hypothesis import given, settings, strategies as st

from nngp_plugins import metrics
from nngp_plugins.metrics import DEFAULT, DenseGram, FeatureGram, of_targets

from . import oracles

pytestmark = pytest.mark.once

# Few shapes, as each new one compiles; no database, as the examples are the same every time.
few = settings(deadline=None, max_examples=20, derandomize=True, database=None)
shapes = st.sampled_from([(6, 9), (12, 4)])
seeds = st.integers(0, 2**32 - 1)
factors = st.floats(0.01, 100)


def gram(phi):
    return FeatureGram(jnp.asarray(phi))


def kernel(phi):
    return jnp.asarray(phi @ phi.T)


@pytest.mark.parametrize("debiased", [False, True])
class TestCKA:
    @few
    @given(seeds, shapes, factors, st.floats(-10, 10))
    def test_invariant_symmetric_and_bounded(self, debiased, seed, shape, factor, shift):
        """Rotation, scale and translation do not count."""
        phi, psi = normal(seed, *shape), normal(seed + 1, *shape)
        turned = np.asarray(rotated(seed, phi))
        moved = np.float32(factor) * (turned + np.float32(shift))
        of = functools.partial(cka, debiased=debiased)
        value = float(of(gram(phi), gram(psi)))
        assert (-1.00001 if debiased else 0) <= value <= 1.00001
        close(of(gram(psi), gram(phi)), value)
        close(of(gram(moved), gram(psi)), value, rtol=1e-3, atol=1e-4)
        close(of(gram(phi), gram(3 * turned + 5)), 1)


class TestRankAndScale:
    @pytest.mark.parametrize("n", [1, 7])
    @pytest.mark.parametrize("of", ["eigenvalues", "singular_values"])
    def test_identity_has_full_rank(self, n, of):
        close(effective_rank(jnp.asarray(3 * np.eye(n), jnp.float32), of=of), n)

    @few
    @given(seeds)
    def test_rank_one(self, seed):
        phi = normal(seed, 8, 1)
        close(effective_rank(gram(phi)), 1)
        close(effective_rank(kernel(phi)), 1, rtol=1e-3)

    @few
    @given(seeds, shapes, factors)
    def test_rank_is_bounded_and_scale_free(self, seed, shape, factor):
        phi = normal(seed, *shape)
        rank = float(effective_rank(gram(phi)))
        assert 1 <= rank <= min(shape) + 1e-4
        close(effective_rank(gram(np.float32(factor) * phi)), rank)

    @few
    @given(seeds, shapes, factors)
    def test_scale_is_linear(self, seed, shape, factor):
        phi = normal(seed, *shape)
        close(scale(jnp.asarray(np.float32(factor) * phi @ phi.T)), factor * np.sum(phi**2) / shape[0])


class TestRelativeChange:
    @few
    @given(seeds, shapes, factors)
    def test_of_a_multiple(self, seed, shape, factor):
        phi = normal(seed, *shape)
        close(relative_change(jnp.asarray(np.float32(factor) * (phi @ phi.T)), kernel(phi)), abs(factor - 1))
        close(relative_change(gram(np.float32(factor**0.5) * phi), gram(phi)), abs(factor - 1))

    @few
    @given(seeds, shapes)
    def test_no_change(self, seed, shape):
        phi = normal(seed, *shape)
        assert float(relative_change(gram(phi), gram(phi))) == 0
        assert float(relative_change(kernel(phi), kernel(phi))) == 0

    @few
    @given(seeds, shapes)
    def test_rotated_features_have_the_same_kernel(self, seed, shape):
        phi = normal(seed, *shape)
        close(relative_change(gram(rotated(seed, phi)), gram(phi)), 0)


@jax.jit
def of_a_gram(gram):
    """What each form of a Gram computes in its own way."""
    return {
        "n": gram.n,
        "dense": gram.dense(),
        "diagonal": gram.diagonal(),
        "trace": gram.trace(),
        "frobenius": gram.frobenius(),
        "centred": gram.center().dense(),
        "centred twice": gram.center().center().dense(),
        "eigenvalues": gram.eigvalsh(),
        "singular values": gram.singular_values(),
    }


@jax.jit
def inner_products(phi, psi):
    forms = [(FeatureGram(f), DenseGram(jnp.matmul(f, f.T, precision="highest"))) for f in (phi, psi)]
    return [a.inner(b) for a in forms[0] for b in forms[1]]


class TestGramsAgree:
    @few
    @given(seeds, st.sampled_from([((6, 9), 4), ((12, 4), 3)]))
    def test_features_and_dense(self, seed, shape_and_other_width):
        shape, other_width = shape_and_other_width
        phi, psi = normal(seed, *shape), normal(seed + 1, shape[0], other_width)
        of_features, of_entries = jax.device_get((of_a_gram(gram(phi)), of_a_gram(DenseGram(kernel(phi)))))
        wide, other = np.asarray(phi, float), np.asarray(psi, float)
        dense = wide @ wide.T
        for inner in inner_products(phi, psi):
            close(inner, np.sum(dense * (other @ other.T)), rtol=1e-3)
        h = np.eye(shape[0]) - 1 / shape[0]
        values = np.linalg.eigvalsh(dense)
        for of in (of_features, of_entries):
            assert of["n"] == shape[0]
            close(of["dense"], dense)
            close(of["diagonal"], np.diag(dense))
            close(of["trace"], np.trace(dense))
            close(of["frobenius"], np.linalg.norm(dense))
            close(of["centred"], h @ dense @ h, atol=1e-4)
            close(of["centred"].sum(0), 0, atol=1e-4)
            close(of["centred twice"], of["centred"], atol=1e-4)
        close(of_features["eigenvalues"], values[-min(shape) :], rtol=1e-3, atol=1e-4)
        close(of_entries["eigenvalues"], values, rtol=1e-3, atol=1e-4)
        for of in (of_features, of_entries):
            squares = np.sort(of["singular values"]) ** 2
            close(squares, np.maximum(of["eigenvalues"], 0), rtol=1e-3, atol=1e-4)

    def test_a_centred_kernel_at_hand_is_used(self):
        one, two = (jnp.asarray(factor * np.eye(4), jnp.float32) for factor in (1, 2))
        both = DenseGram(one, two)
        np.testing.assert_array_equal(both.center().dense(), two)
        np.testing.assert_array_equal(both.center().center().dense(), two)

    def test_wide_features_never_meet_the_narrow_formula(self):
        # 2·D < N is where relative_change takes features; both sides of it must agree
        phi, psi = normal(0, 9, 4), normal(1, 9, 4)
        for width in (4, 3):
            a, b = phi[:, :width], psi[:, :width]
            close(relative_change(gram(a), gram(b)), relative_change(kernel(a), kernel(b)))

    def test_grams_are_pytrees(self):
        phi = normal(0, 5, 2)
        doubled = jax.tree.map(lambda leaf: 2 * leaf, FeatureGram(phi))
        np.testing.assert_array_equal(doubled.phi, 2 * phi)
        dense = jax.jit(lambda gram: gram.center())(DenseGram(kernel(phi)))
        h = np.eye(5) - 1 / 5
        close(dense.dense(), h @ (phi @ phi.T) @ h)


def test_default_metrics_at_the_reference():
    phi = normal(0, 8, 3)
    values = jax.jit(lambda gram: {name: metric(gram, gram) for name, metric in DEFAULT.items()})(gram(phi))
    p = oracles.eigenvalues(phi.astype(float)) / np.sum(phi.astype(float) ** 2)
    expected = {
        "cka": 1,
        "relative_change": 0,
        "kernel_distance": 0,
        "kernel_velocity": 0,
        "scale": np.sum(phi**2) / 8,
        "effective_rank": np.exp(oracles.entropy(p)),
        "participation_ratio": 1 / np.sum(p**2),
        "stable_rank": 1 / p[0],
        "power_law_exponent": oracles.power_law_exponent(phi.astype(float), 1, 3),
    }
    assert set(values) == set(expected)
    close([values[name] for name in expected], list(expected.values()))
    assert list(DEFAULT) == list(expected)
    with pytest.raises(TypeError, match="does not support item assignment"):
        DEFAULT["mine"] = cka


def test_metrics_of_targets():
    of_phi = gram(normal(0, 8, 3))
    numbers = np.random.default_rng(1).normal(size=8)
    fit = ["target_alignment", "log_marginal_likelihood"]
    of_classes = ["target_alignment", "class_separation", "regression_accuracy", "log_marginal_likelihood"]
    for y, names in ((numbers, fit), (np.arange(8) % 2, of_classes), (np.eye(2)[np.arange(8) % 2], of_classes)):
        of_y = of_targets(y)
        assert list(of_y) == names
        for name, metric in of_y.items():
            close(metric(of_phi, None), getattr(metrics, name)(of_phi, y))
