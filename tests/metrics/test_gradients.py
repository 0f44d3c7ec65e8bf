"""Gradients of the metrics against finite differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import FeatureGram, cka, effective_rank, relative_change, scale

METRICS = {
    "cka": cka,
    "cka biased": lambda a, b: cka(a, b, debiased=False),
    "relative_change": relative_change,
    "effective_rank": lambda a, b: effective_rank(a),
    "scale": lambda a, b: scale(a),
}
FORMS = {"features": FeatureGram, "dense": lambda phi: phi @ phi.T}


def assert_gradient(function, phi):
    rng = np.random.default_rng(9)
    gradient = np.asarray(jax.grad(function)(phi))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-4
    for _ in range(3):
        direction = rng.normal(size=phi.shape)
        h = 1e-5
        difference = float(function(phi + h * direction) - function(phi - h * direction)) / (2 * h)
        assert np.sum(gradient * direction) == pytest.approx(difference, rel=1e-6, abs=1e-8)


CASES = [(name, form, shape) for name in METRICS for form in FORMS for shape in ((12, 4), (6, 9))]
CASES.remove(("effective_rank", "dense", (12, 4)))  # the rank has no gradient where eigenvalues are zero


@pytest.mark.parametrize(("name", "form", "shape"), CASES)
def test_gradient(name, form, shape):
    with jax.enable_x64(True):
        phi, psi = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)))
        assert_gradient(lambda phi: METRICS[name](FORMS[form](phi), FORMS[form](psi)), phi)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["cka", "cka biased", "relative_change"])
def test_gradient_beside_a_dead_unit(name, form):
    # a ReLU unit that is zero on every example, before and after, is a column of zeros
    with jax.enable_x64(True):
        phi, psi = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 4))).at[:, :, 1].set(0)
        alive = jnp.array([1.0, 0, 1, 1])
        assert_gradient(lambda phi: METRICS[name](FORMS[form](phi * alive), FORMS[form](psi)), phi)


def test_gradient_of_cka_at_its_maximum_is_zero():
    with jax.enable_x64(True):
        phi = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)))
        gradient = jax.grad(lambda a: cka(FeatureGram(a), FeatureGram(phi)))(phi)
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_gradient_of_relative_change_at_no_change_is_the_subgradient_zero():
    phi = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)))
    gradient = jax.grad(lambda phi0: relative_change(FeatureGram(phi0), FeatureGram(phi)))(phi)
    np.testing.assert_array_equal(gradient, 0)
