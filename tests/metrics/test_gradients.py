"""Gradients of the metrics against finite differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import (
    DenseGram,
    FeatureGram,
    alignment,
    bures_distance,
    centered_kernel_velocity,
    cka,
    class_block_means,
    class_separation,
    condition_number,
    effective_rank,
    kernel_distance,
    log_marginal_likelihood,
    neural_collapse,
    participation_ratio,
    power_law_exponent,
    relative_change,
    scale,
    spectrum,
    stable_rank,
    target_alignment,
    von_neumann_entropy,
)

TARGETS = np.random.default_rng(5).normal(size=12)


def labels(a):
    return np.arange(a.n) % 3


PAIRS = {
    "cka": cka,
    "cka biased": lambda a, b: cka(a, b, debiased=False),
    "relative_change": relative_change,
    "alignment": alignment,
    "alignment uncentred": lambda a, b: alignment(a, b, center=False),
    "kernel_distance": kernel_distance,
    "kernel_distance centred": lambda a, b: kernel_distance(a, b, center=True),
    "centered_kernel_velocity": lambda a, b: centered_kernel_velocity(a, b, 0.5),
    "bures_distance": bures_distance,
}
SINGLES = {
    "scale": scale,
    "participation_ratio": participation_ratio,
    "stable_rank": stable_rank,
    "target_alignment": lambda a: target_alignment(a, labels(a)),
    "target_alignment of numbers": lambda a: target_alignment(a, TARGETS[: a.n]),
    "class_separation": lambda a: class_separation(a, labels(a)),
    "class_block_means": lambda a: class_block_means(a, labels(a))[1, 2],
    "nc2_norms": lambda a: neural_collapse(a, labels(a))["nc2_norms"],
    "log_marginal_likelihood": lambda a: log_marginal_likelihood(a, TARGETS[: a.n]),
}
OF_THE_SPECTRUM = {
    "effective_rank": effective_rank,
    "RankMe": lambda a: effective_rank(a, of="singular_values"),
    "von_neumann_entropy": von_neumann_entropy,
    "condition_number": condition_number,
    "power_law_exponent": lambda a: power_law_exponent(a, (1, 4)),
    "spectrum": lambda a: spectrum(a, 3)[2],
}
FORMS = {"features": FeatureGram, "dense": lambda phi: DenseGram(phi @ phi.T)}
WIDE_IN_CI = pytest.param("features", (6, 9), marks=pytest.mark.exhaustive)
DENSE_IN_CI = pytest.mark.parametrize("form", ["features", pytest.param("dense", marks=pytest.mark.exhaustive)])
pytestmark = pytest.mark.once


def metrics_of(form, shape):
    """Those with a gradient, by name: of features ``(N, D)`` and others."""
    metrics = {**PAIRS, **{name: lambda a, b, m=metric: m(a) for name, metric in SINGLES.items()}}
    if form == "features" or shape[0] <= shape[1]:  # a rank has no gradient where eigenvalues are zero
        metrics |= {name: lambda a, b, m=metric: m(a) for name, metric in OF_THE_SPECTRUM.items()}
    else:
        del metrics["bures_distance"]
    return metrics


def assert_gradients(metrics, phi):
    """Each against finite differences; all in one program, as they compile for long."""
    rng = np.random.default_rng(9)

    @jax.jit
    def both(phi):
        return {name: jax.value_and_grad(metric)(phi) for name, metric in metrics.items()}

    def values(phi):
        return {name: value for name, (value, _) in both(phi).items()}

    gradients = {name: gradient for name, (_, gradient) in both(phi).items()}
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 1e-4, name
    h = 1e-5
    for _ in range(3):
        direction = rng.normal(size=phi.shape)
        above, below = values(phi + h * direction), values(phi - h * direction)
        for name, gradient in gradients.items():
            difference = (float(above[name]) - float(below[name])) / (2 * h)
            assert np.sum(gradient * direction) == pytest.approx(difference, rel=1e-6, abs=1e-8), name


def with_features(metrics, form, psi):
    return {name: lambda phi, m=m: m(FORMS[form](phi), FORMS[form](psi)) for name, m in metrics.items()}


@pytest.mark.parametrize(("form", "shape"), [("features", (12, 4)), ("dense", (6, 9)), WIDE_IN_CI])
def test_gradients(form, shape):
    with jax.enable_x64(True):
        phi, psi = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)))
        assert_gradients(with_features(metrics_of(form, shape), form, psi), phi)


@DENSE_IN_CI
def test_gradients_beside_dead_units(form):
    # ReLU units that are zero on every example, before and after, are columns of zeros
    with jax.enable_x64(True):
        phi, psi = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 5))).at[:, :, 1:3].set(0)
        alive = jnp.array([1.0, 0, 0, 1, 1])
        metrics = with_features(metrics_of(form, (12, 5)), form, psi)
        for name in OF_THE_SPECTRUM:
            metrics.pop(name, None)
        assert_gradients({name: lambda phi, m=m: m(phi * alive) for name, m in metrics.items()}, phi)


@DENSE_IN_CI
def test_gradients_towards_a_unit_that_was_dead(form):
    # the reference has a column of zeros, and the features have none
    with jax.enable_x64(True):
        phi, psi = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 4)))
        metrics = with_features(PAIRS, form, psi.at[:, 1].set(0))
        if form == "dense":
            del metrics["bures_distance"]
        assert_gradients(metrics, phi)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_similarity_at_its_maximum_are_zero(form):
    with jax.enable_x64(True):
        phi = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)))
        names = ("cka", "alignment", "kernel_distance", "kernel_distance centred")
        metrics = with_features({name: PAIRS[name] for name in names}, form, phi)
        for name, gradient in jax.jit(lambda a: {n: jax.grad(m)(a) for n, m in metrics.items()})(phi).items():
            np.testing.assert_allclose(gradient, 0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", [(12, 4), (6, 9)], ids=["N>D", "N<D"])
@pytest.mark.parametrize("metric", [relative_change, bures_distance])
def test_gradient_at_no_change_is_the_subgradient_zero(metric, shape):
    phi = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda phi0: metric(FeatureGram(phi0), FeatureGram(phi))))(phi)
    assert np.isfinite(gradient).all()
    if metric is relative_change:
        np.testing.assert_array_equal(gradient, 0)


def test_gradient_of_a_small_distance():
    # 1 less a cosine has no digits left here, its derivative has
    with jax.enable_x64(True):
        phi, change = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 4)))
        exact = jax.jit(jax.grad(lambda a: kernel_distance(FeatureGram(a), FeatureGram(phi))))(phi + 1e-3 * change)
    phi, change = phi.astype(jnp.float32), change.astype(jnp.float32)
    measured = jax.jit(jax.grad(lambda a: kernel_distance(FeatureGram(a), FeatureGram(phi))))(phi + 1e-3 * change)
    np.testing.assert_allclose(measured, exact, atol=0.05 * np.abs(exact).max())
