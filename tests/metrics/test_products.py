"""Features of many examples, whose products are taken by blocks on a CPU, and by parts side by side elsewhere.

From 8192 examples on, blocks have 512 rows and 256 columns: the shapes below lie on both sides of these limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import FeatureGram, cka

from . import oracles

SHAPES = [(9215, 257), (1024, 128), (8191, 200), (8192, 256), (9000, 3), (8193, 300)]


@pytest.fixture(scope="class", params=["cpu", "default"])
def platform(request):
    """What CPUs compute, or what other platforms do, on whichever the tests run."""

    def chosen(*args, **branches):
        return branches[request.param](*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", chosen)
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


@jax.jit
def measured(gram, other):
    """Of itself by half of the products, of an equal one by all of them, and of another."""
    return {
        "itself": gram.inner(gram),
        "equal": gram.inner(FeatureGram(gram.phi, gram.offset)),
        "other": gram.inner(other),
        "diagonal": gram.diagonal(),
        "offset": gram.center().offset,
    }


@pytest.mark.usefixtures("platform")
class TestEachPlatform:
    @pytest.mark.every(6)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_products(self, shape, platform):
        rng = np.random.default_rng(shape)
        phi = (rng.normal(size=shape) * np.geomspace(1, 0.1, shape[1]) + 1).astype(np.float32)
        psi = (rng.normal(size=(shape[0], 5)) + phi[:, :1]).astype(np.float32)
        grams = [FeatureGram(jnp.asarray(f)) for f in (phi, psi)]
        phi, psi = phi.astype(float), psi.astype(float)
        mean = phi.mean(axis=0)
        # Each shape is centred on one of the platforms, and each platform centres every other shape.
        if (SHAPES.index(shape) + (platform == "cpu")) % 2:
            grams = [gram.center() for gram in grams]
            phi, psi = phi - mean, psi - psi.mean(axis=0)
        found = measured(*grams)
        square, cross = np.sum((phi.T @ phi) ** 2), np.sum((phi.T @ psi) ** 2)
        assert float(found["itself"]) == pytest.approx(square, rel=1e-5)
        assert float(found["equal"]) == pytest.approx(square, rel=1e-5)
        assert float(found["other"]) == pytest.approx(cross, rel=1e-5)
        np.testing.assert_allclose(found["diagonal"], np.sum(phi**2, axis=1), rtol=1e-4)
        np.testing.assert_allclose(found["offset"], mean, rtol=1e-5)

    def test_under_grad_and_vmap(self):
        phi = np.random.default_rng(0).normal(size=(2, 8200, 3)).astype(np.float32)
        of_one = jax.value_and_grad(lambda phi: FeatureGram(phi).frobenius() ** 2)
        squares, slopes = jax.jit(jax.vmap(of_one))(phi)
        phi = phi.astype(float)
        gram = phi.mT @ phi
        np.testing.assert_allclose(squares, np.sum(gram**2, axis=(1, 2)), rtol=1e-5)
        np.testing.assert_allclose(slopes, 4 * phi @ gram, rtol=1e-4, atol=1e-4 * gram.max())

    def test_cka_by_blocks_and_by_entries(self):
        rng = np.random.default_rng(1)
        phi = rng.normal(size=(8200, 6)) + 30
        psi = phi[:, :4] + rng.normal(size=(8200, 4))
        expected = oracles.cka_of_features(phi - 30, psi - 30)
        a, b = (FeatureGram(jnp.asarray(f, jnp.float32)) for f in (phi, psi))
        assert float(cka(a, b)) == pytest.approx(expected, rel=2e-4)
        assert float(cka(a, jax.jit(FeatureGram.by_entries)(b))) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad], ids=lambda transform: transform.__name__)
def test_the_platform_is_chosen_under(transform):
    """Without the fixture, as users run it."""
    a, b = np.random.default_rng(0).normal(size=(2, 8200, 3)).astype(np.float32)
    a, b = (a[None], b[None]) if transform is jax.vmap else (a, b)
    assert np.isfinite(jax.jit(transform(lambda a, b: cka(FeatureGram(a), FeatureGram(b))))(a, b)).all()


def test_of_one_centred_and_one_not():
    rng = np.random.default_rng(0)
    phi, psi = rng.normal(size=(2, 8500, 4)).astype(np.float32) + 1
    found = jax.jit(lambda phi, psi: FeatureGram(phi).center().inner(FeatureGram(psi)))(phi, psi)
    phi, psi = phi.astype(float), psi.astype(float)
    assert float(found) == pytest.approx(np.sum(((phi - phi.mean(axis=0)).T @ psi) ** 2), rel=1e-5)


def test_float64():
    phi = np.random.default_rng(0).normal(size=(8193, 130))
    with jax.enable_x64(True):
        square = jax.jit(lambda phi: FeatureGram(phi).center().frobenius() ** 2)(phi + 1000)
    assert square.dtype == jnp.float64
    phi -= phi.mean(axis=0)
    assert float(square) == pytest.approx(np.sum((phi.T @ phi) ** 2), rel=1e-10)


@pytest.mark.parametrize("metric", [lambda a: a.inner(a), lambda a: a.center().frobenius()])
def test_a_bad_feature_in_any_block(metric):
    phi = np.random.default_rng(0).normal(size=(8300, 3)).astype(np.float32)
    of_features = jax.jit(lambda phi: metric(FeatureGram(phi)))
    for row in (0, 1500, 8299):
        bad = phi.copy()
        bad[row, 1] = np.nan
        assert np.isnan(of_features(bad))


def test_an_eager_cka_is_one_program_with_little_beside_its_inputs():
    compiled = []
    phi = np.random.default_rng(0).normal(size=(2, 20_011, 64)).astype(np.float32)
    a, b = (FeatureGram(jnp.asarray(f)) for f in phi)
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    cka(a, b)
    jax.monitoring.clear_event_listeners()
    assert compiled.count("/jax/core/compile/backend_compile_duration") == 1
    # On a CPU, older versions of XLA copy the features for their mean; a card has the memory for copies.
    if jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 10):
        memory = jax.jit(cka).lower(a, b).compile().memory_analysis()
        assert memory.temp_size_in_bytes < a.phi.nbytes / 2
