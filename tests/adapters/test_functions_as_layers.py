"""``f.layers(functions=True)``: activation functions as layers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

W, X = normal(0, 3, 3), normal(1, 4, 3)
WS = normal(2, 2, 3, 3)
FUNCTIONS = [jax.nn.relu, jnp.tanh, jax.nn.silu, jax.nn.elu, jax.nn.leaky_relu, jax.nn.softplus, jax.nn.log_softmax]


class TestFunctions:
    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_behind_the_layer_that_they_follow(self, function):
        def apply(params, x):
            def step(h, w):
                return function(nngp.tag("d", h @ w)), None

            h = jax.lax.scan(jax.checkpoint(step), x, params)[0]
            return jax.vmap(lambda row: function(nngp.tag("head", row @ params[0])))(h) + 1

        f, name = nngp.from_callable(apply), function.__name__
        layers = jax.jit(f.layers(functions=True))(WS, X)
        before = [f"d/0/{name}", f"d/1/{name}"]
        assert list(layers) == ["d/0", before[0], "d/1", before[1], "head", f"head/{name}", "output"]
        for layer in ("d/0", "d/1", "head"):
            np.testing.assert_allclose(layers[f"{layer}/{name}"], function(layers[layer]), rtol=1e-5, atol=1e-6)
        assert list(f.layers().layer_shapes(WS, X)) == ["d/0", "d/1", "head", "output"]
        chosen = f.layers(f"*/{name}", functions=True).layer_shapes(WS, X)
        assert list(chosen) == [*before, f"head/{name}"]

    @pytest.mark.parametrize("function", [jax.nn.gelu, jax.nn.softmax])
    def test_functions_of_which_no_name_is_left(self, function):
        """JAX puts these into the jaxpr as their formulas; a tag makes them layers."""

        def apply(w, x, tag=lambda name, y: y):
            return tag("function", function(nngp.tag("d", x @ w))) @ w

        assert list(nngp.from_callable(apply).layers(functions=True).layer_shapes(W, X)) == ["d", "output"]
        tagged = nngp.from_callable(partial(apply, tag=nngp.tag)).layers()(W, X)
        np.testing.assert_allclose(tagged["function"], function(tagged["d"]), rtol=1e-5)

    def test_functions_inside_functions_and_of_no_layer(self):
        def apply(w, x):
            h = nngp.tag("d", jnp.tanh(x) @ w)
            return jax.nn.silu(h) + jax.nn.relu(2 * h)

        assert list(nngp.from_callable(apply).layers(functions=True).layer_shapes(W, X)) == ["d", "d/silu", "output"]

    def test_in_a_model(self):
        model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(3), jnp.tanh])
        f = nngp.from_linen(model).layers(functions=True)
        summary = f.summary(jax.eval_shape(f.init, jax.random.key(0), X)[0], X)
        assert list(summary.shapes) == ["layers_0", "layers_0/relu", "layers_2", "layers_2/tanh"]
        assert summary.others == {"layers_2/tanh": ("output",)}
