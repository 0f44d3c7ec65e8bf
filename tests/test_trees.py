"""What users pass beyond arrays in dicts: all that takes a function takes it, or refuses it in the same words."""

import re
from collections import UserDict
from collections.abc import Mapping
from types import MappingProxyType

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.arrays import normal
from helpers.parameters import drawn, drawn_equinox

import nngp_plugins as nngp

X, W = normal(0, 6, 3), normal(1, 3, 2)


def kernel(f, x, params, path, **kwargs):
    return jnp.trace(nngp.empirical_nngp_fn(f)(x, None, params, **kwargs)) / 6


def in_batches(f, x, params, path, **kwargs):
    return jnp.trace(nngp.batch(nngp.empirical_nngp_fn(f), 2)(x, None, params, **kwargs)) / 6


def gram(f, x, params, path, **kwargs):
    return nngp.metrics.scale(nngp.gram(f, x, params, batch_size=2, **kwargs))


def stored(f, x, params, path, **kwargs):
    kernel_fn = nngp.empirical_nngp_fn(f)
    for _ in range(2):  # The second call goes on with the store.
        store = nngp.write_kernel(kernel_fn, x, None, params, path / "k", batch_size=2, progress=False, **kwargs)
    return np.trace(store[:]) / 6


def tracked(f, x, params, path, batch_size=None, **kwargs):
    metrics = {"scale": lambda gram, reference: nngp.metrics.scale(gram)}
    with nngp.KernelTracker(f, x, metrics=metrics, batch_size=batch_size, **kwargs) as tracker:
        tracker(0, params)
        tracker(1, params)
    return tracker.history.metric("scale")[-1, 0]


def tracked_in_batches(f, x, params, path, **kwargs):
    return tracked(f, x, params, path, batch_size=2, **kwargs)


WAYS = [kernel, in_batches, gram, stored, tracked, tracked_in_batches]
every_way = pytest.mark.parametrize("way", WAYS)


def scale(y):
    return float(np.square(np.asarray(y, float)).mean(1).mean())


class Net(eqx.Module):
    """It holds functions, a flag, a string, None, a dtype and a number among its leaves."""

    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout
    kind: str = "net"
    nothing: None = None
    dtype: type = jnp.float32
    factor: float = 2.0

    def __call__(self, x):
        assert self.kind == "net"
        return self.factor * self.dropout(self.mlp(x)).astype(self.dtype)


def net():
    mlp = drawn_equinox(eqx.nn.MLP, 3, 2, 8, 2, activation=jnp.tanh, key=jax.random.key(0))
    return Net(mlp, eqx.nn.Dropout(inference=True))


def of_net(model, x, rng=None):
    return jax.vmap(model)(x)


@every_way
@pytest.mark.parametrize("rng", [None, jax.random.key(0)], ids=["no rng", "rng"])
def test_an_equinox_model_as_params_of_a_plain_function(way, rng, tmp_path):
    model, kwargs = net(), {} if rng is None else {"rng": rng}
    np.testing.assert_allclose(way(of_net, X, model, tmp_path, **kwargs), scale(of_net(model, X)), rtol=1e-5)


def test_the_functions_of_a_model_count():
    """A model with another activation function is compiled again."""
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(of_net), 2)
    model = net()
    other = eqx.tree_at(lambda model: model.mlp.activation, model, jnp.sin)
    for each in (model, other, model):
        y = of_net(each, X)
        np.testing.assert_allclose(kernel_fn(X, None, each), y @ y.T / 2, rtol=1e-4, atol=1e-4)


def test_a_compiled_training_of_an_equinox_model():
    metrics = {"scale": lambda gram, reference: nngp.metrics.scale(gram)}
    tracker = nngp.KernelTracker(of_net, X, schedule=nngp.every(1), metrics=metrics)
    optimizer = optax.chain(optax.sgd(0.1), nngp.track_kernel(tracker))
    model = net()

    @eqx.filter_jit
    def step(model, opt_state):
        grads = eqx.filter_grad(lambda model: jnp.mean(of_net(model, X) ** 2))(model)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state

    opt_state, expected = optimizer.init(eqx.filter(model, eqx.is_inexact_array)), []
    for _ in range(2):
        expected.append(scale(of_net(model, X)))
        model, opt_state = step(model, opt_state)
    tracker.close()
    np.testing.assert_allclose(tracker.history.metric("scale")[:2, 0], expected, rtol=1e-5)


class Opaque:
    """An object that JAX cannot look into, such as a Keras model; it may change."""

    def __call__(self, x):
        return x


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("leaf", [Opaque(), np.array(["a"]), Opaque().__call__], ids=["object", "text", "method"])
def test_params_that_hold_something_else(way, leaf, tmp_path):
    """Only the plain kernel hands its parameters to the function as they are."""
    with pytest.raises(
        TypeError, match=r"^params\['more'\] is .*, not an array; convert .* nngp\.from_equinox\(model\)"
    ):
        way(lambda params, x: x @ params["w"], X, {"w": W, "more": leaf}, tmp_path)


class OwnMapping(Mapping):
    def __init__(self, values):
        self.values_by_name = values

    def __getitem__(self, name):
        return self.values_by_name[name]

    def __iter__(self):
        return iter(self.values_by_name)

    def __len__(self):
        return len(self.values_by_name)


def of_mapping(params, x, rng=None):
    return x["a"] @ params + x["more"]["b"]


MAPPINGS = [UserDict, MappingProxyType, OwnMapping]


@every_way
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_mappings_of_any_class_are_inputs(way, mapping, tmp_path):
    """The ``BatchEncoding`` of a tokenizer is a ``UserDict``."""
    b = normal(2, 6, 2)
    x = mapping({"a": X, "more": mapping({"b": b})})
    np.testing.assert_allclose(way(of_mapping, x, W, tmp_path), scale(X @ W + b), rtol=1e-5)


def test_a_mapping_for_each_side_and_under_a_key():
    x1, x2 = UserDict(a=X, more={"b": normal(2, 6, 2)}), UserDict(a=X[:4], more=UserDict(b=normal(3, 4, 2)))
    kernel_fn = nngp.empirical_nngp_fn(of_mapping)
    expected = of_mapping(W, x1) @ of_mapping(W, x2).T / 2
    for fn in (kernel_fn, nngp.batch(kernel_fn, 2)):
        np.testing.assert_allclose(fn(x1, x2, W), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(fn(x1, x2, W, rng=jax.random.key(0)), expected, rtol=1e-5, atol=1e-6)


class Two(nn.Module):
    @nn.compact
    def __call__(self, a, b):
        return nn.Dense(2, name="d")(a) + b


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_model_takes_them_as_well(mapping):
    f = nngp.from_linen(Two(), spread="kwargs")
    x = mapping({"a": X, "b": normal(2, 6, 2)})
    params = drawn(f, x)
    expected = X @ np.asarray(params["d"]["kernel"]) + np.asarray(params["d"]["bias"])
    np.testing.assert_allclose(f(params, x), expected + x["b"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(f.layers("d")(params, x)["d"], expected, rtol=1e-5, atol=1e-6)
    assert list(f.layer_shapes(params, x)) == ["d", "output"]


TEXT = {
    "strings": (np.array(["a"] * 6), "['t'] is an array of dtype <U1"),
    "bytes": (np.array([b"a"] * 6), "['t'] is an array of dtype |S1"),
    "objects": (np.array([None] * 6), "['t'] is an array of dtype object"),
    "dates": (np.zeros(6, "datetime64[s]"), "['t'] is an array of dtype datetime64[s]"),
    "list": (["a"] * 6, "['t'][0] is str"),
}


@every_way
@pytest.mark.parametrize("text", TEXT)
def test_inputs_that_hold_no_numbers(way, text, tmp_path):
    values, told = TEXT[text]
    name = {gram: "x", tracked: "probe_x", tracked_in_batches: "probe_x"}.get(way, "x1")
    told = f"^{re.escape(name + told)}, and JAX takes numbers alone; leave it out of the inputs, or pass numbers"
    with pytest.raises(TypeError, match=told):
        way(lambda params, x: x["a"] @ params, UserDict(a=X, t=values), W, tmp_path)
