"""What every ModelFn promises, whatever the framework."""

import re
from functools import partial

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from helpers import arrays

import nngp_plugins as nngp

close = partial(arrays.close, rtol=1e-5, atol=1e-6)


def test_call_is_the_frameworks_own(case, x):
    np.testing.assert_array_equal(case.make()(case.params, x), case.own(case.params, x))


def test_call_is_the_formula(case, x):
    close(case.make()(case.params, x), case.by_hand(case.params, x)["a"])


def test_kwargs_at_the_adapter_and_over_them_at_the_call(case, x):
    f = case.make(shift=1.0)
    np.testing.assert_array_equal(f(case.params, x), case.own(case.params, x, shift=1.0))
    np.testing.assert_array_equal(f(case.params, x, shift=2.0), case.own(case.params, x, shift=2.0))


def test_equal_parts_make_equal_and_hashable_model_fns(case):
    f = case.make(shift=1.0)
    assert f == case.make(shift=1.0)
    assert hash(f) == hash(case.make(shift=1.0))
    assert f != case.make(shift=2.0)
    assert f != f.layers()
    assert f.layers("a") == case.make(shift=1.0).layers("a")
    assert f.layers("a") != f.layers("z")


def test_static_argument_of_jit_compiles_once(case, x):
    traces = []

    @partial(jax.jit, static_argnums=0)
    def run(f, params, x):
        traces.append(f)
        return f(params, x)

    close(run(case.make(), case.params, x), case.own(case.params, x))
    close(run(case.make(), case.params, 2 * x), case.own(case.params, 2 * x))
    assert len(traces) == 1
    run(case.make(shift=1.0), case.params, x)
    assert len(traces) == 2


def test_jit_compiles_once(case, x):
    f, traces = case.make().layers(), []

    @jax.jit
    def run(params, x):
        traces.append(1)
        return f(params, x)

    run(case.params, x)
    run(jax.tree.map(lambda w: 2 * w, case.params), 2 * x)
    assert len(traces) == 1


def test_grad(case, x):
    def gradients(params):
        return [jax.grad(lambda params, f=f: jnp.sum(f(params, x) ** 2))(params) for f in (case.make(), case.own)]

    jax.tree.map(close, *jax.jit(gradients)(case.params))


def test_vmap_over_parameters(case, x):
    stacked = jax.tree.map(lambda w: np.stack([w, 2 * w]), case.params)
    outputs = jax.jit(jax.vmap(case.make(), in_axes=(0, None)))(stacked, x)
    for i, factor in enumerate((1, 2)):
        close(outputs[i], case.own(jax.tree.map(lambda w, c=factor: c * w, case.params), x))


def test_vmap_over_inputs(case, x):
    outputs = jax.vmap(lambda row: case.make()(case.params, row[None])[0])(x)
    close(outputs, case.own(case.params, x))


def test_kernel(case, x):
    y = case.own(case.params, x)
    close(nngp.empirical_nngp_fn(case.make())(x, None, case.params), y @ y.T / 2)


def test_rngs_at_the_call(case, x):
    with pytest.raises(TypeError, match=r"rngs=\.\.\. is not an argument of a ModelFn; pass one key as rng="):
        case.make()(case.params, x, rngs={"dropout": jax.random.key(0)})


def test_unhashable_adapter_kwarg(case):
    with pytest.raises(TypeError, match=r"from_\w+\(\.\.\., shift=\.\.\.\) got an unhashable .*arrays go to the call"):
        case.make(shift=jnp.ones(2))


def test_bad_spread(case):
    with pytest.raises(ValueError, match=r"spread='star' must be None .*, 'args' .* or 'kwargs'"):
        case.make(spread="star")


def test_train_state_as_params(case, x):
    train_state = TrainState.create(apply_fn=None, params=case.params, tx=optax.sgd(0.1))
    for call in (case.make(), case.make().layers(), case.make().layer_shapes):
        with pytest.raises(TypeError, match=r"params is a TrainState; pass its \.params, .* as state="):
            call(train_state, x)


def test_split_of_something_else(case):
    with pytest.raises(TypeError, match="cannot split list into params and state"):
        case.make().split([1, 2])


class TestHash:
    def test_sequential_of_a_list(self, x):
        module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
        with pytest.raises(TypeError, match="unhashable"):
            hash(module)
        f = nngp.from_linen(module)
        assert f == nngp.from_linen(module)
        assert hash(f) == hash(nngp.from_linen(module))
        params, _ = jax.jit(f.init)(jax.random.key(0), x)
        close(jax.jit(f)(params, x), module.apply({"params": params}, x))
        assert f != nngp.from_linen(nn.Sequential([nn.Dense(3)]))

    def test_nnx_model_with_an_unhashable_attribute(self, x):
        class Model(nnx.Module):
            def __init__(self, rngs):
                self.config = {"widths": [3, 2]}
                self.head = nnx.Linear(3, 2, rngs=rngs)

            def __call__(self, x):
                return self.head(x)

        model = Model(nnx.Rngs(0))
        f = nngp.from_nnx(model)
        assert isinstance(hash(f), int)
        close(jax.jit(f)(f.split(model)[0], x), model(x))


class TestAsModelFn:
    def test_a_model_fn_is_returned_as_it_is(self, case):
        f = case.make(shift=1.0)
        assert nngp.as_model_fn(f) is f

    def test_linen(self):
        module = nn.Dense(2)
        assert nngp.as_model_fn(module, rngs=("noise",)) == nngp.from_linen(module, rngs=("noise",))

    def test_nnx(self):
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        assert nngp.as_model_fn(model) == nngp.from_nnx(model)

    @pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
    def test_haiku(self, transform):
        transformed = transform(lambda x: hk.Linear(2)(x))
        assert nngp.as_model_fn(transformed, spread="args") == nngp.from_haiku(transformed, spread="args")

    @pytest.mark.parametrize("transform", [hk.multi_transform, hk.multi_transform_with_state])
    def test_haiku_multi(self, transform):
        def build():
            linear = hk.Linear(2)
            return linear, {"head": linear}

        transformed = transform(build)
        assert nngp.as_model_fn(transformed, method="head") == nngp.from_haiku(transformed, method="head")

    @pytest.mark.parametrize(
        "other", [nn.Dense, lambda params, x: x, "linen/mlp", None], ids=["class", "function", "name", "none"]
    )
    def test_refuses_other_things(self, other):
        told = f"as_model_fn takes a Flax Linen module, .*, got {re.escape(repr(other)[:10])}"
        with pytest.raises(TypeError, match=told):
            nngp.as_model_fn(other)

    def test_an_object_around_a_module_and_its_parameters(self):
        with pytest.raises(TypeError, match=r"got a Pretrained, .* pass the module, as_model_fn\(model\.module\)"):
            nngp.as_model_fn(Pretrained())


class Pretrained:
    """Has the shape of a Flax model of Hugging Face, which may refuse to show its parameters."""

    module = nn.Dense(2)

    @property
    def params(self):
        raise ValueError("made without parameters")


@pytest.mark.parametrize(
    ("convert", "told"),
    [
        (nngp.from_linen, "from_linen takes a flax.linen.Module instance, got"),
        (nngp.from_nnx, "from_nnx takes an nnx.Module or a function rngs -> nnx.Module, got"),
        (nngp.from_haiku, "from_haiku takes what hk.transform"),
    ],
)
def test_wrong_types(convert, told):
    with pytest.raises(TypeError, match=told):
        convert({"params": 1})


def test_linen_class_in_place_of_an_instance():
    with pytest.raises(TypeError, match=r"from_linen takes a flax\.linen\.Module instance, got <class "):
        nngp.from_linen(nn.Dense)


def test_nnx_factory_of_something_else():
    with pytest.raises(TypeError, match=r"the factory given to from_nnx returned ShapeDtypeStruct, not an nnx\.Module"):
        nngp.from_nnx(lambda rngs: rngs.params())


@pytest.mark.parametrize("argument", ["rngs", "mutable"])
def test_linen_names_as_one_string(argument):
    with pytest.raises(TypeError, match=f"{argument}='dropout'.* must be sequences of names"):
        nngp.from_linen(nn.Dense(2), **{argument: "dropout"})
