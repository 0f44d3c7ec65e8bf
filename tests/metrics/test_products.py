"""Features of many examples, whose products are taken by blocks.

From 8192 examples on, blocks have 1024 rows and 128 columns: the shapes below lie on both sides of these limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import FeatureGram, cka

from . import oracles

SHAPES = [(1024, 128), (8191, 200), (8192, 128), (8193, 200), (9000, 3), (9215, 129)]


@pytest.mark.every(6)
@pytest.mark.parametrize("centred", [False, True], ids=["as they are", "centred"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape, centred):
    rng = np.random.default_rng(shape)
    phi = (rng.normal(size=shape) * np.geomspace(1, 0.1, shape[1]) + 1).astype(np.float32)
    psi = (rng.normal(size=(shape[0], 5)) + phi[:, :1]).astype(np.float32)
    grams = [FeatureGram(jnp.asarray(f)) for f in (phi, psi)]
    phi, psi = phi.astype(float), psi.astype(float)
    if centred:
        grams = [gram.center() for gram in grams]
        phi, psi = phi - phi.mean(axis=0), psi - psi.mean(axis=0)
    gram, other = grams
    square, cross = np.sum((phi.T @ phi) ** 2), np.sum((phi.T @ psi) ** 2)
    # of itself by half of the products, of an equal one by all of them
    assert float(gram.inner(gram)) == pytest.approx(square, rel=1e-5)
    assert float(gram.inner(FeatureGram(gram.phi, gram.offset))) == pytest.approx(square, rel=1e-5)
    assert float(gram.inner(other)) == pytest.approx(cross, rel=1e-5)
    np.testing.assert_allclose(gram.diagonal(), np.sum(phi**2, axis=1), rtol=1e-4)
    np.testing.assert_allclose(gram.center().offset, grams[0].phi.mean(axis=0), rtol=1e-5)


def test_of_one_centred_and_one_not():
    rng = np.random.default_rng(0)
    phi, psi = rng.normal(size=(2, 8500, 4)).astype(np.float32) + 1
    measured = FeatureGram(jnp.asarray(phi)).center().inner(FeatureGram(jnp.asarray(psi)))
    phi, psi = phi.astype(float), psi.astype(float)
    assert float(measured) == pytest.approx(np.sum(((phi - phi.mean(axis=0)).T @ psi) ** 2), rel=1e-5)


def test_float64():
    phi = np.random.default_rng(0).normal(size=(8193, 130))
    with jax.enable_x64(True):
        gram = FeatureGram(jnp.asarray(phi + 1000)).center()
        assert gram.inner(gram).dtype == jnp.float64
        phi -= phi.mean(axis=0)
        assert float(gram.inner(gram)) == pytest.approx(np.sum((phi.T @ phi) ** 2), rel=1e-10)


def test_cka_by_blocks_and_by_entries():
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(8300, 6)) + 30
    psi = phi[:, :4] + rng.normal(size=(8300, 4))
    expected = oracles.cka_of_features(phi - 30, psi - 30)
    small = phi[:20] - 30, psi[:20] - 30
    assert oracles.cka_of_features(*small) == pytest.approx(oracles.cka_oracle(oracles.hsic_debiased)(*small))
    a, b = (FeatureGram(jnp.asarray(f, jnp.float32)) for f in (phi, psi))
    assert float(cka(a, b)) == pytest.approx(expected, rel=2e-4)
    assert float(cka(a, b.by_entries())) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("metric", [lambda a: a.inner(a), lambda a: a.center().frobenius()])
def test_a_bad_feature_in_any_block(metric):
    phi = np.random.default_rng(0).normal(size=(8300, 3)).astype(np.float32)
    for row in (0, 1500, 8299):
        bad = phi.copy()
        bad[row, 1] = np.nan
        assert np.isnan(metric(FeatureGram(jnp.asarray(bad))))
