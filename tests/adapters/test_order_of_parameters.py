"""Parameters and states in another order than the model's: put right by their paths, or refused with the first path."""

import re

import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from helpers.arrays import gram, normal
from helpers.parameters import drawn, drawn_nnx

import nngp_plugins as nngp

keras = pytest.importorskip("keras")
X, BLOCKS = normal(0, 6, 3), 12
"""With more than ten blocks, "10" comes before "2"."""


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(BLOCKS)])
        self.norms = nnx.List([nnx.BatchNorm(3, use_running_average=True, rngs=rngs) for _ in range(BLOCKS)])
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.scales = nnx.Param({"b": jnp.array(1.5), "a": (jnp.array(0.5),)})

    def __call__(self, x):
        scales = self.scales.get_value()
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = self.drop(scales["b"] * jnp.sin(norm(block(x))) + scales["a"][0])
        return x


@pytest.fixture(scope="module")
def model():
    model = drawn_nnx(lambda: NNX(nnx.Rngs(0)))
    for i, norm in enumerate(model.norms):
        norm.mean[...] = jnp.asarray(np.arange(3, dtype=np.float32) * i / 10)
    return model


def in_reverse(tree):
    return {name: in_reverse(tree[name]) for name in reversed(tree)} if isinstance(tree, dict) else tree


def with_strings(tree):
    """As a checkpoint gives it, whose keys are strings."""
    return {str(name): with_strings(tree[name]) for name in tree} if isinstance(tree, dict) else tree


def restored(tree, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", tree)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(tmp_path / "model")


FORMS = {
    "pure": lambda tree: tree,
    "reversed": in_reverse,
    "strings": with_strings,
    "state of strings": lambda tree: nnx.State(with_strings(tree)),
    "frozen": flax.core.freeze,
}


class TestNNX:
    @pytest.mark.parametrize("form", FORMS)
    def test_values_go_where_their_paths_say(self, model, form):
        f = nngp.from_nnx(model)
        params, state = f.split(model)
        other, other_state = (FORMS[form](nnx.to_pure_dict(part)) for part in (params, state))
        expected = model(X)
        np.testing.assert_array_equal(f(other, X, state=state), expected)
        np.testing.assert_array_equal(f(params, X, state=other_state), expected)
        np.testing.assert_array_equal(f(other, X, state=other_state), expected)
        layers = f.layers("blocks/*")(other, X, state=other_state)
        np.testing.assert_array_equal(layers["blocks/10"], f.layers("blocks/10")(params, X, state=state)["blocks/10"])

    def test_a_checkpoint_gives_the_same_kernels_everywhere(self, model, tmp_path):
        f = nngp.from_nnx(model)
        params, state = f.split(model)
        # Orbax takes no keys.
        without_keys = nnx.filter_state(state, nnx.BatchStat)
        given = restored({"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(without_keys)}, tmp_path)
        assert [*given["params"]["blocks"]] == sorted(map(str, range(BLOCKS)))
        in_batches = nngp.batch(nngp.empirical_nngp_fn(f), 3)(X, None, given["params"], state=given["state"])
        np.testing.assert_allclose(in_batches, gram(model(X)), rtol=1e-5, atol=1e-6)
        metrics = {"relative_change": nngp.metrics.relative_change}
        with nngp.KernelTracker(f, X, metrics=metrics) as tracker:
            tracker(0, params, state=state)
            tracker(1, given["params"], state=given["state"])
        np.testing.assert_allclose(tracker.history.metric("relative_change"), 0, atol=1e-5)

    def test_gradients_have_the_form_of_what_was_given(self, model):
        f = nngp.from_nnx(model)
        params, state = f.split(model)
        given = with_strings(nnx.to_pure_dict(params))
        grad = jax.grad(lambda params: f(params, X, state=state).sum())
        grads, expected = jax.jit(lambda *params: [grad(each) for each in params])(given, params)
        expected = expected["blocks"][10]["kernel"][...]
        np.testing.assert_allclose(grads["blocks"]["10"]["kernel"], expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (
                lambda p, s: p["blocks"].update(eleven=p["blocks"].pop("11")),
                "params .*: they lack 'blocks/11/bias', of",
            ),
            (
                lambda p, s: p["blocks"].update({"12": p["blocks"]["11"]}),
                "params .*: they hold 'blocks/12/bias', which",
            ),
            (
                lambda p, s: p["blocks"]["3"].update(bias=jnp.ones(4)),
                r"params .*: 'blocks/3/bias' should have shape \(3,",
            ),
            (lambda p, s: s["norms"].pop("2"), "the variables in state .*: they lack 'norms/2/mean', of shape"),
            (lambda p, s: s.update(more=jnp.ones(1)), "the variables in state .*: they hold 'more', which the model"),
            (
                lambda p, s: s["norms"]["2"].update(mean=jnp.ones(1)),
                r"in state .*: 'norms/2/mean' should have shape \(3,",
            ),
        ],
    )
    def test_other_paths_and_shapes(self, model, change, told):
        f = nngp.from_nnx(model)
        params, state = (with_strings(nnx.to_pure_dict(part)) for part in f.split(model))
        change(params, state)
        with pytest.raises(ValueError, match=told):
            f(params, X, state=state)

    def test_a_state_of_all_variables_does_not_replace_params(self, model):
        f = nngp.from_nnx(model)
        params, state = f.split(model)
        halved = jax.tree.map(lambda w: w / 2, params)
        expected = f(halved, X, state=state)
        np.testing.assert_array_equal(f(halved, X, state=nnx.state(model)), expected)
        np.testing.assert_array_equal(f(halved, X, state=nnx.to_pure_dict(nnx.state(model))), expected)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(BLOCKS):
            x = jnp.sin(nn.Dense(3)(x))
        return x


def haiku(x):
    return hk.nets.MLP([3] * BLOCKS, activation=jnp.sin)(x)


@pytest.mark.parametrize("f", [nngp.from_linen(Linen()), nngp.from_haiku(hk.transform(haiku))], ids=["linen", "haiku"])
@pytest.mark.parametrize("form", ["reversed", "frozen"])
def test_dicts_in_another_order(f, form):
    params = drawn(f, X)
    other = FORMS[form](params)
    np.testing.assert_array_equal(f(other, X), f(params, X))
    layers, expected = f.layers()(other, X), f.layers()(params, X)
    assert list(layers) == list(expected)
    for name, y in expected.items():
        np.testing.assert_array_equal(layers[name], y)


class First(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear
    scale: float = eqx.field(static=True)

    def __init__(self, key=None, scale=1.0):
        a, b = jax.random.split(jax.random.key(0))
        self.a, self.b, self.scale = eqx.nn.Linear(3, 3, key=a), eqx.nn.Linear(3, 3, key=b), scale

    def __call__(self, x):
        return self.scale * self.b(jnp.sin(self.a(x)))


class Around(eqx.Module):
    inner: First

    def __call__(self, x):
        return self.inner(x)


class TestEquinox:
    @pytest.mark.parametrize(
        ("own", "other", "told"),
        [
            (First(), First(scale=2.0), "this First: the model itself is of another class there, or has a field"),
            (
                Around(First()),
                Around(First(scale=2.0)),
                "this Around: 'inner' is of another class there, or has a field",
            ),
            (Around(First()), Around(First().a), "this Around: they lack 'inner/a/weight', of shape"),
            (
                eqx.nn.Sequential([First().a, eqx.nn.Lambda(jnp.tanh)]),
                eqx.nn.Sequential([eqx.nn.Lambda(jnp.tanh), First().a]),
                "this Sequential: they lack 'layers/0/weight', of shape",
            ),
        ],
    )
    def test_another_structure(self, own, other, told):
        with pytest.raises(ValueError, match=f"params do not belong to {told}"):
            nngp.from_equinox(own)(other, X)

    def test_a_tree_of_another_kind(self):
        leaves = jax.tree.leaves(eqx.filter(First(), eqx.is_array))
        with pytest.raises(ValueError, match=r"params belong to a list, not to this First\."):
            nngp.from_equinox(First())(leaves, X)


@pytest.fixture
def net():
    inner = [keras.layers.Dense(3, name="a"), keras.layers.BatchNormalization(name="norm"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((3,)), *inner], name="net")


class TestKeras:
    def test_variables_in_their_order(self, net):
        f = nngp.from_keras(net)
        params, state = f.split(net)
        y = f(list(net.trainable_variables), X, state=list(net.non_trainable_variables))
        np.testing.assert_array_equal(y, f(params, X, state=state))

    def test_variables_in_another_order(self, net):
        f = nngp.from_keras(net)
        params, state = f.split(net)
        other = sorted(net.trainable_variables, key=lambda v: v.path.replace("kernel", "z"))
        told = "params[0] is 'net/a/bias', which this model has at [1]; pass its variables in its own order"
        with pytest.raises(ValueError, match=re.escape(told)):
            f(other, X, state=state)
        with pytest.raises(ValueError, match=r"state\[0\] is 'net/norm/moving_variance', which .* at \[1\]"):
            f(params, X, state=net.non_trainable_variables[::-1])

    def test_a_dict(self, net):
        f = nngp.from_keras(net)
        params, state = f.split(net)
        with pytest.raises(TypeError, match="params is a dict; Keras takes a list of arrays in the order"):
            f({v.path: v.value for v in net.trainable_variables}, X, state=state)
        with pytest.raises(TypeError, match="state is a dict; Keras takes a list of arrays in the order"):
            f(params, X, state={v.path: v.value for v in net.non_trainable_variables})
