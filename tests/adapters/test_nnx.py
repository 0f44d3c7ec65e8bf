"""Flax NNX: the live object, its states and random streams, against `model(x)`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.parameters import drawn, drawn_nnx

import nngp_plugins as nngp

equal = np.testing.assert_array_equal


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x, shift=0.0):
        return self.head(self.drop(self.norm(self.first(x)))) + shift


def values(tree):
    """The numbers that a State holds now, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(tree))
    numbers = [jax.random.key_data(y) if jnp.issubdtype(y.dtype, jax.dtypes.prng_key) else y for _, y in leaves]
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return dict(zip(paths, map(np.array, numbers), strict=True))


@pytest.fixture
def model():
    model = drawn_nnx(lambda: Net(nnx.Rngs(0)))
    # running statistics that matter, unlike the fresh zeros and ones
    model.norm.mean[...] = jnp.asarray(np.linspace(-1, 1, 8), jnp.float32)
    model.norm.var[...] = jnp.asarray(np.linspace(1, 3, 8), jnp.float32)
    return model


class TestState:
    def test_eval(self, model, x):
        model.eval()
        f = nngp.from_nnx(model)
        params, state = f.split(model)
        equal(f(params, x, state=state), model(x))
        equal(f(params, x, state=nnx.filter_state(state, nnx.BatchStat)), model(x))

    def test_split_takes_params_and_all_else(self, model):
        params, state = nngp.from_nnx(model).split(model)
        jax.tree.map(equal, values(params), values(nnx.state(model, nnx.Param)))
        layers = ("first/kernel", "first/bias", "norm/scale", "norm/bias", "head/kernel", "head/bias")
        assert set(values(params)) == set(layers)
        equal(values(state)["norm/mean"], np.linspace(-1, 1, 8).astype(np.float32))

    def test_mode_is_that_of_the_model_at_conversion(self, model, x):
        model.eval()
        evaluates = nngp.from_nnx(model)
        expected = model(x)
        model.train()
        trains = nngp.from_nnx(model)
        equal(evaluates(model, x), expected)
        model.eval()
        assert not np.allclose(trains(model, x, rng=jax.random.key(0)), expected)

    def test_later_changes_of_the_live_object_do_not_reach_f(self, model, x):
        model.eval()
        f = nngp.from_nnx(model)
        params, state = f.split(nnx.clone(model))
        before = model(x)
        model.train()
        model.head = nnx.Linear(8, 7, rngs=nnx.Rngs(1))
        equal(f(params, x, state=state), before)

    def test_split_gives_the_values_of_that_moment(self, model, x):
        # nnx.split gives the live Variables themselves, whose values training would change afterwards
        model.eval()
        f = nngp.from_nnx(model)
        params, state = f.split(model)
        before = model(x)
        model.first.kernel[...] = jnp.ones_like(model.first.kernel[...])
        model.norm.mean[...] = jnp.ones_like(model.norm.mean[...])
        equal(f(params, x, state=state), before)
        assert not np.allclose(f(model, x), before)

    def test_split_follows_training(self, model, x):
        model.eval()
        f = nngp.from_nnx(model)
        before = model(x)
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        nnx.jit(lambda model, opt: opt.update(model, nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)))(
            model, optimizer
        )
        params, state = f.split(model)
        equal(f(params, x, state=state), model(x))
        assert not np.allclose(model(x), before)

    def test_the_model_itself_as_params(self, model, x):
        model.eval()
        f = nngp.from_nnx(model)
        equal(f(model, x), model(x))
        model.head.bias[...] = jnp.ones_like(model.head.bias[...])
        equal(f(model, x), model(x))
        np.testing.assert_allclose(jax.jit(f)(model, x), model(x), rtol=1e-5)
        assert f.layer_shapes(model, x)["head"].shape == (4, 2)

    @pytest.mark.parametrize("as_layers", [False, True])
    def test_train_mode_changes_nothing_of_the_callers(self, model, x, as_layers):
        f = nngp.from_nnx(model)
        params, state = f.split(model)
        before = values(params), values(state), values(nnx.state(model))
        f = f.layers() if as_layers else f
        f(params, x, state=state, rng=jax.random.key(0))
        f(model, x, rng=jax.random.key(0))
        jax.tree.map(equal, (values(params), values(state), values(nnx.state(model))), before)
        assert type(model) is Net
        assert type(model.head) is nnx.Linear
        # whereas the model's own call does change its running statistics
        model(x)
        assert not np.allclose(model.norm.mean[...], before[1]["norm/mean"])

    def test_train_mode_batch_norm_uses_the_batch(self, x):
        norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        f = nngp.from_nnx(norm)
        expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        np.testing.assert_allclose(f(norm, x), expected, rtol=1e-4, atol=1e-5)

    def test_missing_state(self, model, x):
        model.eval()
        told = r"state=None, but this model has variables that are not parameters \(norm/mean, norm/var\); pass them"
        with pytest.raises(ValueError, match=told):
            nngp.from_nnx(model)(nnx.state(model, nnx.Param), x)

    @pytest.mark.filterwarnings("ignore:.*sow:DeprecationWarning")
    def test_values_sown_before_are_no_part_of_the_model(self, x):
        class Sows(nnx.Module):
            def __init__(self, rngs):
                self.head = nnx.Linear(3, 2, rngs=rngs)

            def __call__(self, x):
                self.sow(nnx.Intermediate, "h", x)
                return self.head(x)

        model = Sows(nnx.Rngs(0))
        fresh = nngp.from_nnx(model)
        model(x)
        f = nngp.from_nnx(model)
        assert f == fresh
        params, state = f.split(model)
        assert not jax.tree.leaves(state)
        equal(f(params, x), model(x))
        equal(f(model, x), model(x))


class TestFactory:
    def test_init_is_the_factory_with_that_key(self, x):
        f = nngp.from_nnx(lambda rngs: Net(rngs))
        params, state = f.init(jax.random.key(3), x)
        own = Net(nnx.Rngs(jax.random.key(3)))
        jax.tree.map(equal, values(params), values(nnx.state(own, nnx.Param)))
        equal(
            f(params, x, state=state, rng=jax.random.key(1)),
            nngp.from_nnx(own)(params, x, state=state, rng=jax.random.key(1)),
        )

    @pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
    def test_any_key(self, make_key, x):
        params, _ = nngp.from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs)).init(make_key(3), x)
        equal(params["kernel"][...], nnx.Linear(3, 2, rngs=nnx.Rngs(3)).kernel[...])

    def test_live_model_has_no_init(self, model, x):
        with pytest.raises(ValueError, match=r"made from a live NNX model, so it cannot .*; f\.split\(model\) gives"):
            nngp.from_nnx(model).init(jax.random.key(0), x)

    def test_eval_in_the_factory(self, x):
        def factory(rngs):
            model = Net(rngs)
            model.eval()
            return model

        f = nngp.from_nnx(factory)
        params, state = f.init(jax.random.key(0), x)
        own = Net(nnx.Rngs(jax.random.key(0)))
        own.eval()
        equal(f(params, x, state=state), own(x))


class TestRng:
    def test_rng_state_need_not_be_passed(self, x):
        drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        f = nngp.from_nnx(drop)
        outputs = f({}, x, rng=jax.random.key(0))
        assert np.all((outputs == 0) | (outputs == 2 * x))
        assert 0 < np.count_nonzero(outputs) < x.size
        equal(outputs, f(f.split(drop)[0], x, state=f.split(drop)[1], rng=jax.random.key(0)))

    @pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
    def test_reproducible_and_differs_with_the_key(self, make_key):
        x = jnp.ones((4, 50))
        f = nngp.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
        first, again, other = (f({}, x, rng=make_key(i)) for i in (0, 0, 1))
        equal(first, again)
        assert not np.array_equal(first, other)

    def test_typed_and_old_keys_agree(self):
        x = jnp.ones((4, 50))
        f = nngp.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
        equal(f({}, x, rng=jax.random.key(5)), f({}, x, rng=jax.random.PRNGKey(5)))

    def test_streams_differ(self):
        class Two(nnx.Module):
            def __init__(self, rngs):
                self.a = nnx.Dropout(0.5, rngs=rngs)
                self.b = nnx.Dropout(0.5, rngs=rngs)

            def __call__(self, x):
                return self.a(x), self.b(x)

        a, b = nngp.from_nnx(Two(nnx.Rngs(0)))({}, jnp.ones((4, 50)), rng=jax.random.key(0))
        assert not np.array_equal(a, b)

    @pytest.mark.parametrize("compile_it", [False, True])
    def test_missing_rng(self, model, x, compile_it):
        f = nngp.from_nnx(model)
        params, state = f.split(model)
        told = r"rng=None, but this NNX model draws random numbers; pass rng=.*, or call model\.eval\(\) before"
        with pytest.raises(ValueError, match=told):
            (jax.jit(f) if compile_it else f)(params, x, state=state)


class TestCallForms:
    def test_call_kwargs(self, model, x):
        model.eval()
        f = nngp.from_nnx(model, shift=1.0)
        equal(f(model, x), model(x, shift=1.0))
        equal(f(model, x, shift=2.0), model(x, shift=2.0))

    def test_spread_and_method(self, x):
        class Pair(nnx.Module):
            def __init__(self, rngs):
                self.left = nnx.Linear(3, 2, rngs=rngs)
                self.right = nnx.Linear(3, 2, rngs=rngs)

            def __call__(self, u, v):
                return self.left(u) + self.right(v)

            def encode(self, u):
                return self.left(u)

        model = Pair(nnx.Rngs(0))
        equal(nngp.from_nnx(model, spread="args")(model, (x, 2 * x)), model(x, 2 * x))
        equal(nngp.from_nnx(model, spread="kwargs")(model, {"v": 2 * x, "u": x}), model(x, 2 * x))
        encode = nngp.from_nnx(model, method="encode")
        equal(encode(model, x), model.encode(x))
        assert list(encode.layers()(model, x)) == ["left"]
        with pytest.raises(AttributeError, match="Pair has no method 'decode'"):
            nngp.from_nnx(model, method="decode")

    def test_model_that_is_no_pytree(self, x):
        class Plain(nnx.Module, pytree=False):
            def __init__(self, rngs):
                self.blocks = [nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)]

            def __call__(self, x):
                for block in self.blocks:
                    x = block(x)
                return x

        model = Plain(nnx.Rngs(0))
        f = nngp.from_nnx(model)
        equal(f(model, x), model(x))
        assert list(f.layers()(model, x)) == ["blocks/0", "blocks/1"]

    def test_attention(self, x):
        sizes = {"num_heads": 2, "in_features": 3, "qkv_features": 4}
        model = drawn_nnx(lambda: nnx.MultiHeadAttention(**sizes, decode=False, rngs=nnx.Rngs(0)))
        sequences = np.stack([x, 2 * x, 3 * x], axis=1)
        f = nngp.from_nnx(model)
        equal(jax.jit(f)(model, sequences), nnx.jit(lambda model, x: model(x))(model, sequences))
        assert list(f.layers().layer_shapes(model, sequences)) == ["query", "key", "value", "out"]

    def test_layers_around_a_scan(self, x):
        class Model(nnx.Module):
            def __init__(self, rngs):
                @nnx.split_rngs(splits=5)
                @nnx.vmap(in_axes=0, out_axes=0)
                def make(rngs):
                    return nnx.Linear(3, 3, rngs=rngs)

                self.blocks = make(rngs)
                self.head = nnx.Linear(3, 2, rngs=rngs)

            def __call__(self, x):
                scan = nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
                return self.head(scan(self.blocks, x))

        model = drawn_nnx(lambda: Model(nnx.Rngs(0)))
        f = nngp.from_nnx(model)
        layers = jax.jit(f.layers())(model, x)
        assert list(layers) == [*(f"blocks/{i}" for i in range(5)), "head"]
        np.testing.assert_allclose(layers["head"], model(x), rtol=1e-5)

    def test_rnn(self, x):
        class Model(nnx.Module):
            def __init__(self, rngs):
                self.rnn = nnx.RNN(nnx.SimpleCell(3, 4, rngs=rngs))
                self.head = nnx.Linear(4, 2, rngs=rngs)

            def __call__(self, x):
                return self.head(self.rnn(x)[:, -1])

        model = drawn_nnx(lambda: Model(nnx.Rngs(0)))
        sequences = np.stack([x, 2 * x, 3 * x], axis=1)
        f = nngp.from_nnx(model)
        # without rng, though NNX's cells take a key for their initial carry: it is zeros all the same
        own, of_rnn = nnx.jit(lambda model, x: (model(x), model.rnn(x)))(model, sequences)
        equal(jax.jit(f)(model, sequences), own)
        layers = jax.jit(f.layers("rnn", "head"))(model, sequences)
        assert list(layers) == ["rnn", "head"]
        equal(layers["rnn"], of_rnn)


class ByKeyword(nnx.Module):
    def __init__(self, *, rngs):
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


def test_a_class_that_takes_rngs_by_keyword_is_a_factory(x):
    f = nngp.from_nnx(ByKeyword)
    params, _ = f.init(jax.random.key(3), x)
    np.testing.assert_array_equal(f(params, x), ByKeyword(rngs=nnx.Rngs(jax.random.key(3)))(x))


def test_all_variables_of_a_model_are_split(model, x):
    model.eval()
    _, variables = nnx.split(model)
    equal(nngp.from_nnx(model)(variables, x), model(x))


def test_a_linen_module_inside_nnx(x):
    model = nnx.bridge.ToNNX(nn.Dense(2), rngs=nnx.Rngs(0)).lazy_init(x)
    equal(nngp.from_nnx(model)(model, x), model(x))


@pytest.mark.parametrize("make", [lambda: nngp.from_nnx(ByKeyword), lambda: nngp.from_linen(nn.Dense(2))])
def test_a_number_is_no_key(make, x):
    f = make()
    params = drawn(f, x)
    with pytest.raises(TypeError, match=r"rng=0 is not a key; pass rng=jax.random.key\(0\)"):
        f(params, x, rng=0)
