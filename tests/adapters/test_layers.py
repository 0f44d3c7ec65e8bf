"""`f.layers`: names, forward order, values, and what they cost."""

from functools import partial
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import arrays
from helpers.parameters import drawn

import nngp_plugins as nngp

close = partial(arrays.close, rtol=1e-5, atol=1e-6)


class TestEveryFramework:
    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_values_and_forward_order(self, case, x, transform):
        # jit sorts the keys of a plain dict, and these names are in the reverse order
        layers = transform(case.make().layers())(case.params, x)
        expected = case.by_hand(case.params, x)
        assert list(layers) == list(expected) == ["z", "m", "a"]
        for name in expected:
            close(layers[name], expected[name])

    def test_order_survives_the_kernel(self, case, x):
        kernel_fn = nngp.empirical_nngp_fn(case.make().layers(), trace_axes=nngp.all_but_batch)
        kernels = jax.jit(kernel_fn)(x, None, case.params)
        assert list(kernels) == ["z", "m", "a"]
        for name, y in case.by_hand(case.params, x).items():
            close(kernels[name], y @ y.T / y.shape[1])

    @pytest.mark.parametrize(
        ("patterns", "names"),
        [
            (("m",), ["m"]),
            (("a", "z"), ["z", "a"]),
            (("[mz]",), ["z", "m"]),
            (("z", "*"), ["z", "m", "a"]),
            (("output",), ["output"]),
            (("a", "output"), ["a"]),
            (("z", "output"), ["z", "output"]),
        ],
    )
    def test_patterns(self, case, x, patterns, names):
        layers = case.make().layers(*patterns)(case.params, x)
        assert list(layers) == names
        expected = case.by_hand(case.params, x)
        for name in names:
            close(layers[name], expected["a" if name == "output" else name])

    def test_unknown_pattern(self, case, x):
        told = r"layers\('outpt'\) matches no layer; the closest are 'output'"
        with pytest.raises(ValueError, match=told):
            case.make().layers("z", "outpt")(case.params, x)

    @pytest.mark.parametrize("pattern", [["z"], 0, None])
    def test_pattern_that_is_no_string(self, case, pattern):
        with pytest.raises(TypeError, match=r"takes patterns as strings, such as f\.layers\('Dense_\*', 'head'\)"):
            case.make().layers(pattern)

    def test_output_is_last_where_no_layer_returned_it(self, case, x):
        f = case.make(shift=1.0)
        layers = f.layers()(case.params, x)
        assert list(layers) == ["z", "m", "a", "output"]
        np.testing.assert_array_equal(layers["output"], layers["a"] + 1)
        np.testing.assert_array_equal(layers["output"], f(case.params, x))

    def test_layer_shapes_are_those_of_the_call(self, case, x):
        f = case.make(shift=1.0)
        layers = f.layers()(case.params, x)
        shapes = f.layer_shapes(case.params, x)
        assert list(shapes) == list(layers)
        assert {n: (s.shape, s.dtype) for n, s in shapes.items()} == {n: (y.shape, y.dtype) for n, y in layers.items()}
        assert list(f.layers("m", "a").layer_shapes(case.params, x)) == ["m", "a"]

    def test_layer_shapes_run_nothing(self, case):
        # 12 terabytes of inputs, and parameters without values
        x = jax.ShapeDtypeStruct((10**12, 3), jnp.float32)
        params = jax.eval_shape(lambda: case.params)
        assert {name: y.shape for name, y in case.make().layer_shapes(params, x).items()} == {
            "z": (10**12, 6),
            "m": (10**12, 5),
            "a": (10**12, 2),
        }

    def test_layers_not_asked_for_are_not_computed(self, case, x):
        def flops(function):
            return jax.jit(function).lower(case.params, x).compile().cost_analysis()["flops"]

        def first(params, x):
            kernel, bias = case.weights(params)["z"]
            return x @ kernel + bias

        f = case.make()
        assert flops(f.layers("z")) == flops(first)
        assert flops(f.layers()) > 2 * flops(first)


# Repeated calls, nested tuples and outputs without the batch: one model a framework, and its names.


class LinenParts(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(3, name="d")(x)
        return h, {"twice": 2 * h, "mean": h.mean(0), "loss": h.mean()}


class LinenTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3, name="dense")
        h, parts = LinenParts(name="parts")(dense(dense(x)))
        return h + parts["twice"]


class NNXParts(nnx.Module):
    def __init__(self, rngs):
        self.d = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        h = self.d(x)
        return h, {"twice": 2 * h, "mean": h.mean(0), "loss": h.mean()}


class NNXTwice(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.parts = NNXParts(rngs)

    def __call__(self, x):
        h, parts = self.parts(self.dense(self.dense(x)))
        return h + parts["twice"]


class HaikuParts(hk.Module):
    def __call__(self, x):
        h = hk.Linear(3, name="d")(x)
        return h, {"twice": 2 * h, "mean": h.mean(0), "loss": h.mean()}


def haiku_twice(x):
    dense = hk.Linear(3, name="dense")
    h, parts = HaikuParts(name="parts")(dense(dense(x)))
    return h + parts["twice"]


@pytest.mark.parametrize(
    "f",
    [
        nngp.from_linen(LinenTwice()),
        nngp.from_nnx(lambda rngs: NNXTwice(rngs)),
        nngp.from_haiku(hk.transform(haiku_twice)),
    ],
    ids=["linen", "nnx", "haiku"],
)
class TestNames:
    def test_repeated_calls_and_tuples(self, f, x):
        params = drawn(f, x)
        layers = jax.jit(f.layers())(params, x)
        # `mean` and `loss` lack the batch axis and are left out; `parts:0` is the array of `parts/d`
        assert list(layers) == ["dense", "dense#1", "parts/d", "parts:1:twice", "output"]
        close(layers["parts:1:twice"], 2 * layers["parts/d"])
        close(layers["output"], 3 * layers["parts/d"])
        bias, kernel = (np.asarray(leaf) for leaf in jax.tree.leaves(params["dense"]))
        close(layers["dense#1"], np.asarray(layers["dense"]) @ kernel + bias)

    def test_patterns_choose_among_the_calls(self, f, x):
        params = drawn(f, x)
        assert list(f.layers("dense#*").layer_shapes(params, x)) == ["dense#1"]
        assert list(f.layers("parts*").layer_shapes(params, x)) == ["parts/d", "parts:1:twice"]


class Multi(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(3, name="d")(x)
        return {"logits": 2 * h, "same": h, "loss": h.mean()}


def test_outputs_in_a_dict(x):
    f = nngp.from_linen(Multi())
    params = drawn(f, x)
    layers = f.layers()(params, x)
    assert list(layers) == ["d", "output:logits"]
    np.testing.assert_array_equal(layers["output:logits"], f(params, x)["logits"])


# What modules sow stands where they sowed it: each entry is the body of a module, and the names it must give.


class LinenSows(nn.Module):
    where: Any

    @nn.compact
    def __call__(self, x):
        def sow(name, y):
            self.sow("intermediates", name, y)

        def dense(name, y):
            return nn.Dense(3, name=name)(y)

        return self.where(sow, dense, x)


class NNXSows(nnx.Module):
    def __init__(self, where, rngs):
        self.where = where
        self.z, self.a = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        def sow(name, y):
            self.sow(nnx.Intermediate, name, y)

        return self.where(sow, lambda name, y: getattr(self, name)(y), x)


def sow_first(sow, dense, x):
    sow("mark", 2 * x)
    return dense("a", dense("z", x))


def sow_between(sow, dense, x):
    h = dense("z", x)
    sow("mark", 2 * h)
    return dense("a", h)


def sow_last(sow, dense, x):
    h = dense("a", dense("z", x))
    sow("mark", 2 * h)
    return h


def sow_twice(sow, dense, x):
    h = dense("z", x)
    sow("mark", h + 1)
    sow("mark", h + 2)
    return dense("a", h)


SOWN = [
    (sow_first, ["mark", "z", "a"]),
    (sow_between, ["z", "mark", "a"]),
    (sow_last, ["z", "a", "mark"]),
    (sow_twice, ["z", "mark", "mark#1", "a"]),
]


class LinenBlock(nn.Module):
    where: Any

    @nn.compact
    def __call__(self, x):
        h = LinenSows(self.where, name="block")(nn.Dense(3, name="pre")(x))
        return nn.Dense(2, name="post")(nn.relu(h))


class NNXBlock(nnx.Module):
    def __init__(self, where, rngs):
        self.pre, self.post = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.block = NNXSows(where, rngs)

    def __call__(self, x):
        return self.post(nnx.relu(self.block(self.pre(x))))


def names_of(f, x):
    """The names of all layers; nothing is run."""
    return list(f.layer_shapes(jax.eval_shape(f.init, jax.random.key(0), x)[0], x))


@pytest.mark.parametrize(("where", "names"), SOWN)
class TestSown:
    def test_linen(self, where, names, x):
        found = names_of(nngp.from_linen(LinenSows(where)), x)
        assert [name for name in found if name != "output"] == names

    def test_nnx(self, where, names, x):
        found = names_of(nngp.from_nnx(lambda rngs: NNXSows(where, rngs)), x)
        assert [name for name in found if name != "output"] == names

    def test_linen_nested(self, where, names, x):
        # the block returns the array of its last layer
        expected = ["pre", *(f"block/{name}" for name in names), "post"]
        assert names_of(nngp.from_linen(LinenBlock(where)), x) == expected

    def test_nnx_nested(self, where, names, x):
        expected = ["pre", *(f"block/{name}" for name in names), "post"]
        assert names_of(nngp.from_nnx(lambda rngs: NNXBlock(where, rngs)), x) == expected


class LinenSharedSow(nn.Module):
    @nn.compact
    def __call__(self, x):
        z = nn.Dense(3, name="z")
        h = z(x)
        self.sow("intermediates", "mark", h + 1)
        h = z(h)
        self.sow("intermediates", "mark", h + 2)
        return nn.Dense(2, name="a")(h)


def test_linen_sown_between_calls_of_one_module(x):
    f = nngp.from_linen(LinenSharedSow())
    params = drawn(f, x)
    layers = f.layers()(params, x)
    close(layers["mark#1"], layers["z#1"] + 2)
    assert list(layers) == ["z", "mark", "z#1", "mark#1", "a"]


def test_sown_values(x):
    f = nngp.from_linen(LinenSows(sow_between))
    params = drawn(f, x)
    layers = f.layers()(params, x)
    np.testing.assert_array_equal(layers["mark"], 2 * layers["z"])


def test_nnx_sees_an_inherited_call(x):
    class Base(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return nnx.tanh(self.linear(x))

    class Child(Base):
        pass

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.child = Child(rngs)
            self.head = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.child(x))

    model = Model(nnx.Rngs(0))
    layers = nngp.from_nnx(model).layers()(model, x)
    assert list(layers) == ["child/linear", "child", "head"]
    close(layers["child"], jnp.tanh(layers["child/linear"]))


def test_nnx_recording_leaves_the_users_classes_alone(x):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            assert isinstance(self.head, nnx.Linear)
            return self.head(x)

    call, linear_call = Model.__call__, nnx.Linear.__call__
    model = Model(nnx.Rngs(0))
    nngp.from_nnx(model).layers()(model, x)
    assert (Model.__call__, nnx.Linear.__call__) == (call, linear_call)


def test_haiku_names_are_haikus_paths(x):
    f = nngp.from_haiku(hk.transform(lambda x: hk.nets.MLP([5, 2])(x)))
    params = drawn(f, x)
    # the MLP returns the array of its last layer
    layers = f.layers()(params, x)
    assert list(layers) == ["mlp/~/linear_0", "mlp/~/linear_1"]
    assert set(params) == {"mlp/~/linear_0", "mlp/~/linear_1"}
    np.testing.assert_array_equal(f.layers("mlp")(params, x)["mlp"], layers["mlp/~/linear_1"])
    assert f.layers().summary(params, x).others == {"mlp/~/linear_1": ("mlp", "output")}
