"""CKA of many layers and batches against CKA of each pair, and the bootstrap against fresh data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import (
    DenseGram,
    FeatureGram,
    bootstrap,
    cka,
    cka_matrix,
    minibatch_cka_matrix,
    participation_ratio,
    scale,
    target_alignment,
)

from . import oracles

pytestmark = pytest.mark.once

HSIC = {False: oracles.hsic_biased, True: oracles.hsic_debiased}


@pytest.mark.parametrize("debiased", [False, True])
def test_the_oracle_of_features_is_that_of_kernels(debiased):
    phi, psi = layers(12, (3, 7)).values()
    expected = HSIC[debiased](phi @ phi.T, psi @ psi.T)
    assert oracles.hsic_of_features(phi, psi, debiased) == pytest.approx(expected)


@pytest.fixture(params=[20, 1030], ids=["dense", "by pairs"])
def n(request):
    """Numbers of examples: up to 1024 the kernels are formed once, and above it the products of each pair are taken."""
    return request.param


def layers(n, widths, seed=0):
    """Features of layers that share a part, float64."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 40))
    return {f"layer{d}": rng.normal(size=(n, d)) + 0.7 * common[:, :d] + 1 for d in widths}


def grams(features):
    """A Gram of each kind in turn."""
    forms = (of_features, lambda phi: DenseGram(kernel(phi)), kernel)
    return {name: forms[i % 3](f) for i, (name, f) in enumerate(features.items())}


def kernel(phi):
    return jnp.asarray(phi @ phi.T, jnp.float32)


def of_features(phi):
    return FeatureGram(jnp.asarray(phi, jnp.float32))


by_entries = jax.jit(FeatureGram.by_entries)


@pytest.mark.parametrize("debiased", [False, True])
class TestMatrix:
    @pytest.mark.every(6)
    def test_against_each_pair(self, n, debiased):
        first, second = layers(n, (3, 7, 30)), layers(n, (4, 9), seed=1)
        measured = cka_matrix(grams(first), grams(second), debiased=debiased)
        assert measured.shape == (3, 2)
        expected = [[oracles.cka_of_features(a, b, debiased) for b in second.values()] for a in first.values()]
        np.testing.assert_allclose(measured, expected, rtol=2e-4, atol=2e-5)

    @pytest.mark.every(3)
    def test_of_one_model(self, n, debiased):
        own = grams(layers(n, (3, 7, 30)))
        measured = np.asarray(cka_matrix(own, debiased=debiased))
        np.testing.assert_allclose(np.diagonal(measured), 1, rtol=1e-5)
        np.testing.assert_allclose(measured, measured.T, rtol=1e-5)
        np.testing.assert_allclose(measured, cka_matrix(list(own.values()), own, debiased=debiased), rtol=1e-6)

    def test_float64_and_jit(self, n, debiased):
        features = layers(n, (3, 30))
        expected = oracles.cka_of_features(*features.values(), debiased)
        with jax.enable_x64(True):
            own = {name: FeatureGram(jnp.asarray(f)) for name, f in features.items()}
            measured = np.asarray(jax.jit(lambda own: cka_matrix(own, debiased=debiased))(own))
        assert measured[0, 1] == pytest.approx(expected, rel=1e-9)

    @pytest.mark.every(3)
    def test_batches_are_averaged_before_the_ratio(self, n, debiased):
        # by hand, of batches of one size
        batches = [(layers(n, (3, 7), seed), layers(n, (4, 9), seed)) for seed in range(4)]

        def mean(pick, other):
            return np.mean([oracles.hsic_of_features(pick(a, b), other(a, b), debiased) for a, b in batches])

        expected = np.zeros((2, 2))
        for i, one in enumerate(batches[0][0]):
            for j, two in enumerate(batches[0][1]):
                a, b = (lambda a, b, one=one: a[one]), (lambda a, b, two=two: b[two])
                expected[i, j] = mean(a, b) / np.sqrt(mean(a, a) * mean(b, b))
        measured = minibatch_cka_matrix(((grams(a), grams(b)) for a, b in batches), debiased=debiased)
        np.testing.assert_allclose(measured, expected, rtol=2e-4, atol=2e-5)

    def test_zero_constant_and_bad_layers(self, n, debiased):
        phi = layers(n, (3,))["layer3"]
        of_nan, of_infinity = phi.copy(), phi.copy()
        of_nan[2, 1], of_infinity[2, 1] = np.nan, np.inf
        own = [of_features(f) for f in (phi, 0 * phi, 0 * phi + 0.1, of_nan, of_infinity)]
        for run in (cka_matrix, jax.jit(cka_matrix, static_argnames="debiased")):
            measured = np.asarray(run(own, debiased=debiased))
            assert measured[0, 0] == pytest.approx(1)
            assert not np.isfinite(measured.ravel()[1:]).any()
            assert np.isnan(measured[1:3, :3]).all()
            assert np.isnan(measured[:3, 1:3]).all()


def test_a_larger_batch_weighs_more():
    features = layers(30, (3, 7))
    parts = [{name: f[rows] for name, f in features.items()} for rows in (slice(0, 20), slice(20, 30))]
    x, y = features
    cross, own_x, own_y = (
        np.average([oracles.hsic_debiased(p[a] @ p[a].T, p[b] @ p[b].T) for p in parts], weights=[20, 10])
        for a, b in ((x, y), (x, x), (y, y))
    )
    measured = minibatch_cka_matrix([(grams(part), None) for part in parts])
    assert float(np.asarray(measured)[0, 1]) == pytest.approx(cross / np.sqrt(own_x * own_y), rel=2e-4)


def test_small_batches_agree_with_the_whole():
    features = layers(600, (3, 7))
    batches = [({name: f[i : i + 10] for name, f in features.items()}, None) for i in range(0, 600, 10)]
    whole = oracles.cka_oracle(oracles.hsic_debiased)(*features.values())
    measured = np.asarray(minibatch_cka_matrix((grams(batch), None) for batch, _ in batches))
    assert float(measured[0, 1]) == pytest.approx(whole, abs=0.03)
    biased = np.asarray(minibatch_cka_matrix(((grams(batch), None) for batch, _ in batches), debiased=False))
    assert float(biased[0, 1]) > whole + 0.1


class TestBadBatches:
    def test_no_layer(self):
        for empty in ({}, []):
            for pair in ((empty, None), ([jnp.eye(4)], empty)):
                with pytest.raises(ValueError, match=r"got no layer; pass Grams or kernels \(N, N\) by layer\."):
                    cka_matrix(*pair)

    def test_no_batch(self):
        with pytest.raises(ValueError, match=r"minibatch_cka_matrix got no batch\."):
            minibatch_cka_matrix([])

    @pytest.mark.parametrize(("debiased", "least"), [(True, 4), (False, 2)])
    def test_too_few_or_other_examples(self, debiased, least):
        told = rf"all layers of a batch must be on the same N >= {least} examples, got N=\[{{}}\]; drop a smaller last"
        with pytest.raises(ValueError, match=told.format(least - 1)):
            cka_matrix([jnp.eye(least - 1)], debiased=debiased)
        with pytest.raises(ValueError, match=told.format("5, 6")):
            cka_matrix([jnp.eye(5)], [jnp.eye(6)], debiased=debiased)
        with pytest.raises(ValueError, match=told.format("5, 6")):
            cka_matrix([jnp.eye(6), FeatureGram(jnp.ones((5, 2)))], debiased=debiased)

    def test_batches_of_other_layers(self):
        # one layer would otherwise be added to all
        a, b = map(of_features, layers(10, (3, 7)).values())
        with pytest.raises(ValueError, match="layers"):
            minibatch_cka_matrix([([a, b], None), ([a], None)])


class TestBootstrap:
    @pytest.mark.every(6)
    @pytest.mark.parametrize(
        "metric",
        [scale, participation_ratio, lambda a: cka(a, FeatureGram(a.features[:, :2])), lambda a: a.center().trace()],
        ids=["scale", "participation_ratio", "cka", "an own one"],
    )
    def test_standard_error_is_that_of_fresh_data(self, metric):
        data = np.random.default_rng(0).normal(size=(400, 150, 4)) * [1, 0.7, 0.5, 0.3]
        data = data.astype(np.float32)
        every = np.asarray(jax.jit(jax.vmap(lambda phi: metric(FeatureGram(phi))))(data))
        real = np.std(every, ddof=1)
        keys = jax.random.split(jax.random.key(0), 8)
        of_one = jax.vmap(lambda phi, key: bootstrap(metric, FeatureGram(phi), 100, key))
        value, error = jax.jit(of_one)(data[:8], keys)
        np.testing.assert_allclose(value, every[:8], rtol=1e-5)
        assert np.mean(error) == pytest.approx(real, rel=0.25)

    def test_same_key_same_result(self):
        gram = FeatureGram(jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)), jnp.float32))
        run = jax.jit(lambda gram, key: bootstrap(scale, gram, 20, key))
        first, again, other = (run(gram, jax.random.key(seed)) for seed in (0, 0, 1))
        assert float(first.standard_error) == float(again.standard_error) != float(other.standard_error)
        assert float(first.value) == float(other.value) == pytest.approx(float(scale(gram)))

    @pytest.mark.parametrize("form", [of_features, lambda phi: by_entries(of_features(phi))], ids=["phi", "dense"])
    def test_all_arguments_are_resampled_together(self, form):
        # an example that met the target of another would move the sum of squares off zero
        phi = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)

        def apart(gram, rows, other):
            return jnp.max(jnp.abs(gram.diagonal() - jnp.sum(rows**2, axis=1))) + jnp.max(
                jnp.abs(gram.dense() - other.dense())
            )

        arguments = form(phi), jnp.asarray(phi), DenseGram(kernel(phi))
        value, error = bootstrap(jax.jit(apart), arguments, 20, jax.random.key(0))
        assert float(value) < 1e-4
        assert float(error) < 1e-4

    def test_targets(self):
        rng = np.random.default_rng(0)
        y = np.arange(60) % 3
        phi = jnp.asarray(np.eye(3)[y] + 0.5 * rng.normal(size=(60, 3)), jnp.float32)
        run = jax.jit(lambda gram, y: bootstrap(target_alignment, (gram, y), 50, jax.random.key(0)))
        own, shuffled = (run(FeatureGram(phi), np.eye(3)[labels]) for labels in (y, rng.permutation(y)))
        assert 0 < float(own.standard_error) < 0.1
        assert float(own.value) > float(shuffled.value) + 4 * float(own.standard_error)

    def test_of_an_array(self):
        gram = FeatureGram(jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)), jnp.float32))
        estimate = bootstrap(lambda a: a.eigvalsh(), gram, 20, jax.random.key(0))
        assert estimate.value.shape == estimate.standard_error.shape == (3,)
        assert np.all(np.asarray(estimate.standard_error) > 0)

    @pytest.mark.parametrize("n", [1, 0])
    def test_too_few_resamples(self, n):
        told = rf"bootstrap takes arguments on the same examples and n >= 2, got N=\[4\] and n={n}\."
        with pytest.raises(ValueError, match=told):
            bootstrap(scale, DenseGram(jnp.eye(4)), n, jax.random.key(0))

    def test_other_examples(self):
        with pytest.raises(ValueError, match=r"arguments on the same examples and n >= 2, got N=\[4, 5\] and n=9\."):
            bootstrap(target_alignment, (DenseGram(jnp.eye(4)), jnp.ones((5, 2))), 9, jax.random.key(0))
