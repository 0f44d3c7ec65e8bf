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
    features,
    gram_of,
    kernel_distance,
    of_targets,
    product_from_first,
    stacked_grams,
    with_eigenvalues,
)

N = 12
TARGETS = np.arange(N) % 3


def outputs(seed, offset=0.0):
    rng = np.random.default_rng(seed)
    shapes = {"conv": (N, 3, 3, 2), "hidden": (N, 20), "head": (N, 3)}
    return {name: jnp.asarray(rng.normal(size=shape) + offset, jnp.float32) for name, shape in shapes.items()}


def layer(grams, i):
    return jax.tree.map(lambda leaf: leaf[i], grams)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_stacked_grams_are_the_kernels_of_the_layers(offset):
    y = outputs(0, offset)
    grams = stacked_grams(y)
    for i, output in enumerate(y.values()):
        phi = np.asarray(output, np.float64).reshape(N, -1)
        phi /= np.sqrt(phi.shape[1])
        np.testing.assert_allclose(grams.matrix[i], phi @ phi.T, rtol=1e-5, atol=1e-5)
        phi -= phi.mean(axis=0)
        np.testing.assert_allclose(grams.centered[i], phi @ phi.T, rtol=1e-4, atol=1e-3 if offset else 1e-5)


def test_a_constant_layer_is_exactly_zero_when_centred():
    grams = stacked_grams({"constant": jnp.full((N, 5), 0.3)})
    assert not np.any(grams.centered)


@pytest.mark.parametrize(("shape", "form"), [((N, 3), FeatureGram), ((N, 4, 4), DenseGram), ((N, N), DenseGram)])
def test_gram_of_takes_the_cheaper_form(shape, form):
    y = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    gram = gram_of(y)
    assert type(gram) is form
    phi = np.asarray(features(y))
    np.testing.assert_allclose(np.asarray(gram), phi @ phi.T, rtol=1e-4, atol=1e-5)


def test_eigenvalues_ascend_and_are_nan_for_a_bad_layer():
    y = outputs(0) | {"bad": jnp.full((N, 2), jnp.inf)}
    grams = with_eigenvalues(stacked_grams(y))
    for i in range(3):
        np.testing.assert_allclose(grams.eigenvalues[i], np.linalg.eigvalsh(grams.matrix[i]), rtol=1e-4, atol=1e-5)
    assert np.isnan(grams.eigenvalues[3]).all()


def test_evaluate_is_every_metric_of_every_layer():
    now, first, before = (with_eigenvalues(stacked_grams(outputs(seed))) for seed in range(3))
    metrics = {**DEFAULT, **of_targets(TARGETS)}
    values, (traces, centered) = jax.jit(lambda *grams: evaluate(metrics, *grams, 4.0))(now, first, before)
    assert set(values) == set(metrics)
    of_one = jax.jit(lambda gram, reference: {name: metric(gram, reference) for name, metric in metrics.items()})
    for i in range(3):
        gram, reference = layer(now, i), layer(first, i)
        expected = of_one(gram, reference) | {"kernel_velocity": kernel_distance(gram, layer(before, i)) / 4}
        for name, value in expected.items():
            np.testing.assert_allclose(values[name][i], value, 1e-4, 1e-5, err_msg=name)
        np.testing.assert_allclose(traces[i], np.trace(now.matrix[i]), rtol=1e-5)
        np.testing.assert_allclose(centered[i], np.trace(now.centered[i]), rtol=1e-5)


def test_velocity_has_no_value_without_a_previous_snapshot():
    grams = with_eigenvalues(stacked_grams(outputs(0)))
    values, _ = evaluate({"kernel_velocity": DEFAULT["kernel_velocity"], "cka": cka}, grams, grams, grams, jnp.nan)
    assert np.isnan(values["kernel_velocity"]).all()
    np.testing.assert_allclose(values["cka"], 1, rtol=1e-5)


def test_products_of_features_of_every_size():
    """Each product is that of float64, and its exponent is 0 unless the product leaves the range of float32."""
    y, found = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32), jax.jit(product_from_first)
    for power in range(-116, 121, 8):
        product = found(np.ldexp(y, power))
        phi = np.ldexp(np.float64(y), power) / np.sqrt(7)
        phi[1:] -= phi[:1]
        np.testing.assert_allclose(np.ldexp(np.float64(product.matrix), 2 * int(product.exponent)), phi @ phi.T, 1e-4)
        assert bool(product.exponent) == (abs(power) > 32)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_products_of_what_has_no_size(value):
    product = product_from_first(jnp.full((4, 3), value, jnp.float32))
    assert product.exponent == 0
    np.testing.assert_array_equal(product.matrix[0, 0], value)
