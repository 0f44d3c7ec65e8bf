"""From a model to Grams."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.strict_modes import in_every_mode, setting

import nngp_plugins as nngp
from nngp_plugins.metrics import DenseGram, FeatureGram

X = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
F = nngp.from_haiku(hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([40, 5])(x))))
PARAMS, _ = jax.jit(F.init)(jax.random.key(0), X)


def outputs():
    """The layers of the model in float64 NumPy."""
    first, second = ({name: np.asarray(w, np.float64) for name, w in layer.items()} for layer in PARAMS.values())
    hidden = X @ first["w"] + first["b"]
    return hidden, np.maximum(hidden, 0) @ second["w"] + second["b"]


@jax.jit
def kernels(grams):
    return [(gram.dense(), gram.center().dense()) for gram in grams]


@pytest.mark.parametrize("batch_size", [0, 10])
def test_layers_of_a_model(batch_size):
    grams = nngp.gram(F.layers("*linear*"), X, PARAMS, batch_size=batch_size)
    assert [type(gram) for gram in grams.values()] == [DenseGram, FeatureGram]  # 40 and 5 features of 20 examples
    for (kernel, centred), y in zip(kernels([*grams.values()]), outputs(), strict=True):
        np.testing.assert_allclose(kernel, y @ y.T / y.shape[1], rtol=1e-4, atol=1e-5)
        y -= y.mean(axis=0)
        np.testing.assert_allclose(centred, y @ y.T / y.shape[1], rtol=1e-4, atol=1e-5)


def test_a_single_output_kept_on_the_host():
    """The last batch is smaller."""
    gram = nngp.gram(F, X, PARAMS, batch_size=12, store_on_device=False)
    _, y = outputs()
    np.testing.assert_allclose(np.asarray(gram), y @ y.T / 5, rtol=1e-4, atol=1e-5)


def test_all_axes_but_the_batch_are_features():
    gram = nngp.gram(lambda params, x: x.reshape(20, 3, 2) * params, X, 2.0)
    np.testing.assert_allclose(gram.dense(), 4 * X.astype(np.float64) @ X.T / 6, rtol=1e-5, atol=1e-5)


def test_every_example_goes_through_once():
    rows = []

    def f(params, x):
        jax.debug.callback(lambda x: rows.append(len(x)), x)
        return x * params

    nngp.gram(f, X, 1.0, batch_size=10, check=False)
    jax.effects_barrier()
    assert sum(rows) == 20


def test_outputs_that_depend_on_the_others_are_refused():
    with pytest.raises(ValueError, match=r"of f depends on the other examples in the batch"):
        nngp.gram(lambda params, x: x - x.mean(axis=0), X, None, batch_size=10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named_once(bad):
    def f(params, x):
        return {"good": x, "bad": x.at[3].set(bad), "worse": x.at[:, 0].set(bad)}

    told = r"NaN or infinity in bad \(examples 3\); worse \(examples 0, 1, 2, \.\.\.\): metrics of it are nan"
    with pytest.warns(RuntimeWarning, match=told) as warned:
        grams = nngp.gram(f, jnp.asarray(X), None)
    assert len(warned) == 1
    assert np.isfinite(nngp.metrics.scale(grams["good"]))
    assert not np.isfinite(nngp.metrics.scale(grams["bad"]))


def test_large_numbers_are_finite():
    nngp.gram(lambda params, x: x * 1e37, X, None)  # their sum is not


def test_not_inside_jit():
    with pytest.raises(TypeError, match="called inside jit"):
        jax.jit(lambda x: nngp.gram(F, x, PARAMS).trace())(X)


def test_complex_outputs_are_refused():
    with pytest.raises(TypeError, match="metrics are defined for real features, got complex64"):
        nngp.gram(lambda params, x: x * 1j, X, None)


@in_every_mode
def test_in_the_strict_modes_of_jax(mode):
    x, w = jax.device_put((X, np.full((1, 6), 0.5, np.float32)))
    with setting(**mode):
        gram = nngp.gram(lambda w, x: jnp.tanh(x * w), x, w, batch_size=10)
    y = np.tanh(0.5 * X.astype(np.float64))
    np.testing.assert_allclose(np.asarray(gram), y @ y.T / 6, rtol=1e-5, atol=1e-6)


def test_two_outputs_of_one_name():
    with pytest.raises(ValueError, match="two outputs of f are called 'a/b'; give each a name of its own"):
        nngp.gram(lambda w, x: {"a/b": x, "a": {"b": 5 * x}}, X, None)
