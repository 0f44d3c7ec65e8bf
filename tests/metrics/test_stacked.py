"""From outputs to Grams, one by one and stacked, and every metric of every layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import (
    DEFAULT,
    DenseGram,
    FeatureGram,
    cka,
    evaluate,
    gram_of,
    kernel_distance,
    of_targets,
    product_from_first,
    stacked_grams,
    with_eigenvalues,
)

N = 12
TARGETS = np.arange(N) % 3


stacked = jax.jit(stacked_grams)


def outputs(seed, offset=0.0):
    """Four layers in the order of their names, of which the last one is not finite."""
    rng = np.random.default_rng(seed)
    shapes = {"conv": (N, 3, 3, 2), "head": (N, 3), "hidden": (N, 20)}
    y = {name: np.float32(rng.normal(size=shape) + offset) for name, shape in shapes.items()}
    return y | {"spoilt": np.full((N, 2), np.inf, np.float32)}


def layer(grams, i):
    return jax.tree.map(lambda leaf: leaf[i], grams)


@pytest.fixture(scope="module")
def snapshots():
    return [jax.device_get(with_eigenvalues(stacked(outputs(seed)))) for seed in range(3)]


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_stacked_grams_are_the_kernels_of_the_layers(offset):
    y = outputs(0, offset)
    grams = jax.device_get(stacked(y))
    for i, output in enumerate([*y.values()][:3]):
        phi = np.asarray(output, np.float64).reshape(N, -1)
        phi /= np.sqrt(phi.shape[1])
        np.testing.assert_allclose(grams.matrix[i], phi @ phi.T, rtol=1e-5, atol=1e-5)
        phi -= phi.mean(axis=0)
        np.testing.assert_allclose(grams.centered[i], phi @ phi.T, rtol=1e-4, atol=1e-3 if offset else 1e-5)


def test_a_constant_layer_is_exactly_zero_when_centred():
    grams = stacked({"constant": np.full((N, 5), 0.3, np.float32)})
    assert not np.any(grams.centered)


@pytest.mark.parametrize(("shape", "form"), [((N, 3), FeatureGram), ((N, 4, 4), DenseGram), ((N, N), DenseGram)])
def test_gram_of_takes_the_cheaper_form(shape, form):
    y = np.random.default_rng(0).normal(size=shape)
    gram, kernel = jax.jit(lambda y: (gram_of(y), gram_of(y).dense()))(np.float32(y))
    assert type(gram) is form
    phi = y.reshape(N, -1) / np.sqrt(y[0].size)
    np.testing.assert_allclose(kernel, phi @ phi.T, rtol=1e-4, atol=1e-5)


def test_eigenvalues_ascend_and_are_nan_for_a_bad_layer(snapshots):
    grams = snapshots[0]
    for i in range(3):
        np.testing.assert_allclose(grams.eigenvalues[i], np.linalg.eigvalsh(grams.matrix[i]), rtol=1e-4, atol=1e-5)
    assert np.isnan(grams.eigenvalues[3]).all()


def test_evaluate_is_every_metric_of_every_layer(snapshots):
    now, first, before = snapshots
    metrics = {**DEFAULT, **of_targets(TARGETS)}
    values, (traces, centered) = jax.jit(lambda *grams: evaluate(metrics, *grams, 4.0))(now, first, before)
    assert set(values) == set(metrics)

    @jax.jit
    def of_one(gram, reference, previous):
        values = {name: metric(gram, reference) for name, metric in metrics.items()}
        return values | {"kernel_velocity": kernel_distance(gram, previous) / 4}

    for i in range(3):
        for name, value in of_one(*(layer(grams, i) for grams in (now, first, before))).items():
            np.testing.assert_allclose(values[name][i], value, 1e-4, 1e-5, err_msg=name)
        np.testing.assert_allclose(traces[i], np.trace(now.matrix[i]), rtol=1e-5)
        np.testing.assert_allclose(centered[i], np.trace(now.centered[i]), rtol=1e-5)


def test_velocity_has_no_value_without_a_previous_snapshot(snapshots):
    metrics = {"kernel_velocity": DEFAULT["kernel_velocity"], "cka": cka}
    values, _ = jax.jit(lambda grams: evaluate(metrics, grams, grams, grams, jnp.nan))(snapshots[0])
    assert np.isnan(values["kernel_velocity"]).all()
    np.testing.assert_allclose(values["cka"][:3], 1, rtol=1e-5)


def test_products_of_features_of_every_size():
    """Each product is that of float64, and its exponent is 0 unless the product leaves the range of float32."""
    y, found = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32), jax.jit(product_from_first)
    for power in range(-116, 121, 8):
        product = found(np.ldexp(y, power))
        phi = np.ldexp(np.float64(y), power) / np.sqrt(7)
        phi[1:] -= phi[:1]
        np.testing.assert_allclose(np.ldexp(np.float64(product.matrix), 2 * int(product.exponent)), phi @ phi.T, 1e-4)
        assert bool(product.exponent) == (abs(power) > 32)


def test_products_of_what_has_no_size():
    found = jax.jit(product_from_first)
    for value in (0, np.nan, np.inf):
        product = found(np.full((4, 3), value, np.float32))
        assert product.exponent == 0
        np.testing.assert_array_equal(np.asarray(product.matrix)[0, 0], value)
