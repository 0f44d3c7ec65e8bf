"""Eigenvalues, eigenvectors, and the metrics that read them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import (
    FeatureGram,
    bures_distance,
    condition_number,
    eigenvector_overlap,
    power_law_exponent,
    spectrum,
)

from . import oracles

pytestmark = pytest.mark.once

FORMS = {"features": lambda phi: FeatureGram(jnp.asarray(phi)), "dense": lambda phi: jnp.asarray(phi @ phi.mT)}


def with_spectrum(values, n, d, seed=0):
    """Features ``(N, D)`` in float64 whose kernel has these eigenvalues, and their eigenvectors."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, len(values))))[0] for size in (n, d))
    return (u * np.sqrt(values)) @ v.T, u


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(30, 7), (9, 24)], ids=["N>D", "N<D"])
class TestSpectrum:
    def test_eigenvalues(self, shape, form):
        phi = np.random.default_rng(0).normal(size=shape) + 0.5
        rank = min(shape) if form == "features" else shape[0]
        expected = np.pad(oracles.eigenvalues(phi), (0, rank - min(shape)))
        with jax.enable_x64(True):
            gram = FORMS[form](phi)
            np.testing.assert_allclose(spectrum(gram), expected, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(spectrum(gram, 3), expected[:3], rtol=1e-9)
        measured = spectrum(FORMS[form](np.float32(phi)))
        assert measured.shape == (rank,)
        np.testing.assert_allclose(measured, expected, rtol=2e-4, atol=1e-6 * expected[0])

    @pytest.mark.every(3)
    def test_eigenvectors(self, shape, form):
        phi = np.random.default_rng(0).normal(size=shape) * np.geomspace(1, 0.3, shape[1])
        kernel = phi @ phi.T
        gram = FORMS[form](np.float32(phi))
        for k in (2, None):
            values, vectors = jax.jit(lambda gram, k=k: spectrum(gram, k, vectors=True))(gram)
            assert vectors.shape == (shape[0], len(values))
            vectors = np.asarray(vectors, float)  # NumPy's product with an array of JAX would be that of JAX
            np.testing.assert_allclose(values, spectrum(gram, k), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(kernel @ vectors, vectors * values, atol=1e-5 * values[0])
            np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(values)), atol=1e-5)

    def test_vmap(self, shape, form):
        stack = np.random.default_rng(0).normal(size=(3, *shape))
        grams = FORMS[form](np.float32(stack))
        measured = jax.jit(jax.vmap(lambda gram: spectrum(gram, 2)))(grams)
        np.testing.assert_allclose(measured, [oracles.eigenvalues(phi)[:2] for phi in stack], rtol=2e-4)

    @pytest.mark.parametrize("k", [0, -1, 31])
    def test_how_many(self, shape, form, k):
        gram = FORMS[form](np.ones(shape, np.float32))
        rank = min(shape) if form == "features" else shape[0]
        told = rf"k={k} must be between 1 and {rank}, the eigenvalues that can differ from zero\."
        with pytest.raises(ValueError, match=told):
            spectrum(gram, k)
        with pytest.raises(ValueError, match=told):
            spectrum(gram, k, vectors=True)
        with pytest.raises(ValueError, match=told):
            eigenvector_overlap(gram, gram, k)


class TestConditionNumber:
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_against_numpy(self, dtype):
        narrow, wide = np.random.default_rng(0).normal(size=(30, 7)), np.random.default_rng(1).normal(size=(9, 24))
        rel = 2e-4 if dtype == jnp.float32 else 1e-8
        with jax.enable_x64(dtype == jnp.float64):
            narrow_gram, wide_gram = (FeatureGram(jnp.asarray(phi, dtype)) for phi in (narrow, wide))
            # of narrow features the N − D zeros do not count
            assert float(condition_number(narrow_gram)) == pytest.approx(np.linalg.cond(narrow.T @ narrow), rel=rel)
            assert float(condition_number(wide_gram)) == pytest.approx(np.linalg.cond(wide @ wide.T), rel=rel)
            assert float(condition_number(wide_gram.dense())) == pytest.approx(np.linalg.cond(wide @ wide.T), rel=rel)

    @pytest.mark.parametrize("shape", [(40, 6), (6, 40)], ids=["N>D", "N<D"])
    def test_of_1e10_from_features_in_float32(self, shape):
        # the kernel itself loses everything beyond 1e6
        phi, _ = with_spectrum(np.geomspace(1, 1e-10, 6), *shape)
        assert float(condition_number(FeatureGram(jnp.asarray(phi, jnp.float32)))) == pytest.approx(1e10, rel=0.05)

    def test_singular(self):
        phi = np.float32(np.random.default_rng(0).normal(size=(9, 4)))
        assert np.isinf(condition_number(FORMS["dense"](phi)))
        assert np.isinf(condition_number(FORMS["dense"](np.ones((9, 1), np.float32))))

    def test_singular_but_for_rounding(self):
        # two equal features, two equal examples, a dead unit
        narrow, wide = np.random.default_rng(0).normal(size=(9, 4)), np.random.default_rng(0).normal(size=(4, 9))
        for phi in (narrow[:, [0, 0, 1, 2]], wide[[0, 0, 1, 2]], narrow * [1, 0, 1, 1]):
            assert float(condition_number(FeatureGram(jnp.asarray(phi, jnp.float32)))) > 1e12


@pytest.mark.parametrize("form", FORMS)
class TestPowerLaw:
    def test_other_windows(self, form):
        phi = np.random.default_rng(0).normal(size=(30, 20)) * np.arange(1, 21) ** -0.5
        for window in ((1, 2), (3, 20)):
            measured = power_law_exponent(FORMS[form](np.float32(phi)), window)
            assert float(measured) == pytest.approx(oracles.power_law_exponent(phi, *window), rel=2e-4)

    def test_rounding_error_is_no_power_law(self, form):
        phi = np.random.default_rng(0).normal(size=(30, 12))
        phi[:, 8:] = phi[:, :4]  # 8 directions
        gram = FORMS[form](np.float32(phi))
        assert np.isfinite(power_law_exponent(gram, (2, 8)))
        assert np.isnan(power_law_exponent(gram, (2, 9)))

    @pytest.mark.parametrize("window", [(0, 3), (3, 3), (4, 2), (2, 10)])
    def test_bad_window(self, form, window):
        gram = FORMS[form](np.ones((9, 9), np.float32))
        told = rf"window=\({window[0]}, {window[1]}\) must be ranks \(first, last\) with 1 <= first < last <= 9\."
        with pytest.raises(ValueError, match=told):
            power_law_exponent(gram, window)


def test_window_is_bounded_by_the_features():
    with pytest.raises(ValueError, match=r"1 <= first < last <= 3\."):
        power_law_exponent(FeatureGram(jnp.ones((9, 3))), (2, 4))


class TestEigenvectorOverlap:
    @pytest.mark.parametrize("form", FORMS)
    def test_every_k(self, form):
        phi, psi = np.random.default_rng(0).normal(size=(2, 12, 5)) * np.geomspace(1, 0.2, 5)
        psi = psi + phi
        grams = [FORMS[form](np.float32(f)) for f in (phi, psi)]
        for k in (1, 3):
            expected = oracles.eigenvector_overlap(phi, psi, k)
            assert float(eigenvector_overlap(*grams, k)) == pytest.approx(expected, rel=2e-4)

    def test_of_known_spaces(self):
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
        first, same, half, none = (
            FeatureGram(jnp.asarray(basis[:, columns] * [2.0, 1.0], jnp.float32))
            for columns in ([0, 1], [1, 0], [0, 2], [3, 4])
        )
        measured = [float(eigenvector_overlap(first, other, k=2)) for other in (same, half, none)]
        assert measured == pytest.approx([1, 0.5, 0], abs=1e-5)


@pytest.mark.every(6)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("d", "e"), [(7, 3), (24, 12)], ids=["N>D", "N<D"])
def test_bures_distance_of_square_roots(form, d, e):
    rng = np.random.default_rng(0)
    phi, psi = rng.normal(size=(10, d)), rng.normal(size=(10, e))
    expected = oracles.bures(phi, psi)
    assert expected == pytest.approx(oracles.procrustes(phi, psi), rel=1e-5)
    for dtype, rel in ((jnp.float32, 2e-4), (jnp.float64, 1e-6)):
        with jax.enable_x64(dtype == jnp.float64):
            measured = bures_distance(*(FORMS[form](np.asarray(f, dtype)) for f in (phi, psi)))
        assert float(measured) == pytest.approx(expected, rel=rel)
