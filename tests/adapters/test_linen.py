"""Flax Linen: variables, random streams and call forms, against `module.apply`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.parameters import drawn

import nngp_plugins as nngp

equal = np.testing.assert_array_equal


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(2)(x)


@pytest.fixture(scope="module")
def variables(x):
    # running statistics that matter, unlike the fresh zeros and ones
    stats = {"mean": np.linspace(-1, 1, 8), "var": np.linspace(1, 3, 8)}
    stats = {name: jnp.asarray(values, jnp.float32) for name, values in stats.items()}
    return {"params": drawn(nngp.from_linen(Net()), x), "batch_stats": {"BatchNorm_0": stats}}


@pytest.fixture
def split(variables):
    return variables["params"], {"batch_stats": variables["batch_stats"]}


class TestVariables:
    def test_state(self, variables, split, x):
        params, state = split
        equal(nngp.from_linen(Net())(params, x, state=state), Net().apply(variables, x))

    def test_full_variables_dict_as_params(self, variables, x):
        f = nngp.from_linen(Net())
        equal(f(variables, x), Net().apply(variables, x))
        equal(f.layers("Dense_0")(variables, x)["Dense_0"], f.layers()(variables, x)["Dense_0"])

    def test_state_given_beside_full_variables_wins(self, variables, x):
        other = {"batch_stats": jax.tree.map(lambda s: s + 1, variables["batch_stats"])}
        equal(nngp.from_linen(Net())(variables, x, state=other), Net().apply({**variables, **other}, x))

    def test_full_variables_dict_as_state_does_not_replace_params(self, variables, split, x):
        params = jax.tree.map(lambda w: w + 1, variables["params"])
        f = nngp.from_linen(Net())
        equal(f(params, x, state=variables), f(params, x, state=split[1]))

    def test_split(self, variables, split):
        jax.tree.map(equal, nngp.from_linen(Net()).split({**variables, "intermediates": {"h": 1}}), split)

    def test_missing_state(self, split, x):
        told = r"state=None, but Net has variables outside 'params'; pass them as state=, such as state=\{'batch_stats'"
        with pytest.raises(ValueError, match=told):
            nngp.from_linen(Net())(split[0], x)

    def test_train_mode_gives_outputs_only(self, variables, split, x):
        params, state = split
        f = nngp.from_linen(Net(), mutable=["batch_stats"], train=True)
        streams = {"dropout": jax.random.fold_in(jax.random.key(1), 0)}
        own, updates = Net().apply(variables, x, train=True, mutable=["batch_stats"], rngs=streams)
        equal(f(params, x, state=state, rng=jax.random.key(1)), own)
        equal(f.layers("Dense_1")(params, x, state=state, rng=jax.random.key(1))["Dense_1"], own)
        # the update that was dropped is a real one
        assert not np.allclose(updates["batch_stats"]["BatchNorm_0"]["mean"], jnp.linspace(-1, 1, 8))

    def test_init_is_flax_own(self, x):
        params, state = nngp.from_linen(Net()).init(jax.random.key(3), x, train=True)
        own = Net().init({"params": jax.random.key(3), "dropout": jax.random.key(4)}, x, train=True)
        jax.tree.map(equal, params, own["params"])
        jax.tree.map(equal, state, {"batch_stats": own["batch_stats"]})

    def test_init_of_a_model_without_state(self, x):
        params, state = nngp.from_linen(nn.Dense(2)).init(jax.random.key(3), x)
        assert state == {}
        jax.tree.map(equal, params, nn.Dense(2).init(jax.random.key(3), x)["params"])


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + jax.random.normal(self.make_rng("noise"), x.shape), nn.Dropout(0.5, deterministic=False)(x)


class TestRng:
    @pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
    def test_one_folded_key_for_each_name(self, make_key, x):
        f = nngp.from_linen(Noisy(), rngs=("dropout", "noise"))
        streams = {name: jax.random.fold_in(make_key(5), i) for i, name in enumerate(("dropout", "noise"))}
        jax.tree.map(equal, f({}, x, rng=make_key(5)), Noisy().apply({}, x, rngs=streams))

    def test_typed_and_old_keys_agree(self, x):
        f = nngp.from_linen(Noisy(), rngs=("dropout", "noise"))
        jax.tree.map(equal, f({}, x, rng=jax.random.key(5)), f({}, x, rng=jax.random.PRNGKey(5)))

    def test_reproducible_and_differs_with_the_key(self, x):
        f = nngp.from_linen(Noisy(), rngs=("dropout", "noise"))
        first, again, other = (f({}, x, rng=jax.random.key(i))[0] for i in (0, 0, 1))
        equal(first, again)
        assert not np.any(first == other)

    def test_missing_rng(self, split, x):
        f = nngp.from_linen(Net(), mutable=["batch_stats"])
        told = r"rng=None, but Net draws random numbers; pass rng=jax\.random\.key\(0\), or call it in its determ"
        with pytest.raises(ValueError, match=told):
            f(split[0], x, state=split[1], train=True)

    def test_a_stream_of_another_name(self, x):
        with pytest.raises(ValueError, match=r"^rngs=\('dropout',\), but Noisy draws from a stream of another name"):
            nngp.from_linen(Noisy())({}, x, rng=jax.random.key(0))


class Pair(nn.Module):
    def setup(self):
        self.left = nn.Dense(3)
        self.right = nn.Dense(3)

    def __call__(self, u, v):
        return self.left(u) + self.right(v)

    def encode(self, u):
        return self.left(u)


class TestCallForms:
    @pytest.mark.parametrize(("spread", "pack"), [("args", tuple), ("kwargs", dict), ("args", list)])
    def test_spread(self, spread, pack, x):
        f = nngp.from_linen(Pair(), spread=spread)
        inputs = pack({"u": x, "v": 2 * x}.items()) if pack is dict else pack((x, 2 * x))
        params = drawn(f, inputs)
        equal(f(params, inputs), Pair().apply({"params": params}, x, 2 * x))
        assert list(f.layers().layer_shapes(params, inputs)) == ["left", "right", "output"]

    @pytest.mark.parametrize("method", ["encode", Pair.encode])
    def test_method(self, method, x):
        f = nngp.from_linen(Pair(), method=method)
        params = drawn(f, x)
        assert set(params) == {"left"}
        equal(f(params, x), Pair().apply({"params": params}, x, method=method))
        assert list(f.layers().layer_shapes(params, x)) == ["left"]

    def test_pytree_input(self, x):
        class Model(nn.Module):
            @nn.compact
            def __call__(self, inputs):
                return nn.Dense(2)(inputs["u"] * inputs["v"])

        f = nngp.from_linen(Model())
        params = drawn(f, {"u": x, "v": x})
        equal(f(params, {"u": x, "v": 2 * x}), Model().apply({"params": params}, {"u": x, "v": 2 * x}))

    def test_rnn(self, x):
        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(2)(nn.RNN(nn.LSTMCell(4))(x)[:, -1])

        sequences = np.stack([x, 2 * x, 3 * x], axis=1)
        f = nngp.from_linen(Model())
        params = drawn(f, sequences)

        @jax.jit
        def run(params, x):
            return f.layers()(params, x), Model().apply({"params": params}, x)

        layers, own = run(params, sequences)
        gates = [f"LSTMCell_0/{a}{b}" for b in "ifgo" for a in "ih"]
        assert sorted(layers) == sorted([*gates, "LSTMCell_0:0:0", "RNN_0", "Dense_0"])
        assert {y.shape for name, y in layers.items() if name != "Dense_0"} == {(4, 3, 4)}
        np.testing.assert_allclose(layers["Dense_0"], own, rtol=1e-5)

    def test_attention(self, x):
        module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
        sequences = np.stack([x, 2 * x, 3 * x], axis=1)
        f = nngp.from_linen(module)
        params = drawn(f, sequences)
        equal(jax.jit(f)(params, sequences), jax.jit(module.apply)({"params": params}, sequences))
        assert list(f.layers().layer_shapes(params, sequences)) == ["query", "key", "value", "out"]

    def test_a_parameter_that_is_a_function_of_another_module(self, x):
        class Tied(nn.Module):
            inner: nn.Module
            activation: Callable = nn.tanh

            def __call__(self, x):
                return self.activation(self.inner(x) @ self.inner.variables["params"]["kernel"].T)

        f = nngp.from_linen(Tied(nn.Dense(4, use_bias=False)))
        params = drawn(f, x)
        kernel = np.asarray(params["inner"]["kernel"], np.float64)
        np.testing.assert_allclose(jax.jit(f)(params, x), np.tanh(x @ kernel @ kernel.T), rtol=1e-5)


def test_an_apply_and_an_init_that_the_user_overwrote(x):
    """As training scripts do, so that the module itself need not be passed around."""
    module, own = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    module.apply, module.init = jax.jit(module.apply), jax.jit(module.init)
    f = nngp.from_linen(module, method="__call__")
    params, _ = jax.jit(f.init)(jax.random.key(0), x)
    jax.tree.map(equal, params, own.init(jax.random.key(0), x)["params"])
    np.testing.assert_allclose(f(params, x), own.apply({"params": params}, x), rtol=1e-6)
    assert list(f.layers()(params, x)) == ["layers_0", "layers_2"]


def test_train_mode_without_mutable_says_what_to_name(split, x):
    f = nngp.from_linen(Net())
    with pytest.raises(ValueError, match=r"Net writes to its variables.*mutable=\['batch_stats'\]"):
        f(split[0], x, state=split[1], rng=jax.random.key(0), train=True)


def test_a_state_without_its_collection_says_what_it_holds(split, x):
    stats = split[1]["batch_stats"]
    held = ", ".join(map(repr, stats))
    with pytest.raises(ValueError, match=f"state holds {held}, but Net has variables outside 'params'"):
        nngp.from_linen(Net())(split[0], x, state=stats)
