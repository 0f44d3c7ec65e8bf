"""Features of many examples, whose products are taken by blocks on a CPU, and by parts side by side elsewhere.

From 8192 examples on, blocks have 512 rows and 256 columns: the shapes below lie on both sides of these limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import FeatureGram, cka

from . import oracles

SHAPES = [(1024, 128), (8191, 200), (8192, 256), (8193, 300), (9000, 3), (9215, 257)]


@pytest.fixture(params=["cpu", "default"])
def platform(request, monkeypatch):
    """What CPUs compute, or what other platforms do, on whichever the tests run."""

    def chosen(*args, **branches):
        return branches[request.param](*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.every(6)
@pytest.mark.usefixtures("platform")
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


@pytest.mark.usefixtures("platform")
def test_under_grad_and_vmap():
    phi = np.random.default_rng(0).normal(size=(2, 8200, 3)).astype(np.float32)
    squares, slopes = jax.vmap(jax.value_and_grad(lambda phi: FeatureGram(phi).frobenius() ** 2))(jnp.asarray(phi))
    phi = phi.astype(float)
    gram = phi.mT @ phi
    np.testing.assert_allclose(squares, np.sum(gram**2, axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(slopes, 4 * phi @ gram, rtol=1e-4, atol=1e-4 * gram.max())


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad], ids=lambda transform: transform.__name__)
def test_the_platform_is_chosen_under(transform):
    """Without the fixture, as users run it."""
    a, b = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8200, 3)), jnp.float32)
    a, b = (a[None], b[None]) if transform is jax.vmap else (a, b)
    assert np.isfinite(transform(lambda a, b: cka(FeatureGram(a), FeatureGram(b)))(a, b)).all()


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


@pytest.mark.usefixtures("platform")
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


def test_an_eager_cka_is_one_program_with_little_beside_its_inputs():
    compiled = []
    a, b = (FeatureGram(f) for f in jnp.asarray(np.random.default_rng(0).normal(size=(2, 20_011, 64)), jnp.float32))
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    cka(a, b)
    jax.monitoring.clear_event_listeners()
    assert compiled.count("/jax/core/compile/backend_compile_duration") == 1
    # On a CPU, older versions of XLA copy the features for their mean; a card has the memory for copies.
    if jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 10):
        memory = jax.jit(cka).lower(a, b).compile().memory_analysis()
        assert memory.temp_size_in_bytes < a.phi.nbytes / 2
