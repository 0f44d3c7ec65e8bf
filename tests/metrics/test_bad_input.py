"""What is not a kernel is refused by name; a kernel of nothing is nan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import DenseGram, FeatureGram, cka, effective_rank, relative_change, scale

SINGLE = [scale, effective_rank]
PAIR = [cka, relative_change, lambda a, b: cka(a, b, debiased=False)]


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (4,), (2, 4, 4), ()])
@pytest.mark.parametrize("metric", [*SINGLE, *(lambda a, m=m: m(a, jnp.eye(4)) for m in PAIR)])
def test_not_a_kernel(metric, shape):
    told = r"a kernel has shape \(N, N\), got .*; wrap features \(N, D\) as nngp\.metrics\.FeatureGram\(phi\), and make"
    with pytest.raises(ValueError, match=told):
        metric(jnp.ones(shape))


@pytest.mark.parametrize("metric", PAIR)
@pytest.mark.parametrize(
    "other", [jnp.eye(5), DenseGram(jnp.eye(5)), FeatureGram(jnp.ones((5, 2)))], ids=["array", "dense", "features"]
)
def test_other_examples(metric, other):
    for pair in ((jnp.eye(4), other), (other, jnp.eye(4))):
        with pytest.raises(ValueError, match=r"both kernels must be on the same examples, got N=\d and N=\d\."):
            metric(*pair)


@pytest.mark.parametrize(("debiased", "least"), [(True, 4), (False, 2)])
def test_too_few_examples(debiased, least):
    with pytest.raises(ValueError, match=rf"this metric needs N >= {least} examples, got N={least - 1}\."):
        cka(jnp.eye(least - 1), jnp.eye(least - 1), debiased=debiased)
    enough = FeatureGram(jnp.asarray(np.random.default_rng(0).normal(size=(least, 2)), jnp.float32))
    assert float(cka(enough, enough, debiased=debiased)) == pytest.approx(1)


def test_unknown_of():
    told = r"of='variance' must be 'eigenvalues' \(of the kernel\) or 'singular_values' \(of the features\)\."
    with pytest.raises(ValueError, match=told):
        effective_rank(jnp.eye(4), of="variance")


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("zero", [jnp.zeros((5, 5)), FeatureGram(jnp.zeros((5, 2)))], ids=["dense", "features"])
class TestZeroKernel:
    @pytest.mark.parametrize("debiased", [True, False])
    def test_cka(self, zero, transform, debiased):
        other = FeatureGram(jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32))
        for pair in ((zero, zero), (zero, other), (other, zero)):
            assert np.isnan(transform(lambda a, b: cka(a, b, debiased=debiased))(*pair))

    def test_effective_rank(self, zero, transform):
        for of in ("eigenvalues", "singular_values"):
            assert np.isnan(transform(lambda a, of=of: effective_rank(a, of=of))(zero))

    def test_relative_change(self, zero, transform):
        other = FeatureGram(jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32))
        assert np.isnan(transform(relative_change)(zero, zero))
        # a head that starts at zero, as in Haiku's ResNets, is a reference that nothing can be relative to
        assert np.isnan(transform(relative_change)(other, zero))
        assert float(transform(relative_change)(zero, other)) == pytest.approx(1)

    def test_scale(self, zero, transform):
        assert float(transform(scale)(zero)) == 0


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("value", [1.0, 0.1, 1000.3])
@pytest.mark.parametrize("form", [FeatureGram, lambda phi: phi @ phi.T], ids=["features", "dense"])
def test_cka_of_constant_features(debiased, value, form):
    # no example differs from another; what rounding leaves of the mean is no geometry
    constant = form(jnp.full((100, 3), value))
    other = form(jnp.asarray(np.random.default_rng(0).normal(size=(100, 3)), jnp.float32))
    for pair in ((constant, constant), (constant, other), (other, constant)):
        assert np.isnan(cka(*pair, debiased=debiased))


@pytest.mark.parametrize("form", [FeatureGram, lambda phi: phi @ phi.T], ids=["features", "dense"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize(
    "metric",
    [
        scale,
        effective_rank,
        lambda a: effective_rank(a, of="singular_values"),
        *(lambda a, m=m: m(a, jnp.eye(8)) for m in PAIR),
    ],
    ids=["scale", "effective_rank", "RankMe", "cka", "relative_change", "cka biased"],
)
def test_one_bad_feature_is_never_a_finite_number(metric, bad, form):
    phi = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32).at[2, 1].set(bad)
    assert not np.isfinite(metric(form(phi)))
