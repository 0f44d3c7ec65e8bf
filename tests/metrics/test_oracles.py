"""Every metric against float64 NumPy written from the formulas of the papers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nngp_plugins import metrics
from nngp_plugins.metrics import (
    FeatureGram,
    alignment,
    bures_distance,
    centered_kernel_velocity,
    cka,
    effective_rank,
    eigenvector_overlap,
    features,
    kernel_distance,
    participation_ratio,
    power_law_exponent,
    relative_change,
    scale,
    stable_rank,
    von_neumann_entropy,
)

from . import oracles

PAIRS = {
    "cka": (cka, oracles.cka_oracle(oracles.hsic_debiased)),
    "cka biased": (lambda a, b: cka(a, b, debiased=False), oracles.cka_oracle(oracles.hsic_biased)),
    "alignment": (lambda a, b: alignment(a, b, center=False), oracles.alignment),
    "alignment centred": (alignment, oracles.cka_oracle(oracles.hsic_biased)),
    "relative_change": (relative_change, oracles.relative_change),
    "kernel_distance": (kernel_distance, oracles.kernel_distance),
    "kernel_distance centred": (
        lambda a, b: kernel_distance(a, b, center=True),
        lambda phi, psi: 1 - oracles.cka_oracle(oracles.hsic_biased)(phi, psi),
    ),
    "centered_kernel_velocity": (
        lambda a, b: centered_kernel_velocity(a, b, steps=4),
        lambda phi, psi: oracles.kernel_distance(phi, psi, center=True) / 4,
    ),
    "bures_distance": (bures_distance, oracles.procrustes),
    "eigenvector_overlap": (
        lambda a, b: eigenvector_overlap(a, b, k=2),
        lambda phi, psi: oracles.eigenvector_overlap(phi, psi, 2),
    ),
}
SINGLES = {
    "scale": (scale, lambda phi: np.mean([row @ row for row in phi])),
    "effective_rank": (effective_rank, lambda phi: np.exp(oracles.entropy(oracles.eigenvalues(phi)))),
    "RankMe": (
        lambda a: effective_rank(a, of="singular_values"),
        lambda phi: np.exp(oracles.entropy(np.linalg.svd(phi, compute_uv=False))),
    ),
    "von_neumann_entropy": (von_neumann_entropy, lambda phi: oracles.entropy(oracles.eigenvalues(phi))),
    "participation_ratio": (
        participation_ratio,
        lambda phi: oracles.eigenvalues(phi).sum() ** 2 / (oracles.eigenvalues(phi) ** 2).sum(),
    ),
    "stable_rank": (stable_rank, lambda phi: np.linalg.norm(phi) ** 2 / np.linalg.norm(phi, 2) ** 2),
    "power_law_exponent": (
        lambda a: power_law_exponent(a, (2, 6)),
        lambda phi: oracles.power_law_exponent(phi, 2, 6),
    ),
}
DISTANCES = {
    "rsa": (metrics.rsa, lambda phi, psi: oracles.rsa(phi, psi, scipy.stats.spearmanr)),
    "rsa of values": (partial(metrics.rsa, ranks=False), lambda phi, psi: oracles.rsa(phi, psi, scipy.stats.pearsonr)),
    "distance_correlation": (metrics.distance_correlation, oracles.debiased_distance_correlation),
    "distance_correlation biased": (
        partial(metrics.distance_correlation, debiased=False),
        oracles.distance_correlation,
    ),
    "mutual_knn": (partial(metrics.mutual_knn, k=3), partial(oracles.mutual_knn, k=3)),
    "gulp": (metrics.gulp, partial(oracles.gulp, ridge=0.01)),
    "gulp of small directions": (partial(metrics.gulp, ridge=1e-4), partial(oracles.gulp, ridge=1e-4)),
}
METRICS = {
    **PAIRS,
    **{name: (lambda a, b, m=metric: m(a), lambda a, b, o=oracle: o(a)) for name, (metric, oracle) in SINGLES.items()},
}
FORMS = {"features": lambda phi: FeatureGram(jnp.asarray(phi)), "dense": lambda phi: jnp.asarray(phi @ phi.mT)}


def stacks(n, d):
    """Three pairs of features with a mean and unequal widths of spectrum, ``(3, N, D)`` each, in float64."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(3, n, d)) * np.geomspace(1, 0.1, d) + 0.5
    return phi, 0.5 * phi + 0.5 * rng.normal(size=(3, n, d))


def measure(a, b):
    return {name: metric(a, b) for name, (metric, _) in METRICS.items()}


class TestAllAtOnce:
    """One program of all metrics, as each compiles for long."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("shape", [(30, 7), (9, 24)], ids=["N>D", "N<D"])
    def test_float64(self, form, shape):
        phi, psi = (stack[0] for stack in stacks(*shape))
        with jax.enable_x64(True):
            measured = jax.jit(measure)(*(FORMS[form](m) for m in (phi, psi)))
        assert {value.shape for value in measured.values()} == {()}
        expected = {name: oracle(phi, psi) for name, (_, oracle) in METRICS.items()}
        assert {name: float(value) for name, value in measured.items()} == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(
        ("form", "shape"),
        [
            ("features", (30, 7)),
            pytest.param("features", (9, 24), marks=pytest.mark.exhaustive),
            ("dense", (9, 24)),
        ],
    )
    def test_vmap_over_a_stack_of_float32(self, form, shape):
        both = stacks(*shape)
        grams = (FORMS[form](stack.astype(np.float32)) for stack in both)
        measured = jax.jit(jax.vmap(measure))(*grams)
        for name, (_, oracle) in METRICS.items():
            expected = [oracle(*pair) for pair in zip(*both, strict=True)]
            np.testing.assert_allclose(measured[name], expected, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("form", "widths", "rtol"),
    [
        ("features", (7, 4), 2e-4),
        pytest.param("features", (40, 40), 1e-9, marks=pytest.mark.exhaustive),
        ("dense", (7, 40), 1e-9),
    ],
)
def test_distances_and_neighbours(form, widths, rtol):
    rng = np.random.default_rng(4)
    phi = rng.normal(size=(30, widths[0])) * np.geomspace(1, 0.1, widths[0]) + 0.5
    psi = 0.5 * phi[:, :4] @ rng.normal(size=(4, widths[1])) + 0.5 * rng.normal(size=(30, widths[1]))
    with jax.enable_x64(rtol < 1e-5):
        grams = (FORMS[form](f if rtol < 1e-5 else f.astype(np.float32)) for f in (phi, psi))
        measured = jax.jit(lambda a, b: {name: metric(a, b) for name, (metric, _) in DISTANCES.items()})(*grams)
    for name, (_, oracle) in DISTANCES.items():
        np.testing.assert_allclose(measured[name], oracle(phi, psi), rtol=rtol, err_msg=name)


@jax.jit
def all_pairs(a, b):
    return {name: metric(a, b) for name, (metric, _) in PAIRS.items()}


def test_features_of_unequal_widths():
    rng = np.random.default_rng(1)
    phi, psi = rng.normal(size=(20, 3)), rng.normal(size=(20, 50))
    measured = all_pairs(*(FeatureGram(jnp.asarray(f, jnp.float32)) for f in (phi, psi)))
    for name, (_, oracle) in PAIRS.items():
        assert float(measured[name]) == pytest.approx(oracle(phi, psi), rel=2e-4, abs=1e-6), name


def test_features_against_dense():
    rng = np.random.default_rng(2)
    phi, psi = rng.normal(size=(2, 20, 3))
    measured = all_pairs(FeatureGram(jnp.asarray(phi, jnp.float32)), jnp.asarray(psi @ psi.T, jnp.float32))
    for name, (_, oracle) in PAIRS.items():
        assert float(measured[name]) == pytest.approx(oracle(phi, psi), rel=2e-4, abs=1e-6), name


@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_small_changes_keep_their_digits(size):
    # a difference of squares, ‖K‖² − 2⟨K, K0⟩ + ‖K0‖², loses all digits of changes below 3e-4
    rng = np.random.default_rng(3)
    phi0 = rng.normal(size=(60, 5)).astype(np.float32)
    phi = (phi0 + size * rng.normal(size=(60, 5))).astype(np.float32)
    expected = PAIRS["relative_change"][1](phi.astype(float), phi0.astype(float))
    measured = float(relative_change(FeatureGram(jnp.asarray(phi)), FeatureGram(jnp.asarray(phi0))))
    assert measured == pytest.approx(expected, rel=1e-3)


def test_biased_cka_of_unrelated_features_is_far_from_zero():
    # the reason why the debiased one is the default: D/(D+N) = 0.8 here
    rng = np.random.default_rng(4)
    a, b = (FeatureGram(jnp.asarray(rng.normal(size=(50, 200)), jnp.float32)) for _ in range(2))
    assert float(cka(a, b, debiased=False)) == pytest.approx(0.8, abs=0.02)
    assert float(cka(a, b)) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int32, jnp.float32])
def test_features_make_the_kernel_averaged_over_all_axes(dtype):
    y = jnp.asarray(np.random.default_rng(5).integers(-9, 9, size=(4, 3, 2)), dtype)
    phi = features(y)
    assert phi.dtype == jnp.float32
    expected = np.einsum("ahc,bhc->ab", np.asarray(y, float), np.asarray(y, float)) / 6
    phi = np.asarray(phi, float)
    np.testing.assert_allclose(phi @ phi.T, expected, rtol=1e-6)


def test_integer_kernels_are_promoted():
    kernel = jnp.asarray(np.diag([1, 2, 3]))
    assert float(scale(kernel)) == 2
    assert float(effective_rank(kernel)) == pytest.approx(np.exp(oracles.entropy(np.array([1.0, 2, 3]))))


@pytest.mark.parametrize("kernel", [np.eye(8) * 0.3, np.eye(8), np.eye(16) + 0.5])
def test_debiased_cka_of_kernels_that_have_no_unbiased_hsic(kernel):
    # what rounding leaves of an HSIC of zero is no number to divide by
    kernel = jnp.asarray(kernel, jnp.float32)
    assert np.isnan(cka(kernel, kernel))
    assert float(cka(kernel, kernel, debiased=False)) == pytest.approx(1, abs=1e-5)
