"""Names of layers: none collides with another, equal arrays have one, and a pattern that finds nothing is told why."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import normal
from helpers.parameters import drawn

import nngp_plugins as nngp

X, XS = normal(0, 4, 3), normal(1, 4, 5, 3)


def summary_of(module, x=X):
    f = nngp.from_linen(module)
    return f.layers().summary(shapes_of_params(f, x), x)


def shapes_of_params(f, x=X):
    return jax.eval_shape(lambda key: f.init(key, x)[0], jax.random.key(0))


class Pair(nn.Module):
    """A module called 0 inside one that returns a tuple."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(3, name="0")(x)
        return 2 * y, 3 * y


class TestNoCollisions:
    def test_a_submodule_called_0_beside_a_tuple_of_a_second_call(self):
        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                pair, head = Pair(name="h"), nn.Dense(2, name="output")
                a, b = pair(x)
                c, d = pair(a)
                return {"a": head(a + b), "b": 2 * head(c + d)}

        f = nngp.from_linen(Model())
        params = drawn(f, X)
        layers, own = jax.jit(lambda params, x: (f.layers()(params, x), f(params, x)))(params, X)
        once, twice = ["h/0", "h:0", "h:1"], ["h/0#1", "h#1:0", "h#1:1"]
        assert list(layers) == [*once, *twice, "output", "output#1", ":output:b"]
        kernel, bias = (np.asarray(params["h"]["0"][name], np.float64) for name in ("kernel", "bias"))
        first = X @ kernel + bias
        second = 2 * first @ kernel + bias
        expected = [first, 2 * first, 3 * first, second, 2 * second, 3 * second]
        for name, y in zip([*once, *twice], expected, strict=True):
            np.testing.assert_allclose(layers[name], y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layers[":output:b"], own["b"], rtol=1e-5)
        others = f.layers().summary(params, X).others
        assert others == {"output": (":output:a",)}

    def test_blocks_that_are_numbers(self):
        """As in Flax models of Hugging Face: a collection of blocks, which returns a tuple of all hidden states."""

        class Collection(nn.Module):
            @nn.compact
            def __call__(self, x):
                states = [x]
                for i in range(2):
                    states.append(jnp.tanh(nn.Dense(3, name=str(i))(states[-1])))
                return states[-1], tuple(states)

        summary = summary_of(Collection(name="layer"))
        assert list(summary.shapes) == ["0", "1", "output:0", "output:1:0", "output:1:1"]
        assert summary.others == {"output:0": ("output:1:2",)}

    def test_other_methods(self):
        class Encoder(nn.Module):
            def setup(self):
                self.dense, self.embed = nn.Dense(3), nn.Embed(7, 3)

            def encode(self, x):
                return jnp.tanh(self.dense(x))

            def __call__(self, x):
                return self.encode(x) + 1

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                encoder = Encoder(name="e")
                h = encoder(encoder.encode(x))
                return encoder.embed.attend(h) * 2

        once, twice = ["e/dense", "e.encode"], ["e/dense#1", "e.encode#1"]
        assert list(summary_of(Model()).shapes) == [*once, *twice, "e", "e/embed.attend", "output"]

    def test_methods_of_nnx_and_of_equinox(self):
        class Encoder(nnx.Module):
            def __init__(self, rngs):
                self.dense = nnx.Linear(3, 3, rngs=rngs)

            def encode(self, x):
                return jnp.tanh(self.dense(x))

            def decode(self, x):
                raise NotImplementedError

            def __call__(self, x):
                # Base classes tell by such a comparison whether a subclass has a method of its own.
                assert type(self).decode is Encoder.decode
                return self.encode(x) + 1

        class Model(nnx.Module):
            def __init__(self, rngs):
                self.e = Encoder(rngs)

            def __call__(self, x):
                return self.e(self.e.encode(x))

        f = nngp.from_nnx(Model)
        assert list(f.layer_shapes(shapes_of_params(f), X)) == ["e/dense", "e.encode", "e/dense#1", "e.encode#1", "e"]

    def test_the_loop_of_a_keras_rnn_is_no_layer(self):
        keras = pytest.importorskip("keras")
        parts = keras.layers.SimpleRNN(4, name="rnn"), keras.layers.Dense(2, name="head")
        model = keras.Sequential([keras.Input((5, 3)), *parts])
        f = nngp.from_keras(model)
        assert list(f.layer_shapes(f.split(model)[0], XS)) == ["rnn/simple_rnn_cell:0", "rnn", "head"]


class TestEqualArraysOnce:
    def test_dropout_in_evaluation_and_the_last_of_a_sequence(self):
        parts = [nn.Dense(3), nn.Dropout(0.5, deterministic=True), nn.Sequential([nn.Dense(4), nn.LayerNorm()])]
        summary = summary_of(nn.Sequential(parts))
        assert list(summary.shapes) == ["layers_0", "layers_2/layers_0", "layers_2/layers_1"]
        assert summary.others == {"layers_0": ("layers_1",), "layers_2/layers_1": ("layers_2", "output")}
        lines = str(summary).splitlines()
        assert [line.split("│")[1].strip() for line in lines if "=" in line] == ["= layers_1", "= layers_2", "= output"]

    def test_tuples(self):
        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                h = nn.Dense(3, name="d")(x)
                return h, (h, {"again": h, "twice": 2 * h})

        summary = summary_of(Model())
        assert list(summary.shapes) == ["d", "output:1:1:twice"]
        assert summary.others == {"d": ("output:0", "output:1:0", "output:1:1:again")}

    def test_the_state_of_an_lstm(self):
        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.RNN(nn.OptimizedLSTMCell(3, name="cell"), name="rnn")(x) + 1

        summary = summary_of(Model(), XS)
        # c and h; h is returned twice by the cell, and its steps are what the RNN returns.
        assert {name: y.shape for name, y in summary.shapes.items()} == {
            "cell:0:0": (4, 5, 3),
            "rnn": (4, 5, 3),
            "output": (4, 5, 3),
        }
        assert {"cell:0:1", "cell:1"} <= {*summary.others["rnn"]}

    def test_the_same_function_computed_twice_is_two_arrays(self):
        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                dense = nn.Dense(3, name="d")
                return dense(x) + dense(x)

        assert list(summary_of(Model()).shapes) == ["d", "d#1", "output"]

    def test_a_transpose_and_back(self):
        """An array that a module returns with time first is the same layer as with the batch first."""

        def apply(w, x):
            h = nngp.tag("time first", (x @ w).swapaxes(0, 1))
            return nngp.tag("batch first", h.swapaxes(0, 1))

        f, w = nngp.from_callable(apply), normal(2, 3, 3)
        assert f.layers().summary(w, XS).others == {"time first": ("batch first", "output")}
        np.testing.assert_allclose(f.layers()(w, XS)["time first"], XS @ w, rtol=1e-5, atol=1e-6)


class TestPatterns:
    f = nngp.from_linen(nn.Sequential([nn.Dense(3), nn.Dropout(0.5, deterministic=True), nn.Dense(2)]))

    @pytest.fixture
    def params(self):
        return drawn(self.f, X)

    @pytest.mark.parametrize(
        ("patterns", "expected"),
        [
            (("layers_1",), ["layers_1"]),
            (("output",), ["output"]),
            (("layers_[12]",), ["layers_1", "layers_2"]),
            (("*", "!layers_0"), ["layers_1", "layers_2"]),
            (("!layers_[02]",), ["layers_1", "output"]),
            (("!output",), ["layers_0", "layers_2"]),
        ],
    )
    def test_the_other_name(self, params, patterns, expected):
        layers, own = (jax.jit(f)(params, X) for f in (self.f.layers(*patterns), self.f.layers()))
        assert list(layers) == expected
        same = {"layers_1": "layers_0", "output": "layers_2"}
        for name, y in layers.items():
            np.testing.assert_array_equal(y, own[same.get(name, name)])

    def test_nothing_is_left(self, params):
        with pytest.raises(
            ValueError, match=r"^layers\('output', '!output'\) leaves no layer of 'layers_0', 'layers_1'"
        ):
            self.f.layers("output", "!output")(params, X)

    @pytest.mark.parametrize(
        ("pattern", "told"),
        [
            ("position", r"'position', which is no layer: it does not depend on the inputs\.$"),
            (
                "blocks/*/mean",
                r"'blocks/0/mean', which is no layer: it has no row for each example: its shape is \(3,\)",
            ),
            ("loss", r"'loss', which is no layer: it is a scalar\.$"),
            ("branch", r"'branch', which is no layer: it is called inside cond\.$"),
            ("blocks/2/*", r"no layer; the closest are 'blocks/1/up', 'blocks/0/up'"),
        ],
    )
    def test_what_is_no_layer(self, pattern, told):
        def apply(params, x):
            nngp.tag("position", params[0])

            def block(h, w):
                nngp.tag("blocks/mean", h.mean(0))
                return nngp.tag("blocks/down", nngp.tag("blocks/up", h @ w) @ w), None

            h, _ = jax.lax.scan(block, x, params)
            nngp.tag("loss", h.mean())
            return jax.lax.cond(h.sum() > 0, lambda h: nngp.tag("branch", 2 * h), lambda h: h, h)

        with pytest.raises(ValueError, match=rf"^layers\('{pattern.replace('*', r'[*]')}'\) matches {told}"):
            nngp.from_callable(apply).layers(pattern).layer_shapes(normal(3, 2, 3, 3), X)


def dense(x):
    return jnp.tanh(hk.Linear(3)(x))


class Stacked(hk.Module):
    def __call__(self, x):
        return hk.experimental.layer_stack(2, name="s")(lambda x: jnp.tanh(hk.Linear(3, name="l")(x)))(x)


def nested(x):
    def inner(x):
        return hk.experimental.layer_stack(2)(dense)(x)

    return hk.experimental.layer_stack(2)(lambda x: hk.Linear(3, name="after")(inner(hk.Linear(3, name="pre")(x))))(x)


def nested_by_name(x):
    def inner(x):
        return hk.experimental.layer_stack(2, name="inner")(dense)(x)

    return hk.experimental.layer_stack(2, name="outer")(lambda x: hk.Linear(3)(inner(x)))(x)


def numbered(path, *parts):
    return [f"{path}/{i}/{part}" for i in range(2) for part in parts]


INNER = ("layer_stack/0/linear", "layer_stack/1/linear")
STACKS = [
    (lambda x: hk.experimental.layer_stack(2)(dense)(x), numbered("layer_stack", "linear")),
    (lambda x: hk.experimental.layer_stack(2, name="s")(dense)(dense(x)), ["linear", *numbered("s", "linear")]),
    (
        lambda x: hk.experimental.layer_stack(2)(dense)(dense(hk.experimental.layer_stack(2)(dense)(x))),
        [*numbered("layer_stack", "linear"), "linear", *numbered("layer_stack_1", "linear")],
    ),
    (nested, numbered("layer_stack", "pre", *INNER, "after")),
    (nested_by_name, numbered("outer", "inner/0/linear", "inner/1/linear", "linear")),
    (lambda x: Stacked(name="b")(Stacked(name="a")(x)), [*numbered("a/s", "l"), *numbered("b/s", "l")]),
    (lambda x: (m := Stacked(name="a"))(m(x)), [*numbered("a/s", "l"), *numbered("a/s", "l#1")]),
]


@pytest.mark.parametrize(("stack", "expected"), STACKS)
def test_stacks_of_haiku(stack, expected):
    """None of the names that Haiku makes up is left, and each module with parameters is seen."""
    f = nngp.from_haiku(hk.transform(stack))
    params = shapes_of_params(f)
    layers = f.layers("*", "!output").summary(params, X)
    assert [name for name in layers.shapes if name.rpartition("/")[2].split("#")[0] not in "ab"] == expected
    assert layers.modules == len(params)
    assert layers.unseen == {}
