"""Gradients of the metrics against finite differences, in float64."""

from functools import cache

import jax
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
DENSE_IN_CI = pytest.mark.parametrize("form", ["features", pytest.param("dense", marks=pytest.mark.exhaustive)])
SHAPES = pytest.mark.parametrize(
    ("form", "shape"),
    [("features", (12, 5)), ("dense", (6, 9)), pytest.param("features", (6, 9), marks=pytest.mark.exhaustive)],
)
pytestmark = pytest.mark.once


def metrics_of(form, shape):
    """Those with a gradient, by name: of features ``(N, D)`` and others."""
    metrics = {**PAIRS, **{name: lambda a, b, m=metric: m(a) for name, metric in SINGLES.items()}}
    if form == "features" or shape[0] <= shape[1]:  # a rank has no gradient where eigenvalues are zero
        metrics |= {name: lambda a, b, m=metric: m(a) for name, metric in OF_THE_SPECTRUM.items()}
    else:
        del metrics["bures_distance"]
    return metrics


@cache
def program(form, shape):
    """Values and gradients of all metrics, of features times 0 or 1 for each column; they compile for long."""

    def of_metric(metric):
        return jax.value_and_grad(lambda phi, psi, alive: metric(FORMS[form](phi * alive), FORMS[form](psi)))

    metrics = {name: of_metric(metric) for name, metric in metrics_of(form, shape).items()}
    return jax.jit(lambda phi, psi, alive: {name: metric(phi, psi, alive) for name, metric in metrics.items()})


def values_and_gradients(form, phi, psi, alive=1.0):
    with jax.enable_x64(True):
        found = program(form, phi.shape)(phi, psi, np.ones(phi.shape[1]) * alive)
        return tuple({name: np.asarray(pair[i]) for name, pair in found.items()} for i in (0, 1))


def assert_gradients(form, phi, psi, alive=1.0, names=None):
    """Each against finite differences."""
    rng = np.random.default_rng(9)
    _, gradients = values_and_gradients(form, phi, psi, alive)
    gradients = {name: gradients[name] for name in names or gradients}
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 1e-4, name
    h = 1e-5
    for _ in range(3):
        direction = rng.normal(size=phi.shape)
        above, below = (values_and_gradients(form, phi + s * direction, psi, alive)[0] for s in (h, -h))
        for name, gradient in gradients.items():
            difference = (above[name] - below[name]) / (2 * h)
            assert np.sum(gradient * direction) == pytest.approx(difference, rel=1e-6, abs=1e-8), name


def pair(shape):
    return np.random.default_rng(0).normal(size=(2, *shape))


@SHAPES
def test_gradients(form, shape):
    assert_gradients(form, *pair(shape))


@DENSE_IN_CI
def test_gradients_beside_dead_units(form):
    # ReLU units that are zero on every example, before and after, are columns of zeros
    alive = np.array([1.0, 0, 0, 1, 1])
    phi, psi = pair((12, 5)) * alive
    names = [name for name in metrics_of(form, phi.shape) if name not in OF_THE_SPECTRUM]
    assert_gradients(form, phi, psi, alive, names)


@DENSE_IN_CI
def test_gradients_towards_a_unit_that_was_dead(form):
    # the reference has a column of zeros, and the features have none
    phi, psi = pair((12, 5))
    psi[:, 1] = 0
    assert_gradients(form, phi, psi, names=[name for name in metrics_of(form, phi.shape) if name in PAIRS])


@SHAPES
def test_gradients_of_similarity_at_its_maximum_are_zero(form, shape):
    phi, _ = pair(shape)
    _, gradients = values_and_gradients(form, phi, phi)
    for name in ("cka", "cka biased", "kernel_distance", "kernel_distance centred"):
        np.testing.assert_allclose(gradients[name], 0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", [(12, 4), (6, 9)], ids=["N>D", "N<D"])
def test_gradient_at_no_change_is_the_subgradient_zero(shape):
    phi = pair(shape)[0].astype(np.float32)

    @jax.jit
    def gradients(phi0, phi):
        metrics = (relative_change, bures_distance)
        return [jax.grad(lambda f, metric=metric: metric(FeatureGram(f), FeatureGram(phi)))(phi0) for metric in metrics]

    of_change, of_distance = gradients(phi, phi)
    np.testing.assert_array_equal(of_change, 0)
    assert np.isfinite(of_distance).all()


def test_gradient_of_a_small_distance():
    # 1 less a cosine has no digits left here, its derivative has
    phi, change = pair((12, 5))
    exact = values_and_gradients("features", phi + 1e-3 * change, phi)[1]["kernel_distance"]
    phi, change = phi.astype(np.float32), change.astype(np.float32)
    gradient = jax.jit(jax.grad(lambda a, b: kernel_distance(FeatureGram(a), FeatureGram(b))))
    measured = gradient(phi + np.float32(1e-3) * change, phi)
    np.testing.assert_allclose(measured, exact, atol=0.05 * np.abs(exact).max())
