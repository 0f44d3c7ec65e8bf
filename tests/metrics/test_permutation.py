"""p-values against a count in float64, and their distribution for independent features."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nngp_plugins import metrics
from nngp_plugins.metrics import DenseGram, FeatureGram, permutation_test

from . import oracles

pytestmark = pytest.mark.once

KEY = jax.random.key(3)


def features(n, widths, seed):
    """Features of layers that share a little, float64, with an offset."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(9).normal(size=(n, 40))
    return [rng.normal(size=(n, d)) + 0.3 * common[:, :d] + 5 for d in widths]


def of_features(phi):
    return FeatureGram(jnp.asarray(phi, jnp.float32))


def of_entries(phi):
    return DenseGram(jnp.asarray(phi @ phi.T, jnp.float32))


def orders(n, count):
    """The permutations that the key gives."""
    keys = jax.random.split(KEY, count)
    return np.asarray(jax.jit(jax.vmap(lambda key: jax.random.permutation(key, n)))(keys))


def counted(phi, psi, n, hsic):
    """The definition."""
    k, l = phi @ phi.T, psi @ psi.T  # noqa: E741
    likeness = hsic(k, l)
    return (1 + sum(hsic(k, l[np.ix_(order, order)]) >= likeness for order in orders(len(k), n))) / (1 + n)


@pytest.mark.parametrize(("form", "debiased"), [(of_features, False), (of_features, True), (of_entries, True)])
def test_it_is_the_count_of_the_definition(form, debiased):
    first, second = features(14, (3, 5), 0), features(14, (4,), 1)
    a, b = ([form(f) for f in layers] for layers in (first, second))
    hsic = oracles.hsic_debiased if debiased else oracles.hsic_biased
    expected = [[counted(f, g, 60, hsic) for g in second] for f in first]
    metric = partial(metrics.cka, debiased=debiased)
    measured = permutation_test(a, dict(zip("x", b, strict=True)), 60, KEY, metric)
    np.testing.assert_allclose(measured, expected, atol=1e-6)
    assert 0.02 < np.min(expected) < np.max(expected) < 0.98  # so that the order of the examples decides


@pytest.mark.parametrize(
    ("metric", "likeness"),
    [
        (metrics.distance_correlation, oracles.debiased_distance_correlation),
        (metrics.rsa, lambda phi, psi: oracles.rsa(phi, psi, scipy.stats.spearmanr)),
        (partial(metrics.mutual_knn, k=3), partial(oracles.mutual_knn, k=3)),
        (metrics.gulp, lambda phi, psi: -oracles.gulp(phi, psi, 0.01)),
    ],
    ids=["distance_correlation", "rsa", "mutual_knn", "gulp"],
)
def test_other_metrics(metric, likeness):
    first, second = features(14, (3, 5), 0), features(14, (4,), 1)
    drawn = orders(14, 40)
    expected = [
        [(1 + sum(likeness(f, g[order]) >= likeness(f, g) for order in drawn)) / 41 for g in second] for f in first
    ]
    a, b = ([*map(of_features, layers)] for layers in (first, second))
    np.testing.assert_allclose(permutation_test(a, b, 40, KEY, metric), expected, atol=1e-6)
    assert 0.02 < np.min(expected) < np.max(expected) < 0.98


def test_both_forms_agree_and_a_layer_with_itself_is_as_alike_as_can_be():
    phi = [*map(of_features, features(30, (3, 40), 0))]
    by_features, by_entries = (np.asarray(permutation_test(layers, None, 99, KEY)) for layers in (phi[:1], phi))
    assert by_entries[0, 0] == by_features[0, 0] == by_entries[1, 1] == np.float32(0.01)


def test_p_values_of_independent_features_are_uniform():
    x = np.float32(np.random.default_rng(0).normal(size=(2, 200, 12, 3)) ** 3)

    def p_value(key, phi, psi):
        return permutation_test([FeatureGram(phi)], [FeatureGram(psi)], 99, key)[0, 0]

    keys = jax.random.split(jax.random.key(1), 200)
    p = jax.jit(lambda *each: jax.lax.map(lambda one: p_value(*one), each))(keys, *x)
    assert scipy.stats.kstest(np.asarray(p, float), "uniform").pvalue > 0.01


def test_equal_examples_and_flaws():
    """Of two classes many permutations give the same kernel, and all of those count."""
    y = np.eye(2)[[0, 0, 0, 1, 1, 1]]
    layers = [*map(of_features, (1000 * y + 3, 0 * y, 0 * y + 0.1))]
    measured = np.asarray(permutation_test(layers, None, 2000, KEY))
    assert measured[0, 0] == pytest.approx(2 / 20, abs=0.03)
    assert np.isnan(measured.ravel()[1:]).all()


def test_bad_input():
    told = r"takes layers on the same N >= 4 examples and n >= 1, got 1 and {} layers, N=\[{}\] and n={}\."
    for b, n, message in (([], 9, (0, 5, 9)), ([jnp.eye(6)], 9, (1, "5, 6", 9)), ([jnp.eye(5)], 0, (1, 5, 0))):
        with pytest.raises(ValueError, match=told.format(*message)):
            permutation_test([jnp.eye(5)], b, n, KEY)
    with pytest.raises(ValueError, match=r"metric=.* must be one of cka, distance_correlation, rsa, mutual_knn, gulp"):
        permutation_test([jnp.eye(5)], None, 9, KEY, metrics.bures_distance)
    with pytest.raises(ValueError, match=r"takes layers on the same N >= 6 examples"):
        permutation_test([jnp.eye(5)], None, 9, KEY, partial(metrics.mutual_knn, k=5))
