"""A model stays as it is: outputs, gradients, classes, and what its own remat keeps for the backward pass."""

import threading
from collections import Counter
from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import normal
from helpers.jaxprs import equations, primitives
from jax.ad_checkpoint import checkpoint_name

import nngp_plugins as nngp

from .models.blocks import TWINS, sequences

keras = pytest.importorskip("keras")
X, WS = normal(0, 4, 3), normal(1, 3, 3, 3)


@pytest.fixture(scope="module", params=TWINS)
def twins(request):
    return TWINS[request.param]()


def loss(f, params, x):
    return jnp.sum(jnp.sin(f(params, x)))


def assert_gradients(actual, expected):
    """Relative to the largest entry of all: some, such as that of the bias of keys, are zero but for rounding."""
    a, b = ([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)] for tree in (actual, expected))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    a, b = np.concatenate(a), np.concatenate(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


class TestScannedModels:
    @pytest.mark.every(3)
    def test_outputs_are_bit_equal_and_gradients_agree(self, twins):
        x = sequences()

        def run(f):
            return jax.jit(lambda params: (f(params, x), jax.grad(partial(loss, f))(params, x)))(twins.params)

        own = run(twins.call)
        # Whether layers were taken before makes no difference.
        twins.layers.layer_shapes(twins.params, x)
        y, grad = run(twins.scanned)
        np.testing.assert_array_equal(y, own[0])
        assert_gradients(grad, own[1])

    def test_the_program_is_the_frameworks_own(self, twins):
        """No tag, and no operation more, before layers were taken and after."""
        x = sequences()
        own = jax.make_jaxpr(twins.call)(twins.params, x)
        for _ in range(2):
            ours = jax.make_jaxpr(twins.scanned)(twins.params, x)
            assert "nngp_tag" not in primitives(ours)
            counts = [Counter(eqn.primitive.name for eqn in equations(jaxpr)) for jaxpr in (ours, own)]
            # An adapter makes a key that XLA removes where nothing is drawn from it.
            assert counts[0] - counts[1] <= Counter(random_seed=1)
            assert counts[1] - counts[0] == Counter()
            assert jax.tree.structure(twins.layers.layer_shapes(twins.params, x))

    @pytest.mark.parametrize("twins", ["linen", pytest.param("equinox", marks=pytest.mark.exhaustive)], indirect=True)
    def test_gradients_of_a_kernel(self, twins):
        x = sequences()

        def total(kernel):
            return jnp.sum(jnp.sin(kernel))

        def of_own(params):
            y = twins.call(params, x)
            return total(y @ y.T / y.shape[1])

        kernel_fn = nngp.empirical_nngp_fn(twins.scanned.layers("head"), trace_axes=nngp.all_but_batch)
        ours, own = jax.jit(
            lambda params: (
                jax.grad(lambda params: total(kernel_fn(x, None, params)["head"]))(params),
                jax.grad(of_own)(params),
            )
        )(twins.params)
        assert_gradients(ours, own)

    @pytest.mark.parametrize("twins", ["linen"], indirect=True)
    def test_nothing_leaks(self, twins):
        """Kernels are made inside the scan; of the layers themselves, each model is checked in test_conformance.py."""
        kernel_fn = nngp.empirical_nngp_fn(twins.scanned.layers("*up"), trace_axes=nngp.all_but_batch)
        with jax.checking_leaks():
            jax.eval_shape(lambda params, x: kernel_fn(x, None, params), twins.params, sequences())


def block(h, w):
    return nngp.tag("block", jnp.tanh(h @ w)), None


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.everything_saveable])
def test_gradients_through_the_layers_of_a_scan_with_remat(policy):
    def apply(params, x):
        return jax.lax.scan(jax.checkpoint(block, policy=policy), x, params)[0]

    def by_hand(params, x):
        kernels = []
        for w in params:
            x = jnp.tanh(x @ w)
            kernels.append(x @ x.T / 3)
        return jnp.stack(kernels)

    f = nngp.from_callable(apply).layers()
    kernel_fn = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch)

    def stacked(params, x):
        return jnp.stack(list(kernel_fn(x, None, params).values()))

    def of_values(params, x):
        return jnp.stack([y @ y.T / 3 for y in f(params, x).values()])

    ours, of_layers, own = jax.jit(
        lambda params: [jax.grad(partial(loss, g))(params, X) for g in (stacked, of_values, by_hand)]
    )(WS)
    np.testing.assert_allclose(ours, own, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_layers, own, rtol=1e-4, atol=1e-6)


POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("kept"),
    "products": jax.checkpoint_policies.dots_saveable,
}


HIDDEN = (2, 4, 5)
"""Layers, examples and width of what is called "kept" below."""


class Checkpointed(nn.Module):
    """A block that names what its remat may keep."""

    @nn.compact
    def __call__(self, x, _):
        h = checkpoint_name(nn.Dense(5, name="up")(x), "kept")
        return x + nn.Dense(3, name="down")(jnp.sin(h)), None


class Policed(nn.Module):
    policy: str

    @nn.compact
    def __call__(self, x):
        remat = nn.remat(Checkpointed, policy=POLICIES[self.policy], prevent_cse=False)
        stack = nn.scan(remat, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return stack(name="blocks")(x, None)[0]


def residuals(f, params, x):
    """Shapes of what the forward pass keeps for the backward one."""
    _, pullback = jax.eval_shape(partial(jax.vjp, f), params, x)
    return sorted(leaf.shape for leaf in jax.tree.leaves(pullback))


class TestResiduals:
    def kept(self, policy):
        module = Policed(policy)
        f = nngp.from_linen(module)
        params = jax.eval_shape(f.init, jax.random.key(0), X)[0]
        own = residuals(lambda params, x: module.apply({"params": params}, x), params, X)
        return f, params, own

    @pytest.mark.parametrize("policy", POLICIES)
    def test_they_are_the_models_own(self, policy):
        f, params, own = self.kept(policy)
        assert residuals(f, params, X) == own
        f.layers().layer_shapes(params, X)
        assert residuals(f, params, X) == own
        # A run that takes a layer inside remat keeps the policy, too.
        taken = residuals(lambda params, x: f.layers("blocks/1/down")(params, x)["blocks/1/down"], params, X)
        assert taken.count(HIDDEN) == own.count(HIDDEN)

    def test_policies_differ(self):
        """The numbers above would notice a policy that is lost."""
        nothing, names, products = (self.kept(policy)[2] for policy in POLICIES)
        assert (nothing.count(HIDDEN), names.count(HIDDEN)) == (0, 1)
        assert products not in (nothing, names)


seen = []


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.d = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        seen.append((type(self), type(self.d)))
        return self.d(x)


class EquinoxNet(eqx.Module):
    d: eqx.nn.Linear

    def __init__(self, key):
        self.d = eqx.nn.Linear(3, 2, key=key)

    def __call__(self, x):
        seen.append((type(self), type(self.d)))
        return self.d(x)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        d = nn.Dense(2, name="d")
        seen.append((type(self), type(d)))
        return d(x)


class KerasNet(keras.Model):
    def __init__(self):
        super().__init__()
        self.d = keras.layers.Dense(2)

    def call(self, x):
        seen.append((type(self), type(self.d)))
        return self.d(x)


@pytest.mark.parametrize("net", [LinenNet, NNXNet, EquinoxNet, KerasNet])
def test_no_class_is_swapped(net):
    """Modules have their own classes inside a call, with layers and without, and so have the user's objects."""
    if net is KerasNet:
        model = KerasNet()
        model(X)
        f = nngp.from_keras(model)
        params = f.split(model)[0]
    else:
        makes = {NNXNet: nngp.from_nnx, EquinoxNet: nngp.from_equinox}
        f = nngp.from_linen(net()) if net is LinenNet else makes[net](net)
        params = jax.eval_shape(f.init, jax.random.key(0), X)[0]
    own = {LinenNet: nn.Dense, NNXNet: nnx.Linear, EquinoxNet: eqx.nn.Linear, KerasNet: keras.layers.Dense}[net]
    calls = vars(net)["call" if net is KerasNet else "__call__"], own.__call__
    for run in (partial(f), f.layers(), partial(f)):
        seen.clear()
        jax.eval_shape(run, params, X)
        assert set(seen) == {(net, own)}
        assert (vars(net)["call" if net is KerasNet else "__call__"], own.__call__) == calls
    if net is KerasNet:
        assert (type(model), type(model.d)) == (net, own)


class Registered(type(nnx.Module)):
    """A metaclass that demands a keyword."""

    def __new__(cls, name, bases, body, *, kind, **kwargs):
        return super().__new__(cls, name, bases, body, **kwargs)

    def __init__(cls, name, bases, body, *, kind, **kwargs):
        super().__init__(name, bases, body, **kwargs)
        registry.append((name, kind))


class RegisteredEquinox(type(eqx.Module)):
    def __new__(cls, name, bases, body, *, kind, **kwargs):
        registry.append((name, kind))
        return super().__new__(cls, name, bases, body, **kwargs)


registry = []


class NNXLayer(nnx.Module, metaclass=Registered, kind="base"):
    def __init_subclass__(cls, *, activation, **kwargs):
        super().__init_subclass__(**kwargs)
        registry.append(activation)

    def __init__(self, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 3)))


class NNXSine(NNXLayer, kind="sine", activation=jnp.sin):
    def __call__(self, x):
        return x @ self.w[...]


class NNXTanh(NNXLayer, kind="tanh", activation=jnp.tanh):
    def __call__(self, x):
        return x @ self.w[...]


class NNXTable(nnx.Module):
    """Looks activation functions up by the exact class of a layer."""

    def __init__(self, rngs):
        self.layers = nnx.List([NNXSine(rngs), NNXTanh(rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = {NNXSine: jnp.sin, NNXTanh: jnp.tanh}[type(layer)](layer(x))
        return x


class EquinoxLayer(eqx.Module, metaclass=RegisteredEquinox, kind="base"):
    w: jax.Array

    def __init_subclass__(cls, *, activation, **kwargs):
        super().__init_subclass__(**kwargs)
        registry.append(activation)


class EquinoxSine(EquinoxLayer, kind="sine", activation=jnp.sin):
    def __call__(self, x):
        return x @ self.w


class EquinoxTanh(EquinoxLayer, kind="tanh", activation=jnp.tanh):
    def __call__(self, x):
        return x @ self.w


class EquinoxTable(eqx.Module):
    layers: list

    def __call__(self, x):
        for layer in self.layers:
            x = {EquinoxSine: jnp.sin, EquinoxTanh: jnp.tanh}[type(layer)](layer(x))
        return x


def nnx_table():
    model = NNXTable(nnx.Rngs(0))
    return nngp.from_nnx(model), model, [layer.w[...] for layer in model.layers]


def equinox_table():
    model = EquinoxTable([EquinoxSine(WS[0]), EquinoxTanh(WS[1])])
    return nngp.from_equinox(model), model, WS[:2]


@pytest.mark.parametrize("make", [nnx_table, equinox_table])
def test_no_class_is_made(make):
    """A subclass would not be found in a table of classes, and whoever keeps a register of classes would see it."""
    f, model, (a, b) = make()
    before = list(registry)
    layers = f.layers()(model, X)
    assert registry == before
    hidden = np.sin(X @ a) @ b
    np.testing.assert_allclose(layers["layers/1"], hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layers["output"], np.tanh(hidden), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(f(model, X), np.tanh(hidden), rtol=1e-5, atol=1e-6)


class Overridden(nnx.Module):
    """Asks whether a layer has a method of its own, as libraries do that let users override one."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), Louder(3, 3, rngs=rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x) * (1 if type(layer).__call__ is nnx.Linear.__call__ else 10)
        return x


class Louder(nnx.Linear):
    def scaled(self, x):
        return 2 * self(x)


def test_an_inherited_method_is_that_of_the_base():
    model = Overridden(nnx.Rngs(0))
    np.testing.assert_array_equal(nngp.from_nnx(model).layers()(model, X)["layers/1"], model(X))


def test_other_threads_see_no_layers():
    """A training in another thread runs its own methods, without tags, while layers are found here."""
    model = NNXTable(nnx.Rngs(0))
    found = []

    class Meanwhile(nnx.Module):
        def __init__(self, rngs):
            self.inner = NNXTable(rngs)

        def __call__(self, x):
            def other():
                found.append(str(jax.make_jaxpr(lambda x: model(x))(X)))
                found.append(list(nngp.from_nnx(model).layers()(model, X)))

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return self.inner(x)

    whole = Meanwhile(nnx.Rngs(0))
    assert list(nngp.from_nnx(whole).layers()(whole, X)) == ["inner/layers/0", "inner/layers/1", "inner"]
    assert found[1::2] == [["layers/0", "layers/1", "output"]] * len(found[1::2])
    assert found
    assert "nngp_tag" not in found[0]
