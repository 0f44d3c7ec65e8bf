"""Equinox, Keras and plain functions: what the conformance table cannot say."""

from functools import cache

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import jax_normal
from helpers.parameters import drawn, drawn_equinox

import nngp_plugins as nngp

keras = pytest.importorskip("keras")
X = jax_normal(0, 4, 3)


class Stateful(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear = eqx.nn.Linear(3, 5, key=key)
        self.norm, self.dropout = eqx.nn.BatchNorm(5, "batch", mode="batch"), eqx.nn.Dropout(0.5)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.linear(x), state)
        return self.dropout(x, key=key), state


class NeedsKey(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear, self.dropout = eqx.nn.Linear(3, 5, key=key), eqx.nn.Dropout(0.5)

    def __call__(self, x, key):
        return self.dropout(self.linear(x), key=key)

    def decode(self, x, *, key, scale=1.0):
        return scale * x + jax.random.normal(key, x.shape)


@cache
def stateful():
    """The model and its state."""
    return eqx.filter_jit(eqx.nn.make_with_state(Stateful))(jax.random.key(0))


def network():
    parts = keras.layers.Dense(5, name="hidden"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)
    return keras.Sequential([keras.Input((3,)), *parts])


class TestEquinox:
    def test_values_are_those_of_vmap(self):
        model, state = stateful()
        model = eqx.nn.inference_mode(model)
        f = nngp.as_model_fn(model)

        @eqx.filter_jit
        def run(model, state):
            own, _ = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(X, state)
            found = f(model, X, state=state), f((model, state), X)
            return own, found, jax.vmap(model.linear)(X), f.layers("linear")(model, X, state=state)["linear"]

        expected, found, hidden, layer = run(model, state)
        for y in found:
            np.testing.assert_allclose(y, expected, atol=1e-6)
        np.testing.assert_allclose(layer, hidden, atol=1e-6)
        kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), 3)
        expected = np.asarray(expected, np.float64)
        np.testing.assert_allclose(kernel_fn(X, None, model, state=state), expected @ expected.T / 5, atol=1e-5)

    def test_each_example_has_noise_of_its_own(self):
        f = nngp.from_equinox(eqx.nn.Dropout(0.5))
        y = f(None, jnp.ones((4, 50)), rng=jax.random.key(0))
        assert len({tuple(row) for row in np.asarray(y)}) == 4

    def test_a_module_that_has_methods_but_no_call(self):
        class Coder(eqx.Module):
            inner: eqx.nn.Linear

            def encode(self, x):
                return jnp.tanh(self.inner(x))

        class Model(eqx.Module):
            coder: Coder

            def __call__(self, x):
                return 2 * self.coder.encode(x)

        model = Model(Coder(drawn_equinox(eqx.nn.Linear, 3, 4, key=jax.random.key(0))))
        layers = nngp.from_equinox(model).layers()(model, X)
        assert list(layers) == ["coder/inner", "coder.encode", "output"]
        np.testing.assert_allclose(layers["coder.encode"], jnp.tanh(layers["coder/inner"]), atol=1e-6)

    def test_errors(self):
        model, state = stateful()
        f = nngp.from_equinox(model)
        with pytest.raises(ValueError, match=r"^state=None, but this model has a state; pass the eqx\.nn\.State"):
            f(model, X)
        with pytest.raises(ValueError, match=r"^rng=None, but this Equinox model draws random numbers; pass rng="):
            f(model, X, state=state)
        with pytest.raises(ValueError, match=r"from a factory: from_equinox\(lambda key: Model\(key=key\)\)"):
            f.init(jax.random.key(0), X)
        with pytest.raises(AttributeError, match=r"^Linear has no method 'encode'; choose one with method="):
            nngp.from_equinox(model.linear, method="encode")
        with pytest.raises(TypeError, match=r"^from_equinox takes an eqx\.Module or a function key -> eqx\.Module"):
            nngp.from_equinox(3)
        with pytest.raises(TypeError, match=r"^the factory given to from_equinox returned int"):
            nngp.from_equinox(lambda key: 3)

    @pytest.mark.parametrize("method", ["__call__", "decode"])
    def test_a_required_key(self, method):
        model = drawn_equinox(NeedsKey, jax.random.key(0))
        f = nngp.from_equinox(model, method=method)
        keys = jax.random.split(jax.random.key(1), 4)
        expected = jax.vmap(lambda x, key: getattr(model, method)(x, key=key))(X, keys)
        np.testing.assert_allclose(f(model, X, rng=jax.random.key(1)), expected, atol=1e-6)
        for call in (f, f.layers(), jax.jit(f)):
            with pytest.raises(ValueError, match=r"^rng=None, but this Equinox model requires a key; pass rng=jax\.ra"):
                call(f.split(model)[0], X)

    def test_a_required_key_that_is_given(self):
        model = eqx.nn.inference_mode(drawn_equinox(NeedsKey, jax.random.key(0)))
        hidden = jax.vmap(model.linear)(X)
        np.testing.assert_allclose(nngp.from_equinox(model, key=None)(model, X), hidden, atol=1e-6)
        np.testing.assert_allclose(nngp.from_equinox(model)(model, X, key=None), hidden, atol=1e-6)
        keys = jax.random.split(jax.random.key(1), 4)
        for spread, inputs in (("args", (X, keys)), ("kwargs", {"x": X, "key": keys})):
            f = nngp.from_equinox(model, spread=spread)
            np.testing.assert_allclose(f(model, inputs), hidden, atol=1e-6)
        with pytest.raises(ValueError, match=r"^NeedsKey does not run on x of .*'depth'"):
            nngp.from_equinox(model)(model, X, depth=3)


class TestKeras:
    def test_values_are_those_of_the_model(self):
        model = network()
        model.layers[1].moving_mean.assign(np.arange(5.0))
        f = nngp.as_model_fn(model)
        expected = np.asarray(model(X), np.float64)
        np.testing.assert_allclose(f(model, X), expected, atol=1e-6)
        layers = f.layers()(model, X)
        # dropout returns what it is given
        assert list(layers) == ["hidden", model.layers[1].name]
        np.testing.assert_allclose(layers["hidden"], model.layers[0](X), atol=1e-6)
        assert type(model.layers[0]) is keras.layers.Dense
        kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), 3)
        np.testing.assert_allclose(kernel_fn(X, None, model), expected @ expected.T / 5, rtol=1e-4)

    def test_errors(self):
        model = network()
        f = nngp.from_keras(model)
        params, state = f.split(model)
        with pytest.raises(ValueError, match=r"^state=None, but this model has variables that are not trained \(seq.*"):
            f(params, X)
        with pytest.raises(ValueError, match=r"^rng=None, but this Keras model draws random numbers in training mode"):
            f(params, X, state=state, training=True)
        with pytest.raises(ValueError, match=r"^Keras draws the parameters when it builds a model"):
            f.init(jax.random.key(0), X)
        with pytest.raises(ValueError, match=r"is not built; call it once, or model\.build\(input_shape\)"):
            nngp.from_keras(keras.layers.Dense(5))
        with pytest.raises(TypeError, match=r"^from_keras takes a keras\.Model or keras\.Layer, got 3"):
            nngp.from_keras(3)

    def test_seeds_that_are_not_drawn_from_need_no_rng(self):
        model = network()
        f = nngp.from_keras(model)
        params, state = f.split(model)
        np.testing.assert_array_equal(f(params, X, state=[np.asarray(leaf) for leaf in state]), f(model, X))


class TestFunctions:
    def test_state_and_rng_reach_those_that_take_them(self):
        f = nngp.from_callable(lambda params, x, *, state: params * x + state)
        np.testing.assert_array_equal(f(2.0, X, state=1.0), 2 * X + 1)
        with pytest.raises(ValueError, match=r"^rng= was given, but this function takes no rng"):
            f(2.0, X, state=1.0, rng=jax.random.key(0))
        with pytest.raises(ValueError, match=r"^init=None, so f\.init cannot make parameters"):
            f.init(jax.random.key(0), X)
        with pytest.raises(TypeError, match=r"^from_callable\(apply=3\) takes a function"):
            nngp.from_callable(3)


class TestLayers:
    f = nngp.from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(6), nn.Dense(2)]))

    @pytest.fixture
    def params(self):
        return drawn(self.f, X)

    def test_patterns_that_leave_out(self, params):
        assert list(self.f.layers("!layers_2").layer_shapes(params, X)) == ["layers_0", "layers_3"]
        assert list(self.f.layers("layers_*", "!*_0", "!none").layer_shapes(params, X)) == ["layers_2", "layers_3"]
        with pytest.raises(ValueError, match=r"^layers\('layers_0', '!\*'\) leaves no layer of 'layers_0', 'layers_2'"):
            self.f.layers("layers_0", "!*").layer_shapes(params, X)

    def test_the_batch_is_that_of_the_inputs(self):
        class Mean(nn.Module):
            @nn.compact
            def __call__(self, x):
                h = nn.Dense(7, name="hidden")(x)
                return {"aux": h.mean(axis=0), "logits": nn.Dense(2, name="head")(h)}

        f = nngp.from_linen(Mean())
        params = drawn(f, X)
        assert list(f.layers().layer_shapes(params, X)) == ["hidden", "head"]
        with pytest.raises(
            ValueError, match=r"'output:aux', which is no layer: it has no row for each example: its shape is \(7,\)"
        ):
            f.layers("output:aux")(params, X)

    def test_the_summary(self, params):
        summary = self.f.summary(params, X)
        assert summary.flops == {"layers_0": 4 * 4 * 8 * 2, "layers_2": 4 * 4 * 6 * 2, "layers_3": 4 * 4 * 2 * 2}
        assert summary.output_bytes == {"layers_0": 128, "layers_2": 96, "layers_3": 32}
        lines = str(summary).splitlines()
        assert [part.strip() for part in lines[3].strip("│").split("│")] == [
            "layers_0",
            "(4, 8)",
            "float32",
            "128 B",
            "256 FLOP",
        ]


def test_what_is_no_array_among_the_parameters():
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x), 2)
    with pytest.raises(TypeError, match=r"^params\['model'\] is object, not an array; convert the model, such as"):
        kernel_fn(X, None, {"model": object()})
