"""Parameters of another model and inputs of another shape, in every framework: the cause is told, the fix, and beneath
them what the framework said."""

import re
from functools import cache, partial
from itertools import pairwise

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx
from helpers.parameters import drawn, drawn_equinox, drawn_nnx

import nngp_plugins as nngp


class Linen(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train=False):
        for width in self.widths[1:]:
            x = nn.Dense(width)(nn.Dropout(0.5, deterministic=not train)(x))
        return x

    def refuse(self, x):
        raise ValueError("this model\nrefuses")


@cache
def linen(*widths):
    f = nngp.from_linen(Linen(widths))
    return f, drawn(f, np.ones((1, widths[0])))


@cache
def from_nnx(*widths):
    layers = pairwise(widths)
    model = drawn_nnx(lambda: nnx.Sequential(*(nnx.Linear(a, b, rngs=nnx.Rngs(0)) for a, b in layers)))
    f = nngp.from_nnx(model)
    return f, f.split(model)[0]


@cache
def haiku(*widths):
    def net(x, is_training):
        x = hk.BatchNorm(False, False, 0.9)(x, is_training)
        return hk.nets.MLP(widths[1:])(x)

    f = nngp.from_haiku(hk.without_apply_rng(hk.transform_with_state(net)), is_training=False)
    return f, drawn(f, np.ones((2, widths[0])), is_training=True)


@cache
def equinox(*widths):
    layers = [drawn_equinox(eqx.nn.Linear, a, b, key=jax.random.key(0)) for a, b in pairwise(widths)]
    model = eqx.nn.Sequential(layers)
    return nngp.from_equinox(model), eqx.filter(model, eqx.is_array)


def from_keras(*widths):
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Dense(width, name=f"dense_{i}") for i, width in enumerate(widths[1:])]
    model = keras.Sequential([keras.Input(widths[:1]), *layers], name="net")
    return nngp.from_keras(model), nngp.from_keras(model).split(model)[0]


MODELS = {"linen": linen, "nnx": from_nnx, "haiku": haiku, "equinox": equinox, "keras": from_keras}
LACKS = {
    "linen": "'Dense_2/bias', of shape (2,)",
    "nnx": "'layers/2/bias', of shape (2,)",
    "haiku": "'mlp/~/linear_2/b', of shape (2,)",
    "equinox": "'layers/2/weight', of shape (2, 5)",
    "keras": "'[4] net/dense_2/kernel', of shape (5, 2)",
}
SHAPES = {
    "linen": "'Dense_1/bias' should have shape (5,) and has (6,)",
    "nnx": "'layers/1/bias' should have shape (5,) and has (6,)",
    "haiku": "'mlp/~/linear_1/b' should have shape (5,) and has (6,)",
    "equinox": "'layers/1/weight' should have shape (5, 4) and has (6, 4)",
    "keras": "'[2] net/dense_1/kernel' should have shape (4, 5) and has (4, 6)",
}
every_framework = pytest.mark.parametrize("framework", MODELS)


def call(f, framework, params, x):
    """Traces the layers of the model, the deepest that errors come from."""
    kwargs = {}
    if framework == "haiku":
        _, state = jax.eval_shape(partial(f.init, is_training=True), jax.random.key(0), np.ones((2, 3)))
        kwargs = {"state": state}
    return jax.eval_shape(lambda params, x, kwargs: f.layers()(params, x, **kwargs), params, x, kwargs)


@every_framework
def test_they_run(framework):
    f, params = MODELS[framework](3, 4, 5, 2)
    assert call(f, framework, params, np.ones((4, 3), np.float32))


@every_framework
def test_parameters_of_a_shallower_model(framework):
    f, _ = MODELS[framework](3, 4, 5, 2)
    _, params = MODELS[framework](3, 4, 5)
    with pytest.raises(ValueError, match=re.escape(f"they lack {LACKS[framework]}")):
        call(f, framework, params, np.ones((4, 3), np.float32))


@every_framework
def test_parameters_of_a_wider_model(framework):
    """NNX, Equinox and Keras would compute with them, and nobody would know."""
    f, _ = MODELS[framework](3, 4, 5, 2)
    _, params = MODELS[framework](3, 4, 6, 2)
    with pytest.raises(ValueError, match=re.escape(SHAPES[framework])):
        call(f, framework, params, np.ones((4, 3), np.float32))


@pytest.mark.parametrize("framework", ["nnx", "equinox", "keras"])
def test_parameters_of_a_deeper_model(framework):
    f, _ = MODELS[framework](3, 4, 5)
    _, params = MODELS[framework](3, 4, 5, 2)
    with pytest.raises(ValueError, match=r"params do not belong to this .*: they hold '(layers/2/|\[4\])"):
        call(f, framework, params, np.ones((4, 3), np.float32))


@every_framework
def test_inputs_of_another_shape(framework):
    f, params = MODELS[framework](3, 4, 5, 2)
    shape = "[7]" if framework == "equinox" else "[4, 7]"  # of one example
    with pytest.raises(ValueError, match=re.escape(f"x of float32{shape}")) as told:
        call(f, framework, params, np.ones((4, 7), np.float32))
    assert told.value.__cause__ is not None
    assert not isinstance(told.value.__cause__, ValueError) or "nngp_plugins" not in str(told.value.__cause__)


def test_parameters_of_another_kind_of_model():
    model, like = eqx.nn.Linear(3, 2, key=jax.random.key(0)), equinox(3, 2)[1]
    with pytest.raises(ValueError, match=r"params belong to a Sequential, not to this Linear\."):
        nngp.from_equinox(model)(like, np.ones((4, 3), np.float32))


def test_inputs_in_a_tree_are_described():
    model = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"Linear does not run on x of \{a: float32\[4, 3\]\}: "):
        nngp.from_equinox(model, batched=True)(model, {"a": np.ones((4, 3), np.float32)})


def test_the_models_own_error_is_told_and_chained():
    f, params = linen(3, 2)
    f = nngp.from_linen(Linen((3, 2)), method="refuse")
    with pytest.raises(ValueError, match=r"^Linen does not run on x of float32\[4, 3\]: this model") as told:
        f(params, np.ones((4, 3), np.float32))
    assert str(told.value.__cause__) == "this model\nrefuses"


def test_errors_of_tracing_are_left_alone():
    class Net(nn.Module):
        def __call__(self, x):
            return x if x.sum() > 0 else -x

    f = nngp.from_linen(Net())
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(f)({}, np.ones((4, 3), np.float32))


class TestLinenModules:
    def test_bound(self):
        module = Linen((3, 2))
        bound = module.bind(module.init(jax.random.key(0), np.ones((4, 3), np.float32)))
        with pytest.raises(
            ValueError, match=r"this Linen is bound to variables; pass .* module, _ = bound\.unbind\(\)"
        ):
            nngp.from_linen(bound)
        assert nngp.from_linen(bound.unbind()[0]) == nngp.from_linen(module)

    def test_a_method_that_does_not_exist(self):
        with pytest.raises(AttributeError, match="Linen has no method 'encode'; "):
            nngp.from_linen(Linen((3, 2)), method="encode")

    def test_a_method_that_setup_makes(self):
        class Net(nn.Module):
            def setup(self):
                self.encode = nn.Dense(2)

        with pytest.raises(
            AttributeError, match=r"Net has no method 'encode'; .* method=lambda module, x: module\.enc"
        ):
            nngp.from_linen(Net(), method="encode")
        f = nngp.from_linen(Net(), method=lambda module, x: module.encode(x))
        params, _ = f.init(jax.random.key(0), np.ones((4, 3), np.float32))
        assert f(params, np.ones((4, 3), np.float32)).shape == (4, 2)
