"""What people write in every framework: layers that end what ``super()`` began, a layer called ``output``, and models
that return their loss, or a matrix without a row for each example."""

from functools import partial
from itertools import product

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import close, normal
from helpers.parameters import drawn, drawn_equinox, drawn_nnx

import nngp_plugins as nngp

keras = pytest.importorskip("keras")
X = normal(0, 6, 3)

ENDS = {
    "softmax": jax.nn.softmax,
    "loss": lambda y: jnp.mean(y**2),
    "metrics": lambda y: {"loss": jnp.mean(y**2), "mae": jnp.mean(abs(y))},
    "matrix": lambda y: y.T @ y,
    "all": lambda y: {"loss": jnp.mean(y**2), "matrix": y.T @ y, "probs": jax.nn.softmax(y)},
}
OWN = {"softmax": [":output"], "all": [":output:probs"]}


class LinenAct(nn.Dense):
    use_bias: bool = False

    def __call__(self, x):
        return nn.relu(super().__call__(x))


class Linen(nn.Module):
    end: str

    @nn.compact
    def __call__(self, x):
        return ENDS[self.end](nn.Dense(2, False, name="output")(LinenAct(4, name="act")(x)))


class NNXAct(nnx.Linear):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class NNX(nnx.Module):
    def __init__(self, end, rngs):
        self.end, self.act, self.output = (
            end,
            NNXAct(3, 4, use_bias=False, rngs=rngs),
            nnx.Linear(4, 2, use_bias=False, rngs=rngs),
        )

    def __call__(self, x):
        return ENDS[self.end](self.output(self.act(x)))


class HaikuAct(hk.Linear):
    def __call__(self, x):
        return jax.nn.relu(super().__call__(x))


def haiku(end, x):
    return ENDS[end](hk.Linear(2, False, name="output")(HaikuAct(4, False, name="act")(x)))


class EquinoxAct(eqx.nn.Linear):
    """Its inner call runs under ``vmap``, so that it is traced elsewhere than the outer one."""

    def __call__(self, x):
        return jax.nn.relu(jax.vmap(super().__call__)(x))


class Equinox(eqx.Module):
    end: str = eqx.field(static=True)
    act: EquinoxAct
    output: eqx.nn.Linear

    def __call__(self, x):
        return ENDS[self.end](jax.vmap(self.output)(self.act(x)))


class KerasAct(keras.layers.Dense):
    def call(self, x):
        return jax.nn.relu(super().call(x))


class Keras(keras.Model):
    def __init__(self, end):
        super().__init__()
        self.end, self.act, self.last = end, KerasAct(4, name="act"), keras.layers.Dense(2, name="output")

    def call(self, x):
        return ENDS[self.end](self.last(self.act(x)))


def make(framework, end):
    """The ModelFn, its parameters, and the outputs of both layers, by hand."""
    if framework == "linen":
        f = nngp.from_linen(Linen(end))
        params = drawn(f, X)
        ws = [params[name]["kernel"] for name in ("act", "output")]
    elif framework == "nnx":
        params = drawn_nnx(lambda: NNX(end, nnx.Rngs(0)))
        f, ws = nngp.from_nnx(params), [params.act.kernel[...], params.output.kernel[...]]
    elif framework == "haiku":
        f = nngp.from_haiku(hk.without_apply_rng(hk.transform(partial(haiku, end))))
        params = drawn(f, X)
        ws = [params[name]["w"] for name in ("act", "output")]
    elif framework == "equinox":
        act = drawn_equinox(EquinoxAct, 3, 4, False, key=jax.random.key(0))
        params = Equinox(end, act, drawn_equinox(eqx.nn.Linear, 4, 2, False, key=jax.random.key(0)))
        f, ws = nngp.from_equinox(params, batched=True), [params.act.weight.T, params.output.weight.T]
    else:
        model = Keras(end)
        model(X)
        f = nngp.from_keras(model)
        params = f.split(model)[0]
        ws = [params[0], params[2]]
    act = np.maximum(np.asarray(X, float) @ ws[0], 0)
    return f, params, {"act": act, "output": act @ ws[1]}


FRAMEWORKS = ["linen", "nnx", "haiku", "equinox", "keras"]
# Every end in one framework, and in each framework the output and the end that holds all others.
EVERY_END = [*product(["linen"], ENDS), *product(FRAMEWORKS[1:], ["softmax", "all"])]


@pytest.mark.parametrize(("framework", "end"), EVERY_END)
def test_layers_are_what_the_user_called(framework, end):
    f, params, by_hand = make(framework, end)
    layers = jax.jit(f.layers())(params, X)
    assert list(layers) == ["act", "output", *OWN.get(end, [])]
    for name, expected in by_hand.items():
        close(layers[name], expected, rtol=1e-5, atol=1e-6)
    assert layers["act"].min() == 0
    for name in OWN.get(end, []):
        close(layers[name], np.asarray(ENDS["softmax"](by_hand["output"])), rtol=1e-5, atol=1e-6)
    assert list(f.layers("act").layer_shapes(params, X)) == ["act"]


@pytest.mark.parametrize(("framework", "batch_size"), [("linen", None), ("linen", 4), ("equinox", 4)])
def test_they_are_tracked(framework, batch_size):
    """A loss cannot be cut into batches, but it is not among the layers."""
    f, params, by_hand = make(framework, "all")
    metrics = {"scale": lambda gram, reference: nngp.metrics.scale(gram)}
    with nngp.KernelTracker(f.layers("act", "output"), X, batch_size=batch_size, metrics=metrics) as tracker:
        tracker(0, params)
    assert tracker.history.layers == ["act", "output"]
    expected = [(y**2).mean(1).mean() for y in by_hand.values()]
    close(tracker.history.metric("scale")[0], expected, rtol=1e-4, atol=1e-6)


class Shared(nn.Module):
    """A module that has the scope of the one that it wraps."""

    def setup(self):
        self.dense = nn.Dense(4)
        nn.share_scope(self, self.dense)

    def __call__(self, x):
        return nn.relu(self.dense(x))


class LinenAround(nn.Module):
    block: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(self.block(name="act")(x))


def test_modules_that_share_a_scope():
    f = nngp.from_linen(LinenAround(Shared))
    params = drawn(f, X)
    layers = jax.jit(f.layers())(params, X)
    assert list(layers) == ["act", "head"]
    act = X @ np.asarray(params["act"]["kernel"]) + np.asarray(params["act"]["bias"])
    close(layers["act"], np.maximum(act, 0), rtol=1e-5, atol=1e-6)


class Step(LinenAct):
    features: int = 3

    def __call__(self, x, _):
        return super().__call__(x), None


def test_a_scan_over_such_layers():
    """The inner calls of one step are no layers, and each step is one."""
    stack = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    f = nngp.from_linen(Scanned(stack))
    params = drawn(f, X)
    layers = f.layers()(params, X)
    assert list(layers) == ["act/0", "act/1", "head"]
    h = X
    for i, w in enumerate(params["act"]["kernel"]):
        h = np.maximum(h @ w, 0)
        close(layers[f"act/{i}"], h, rtol=1e-5, atol=1e-6)


class Scanned(nn.Module):
    block: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(self.block(name="act")(x, None)[0])


class Rematted(hk.Linear):
    def __call__(self, x):
        return jax.nn.relu(hk.remat(super().__call__)(x))

    def twice(self, x):
        return self(self(x))


def test_inner_calls_within_a_transformation():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2, name="head")(Rematted(3, name="act").twice(x))))
    f = nngp.from_haiku(net)
    params = drawn(f, X)
    layers = jax.jit(f.layers())(params, X)
    assert list(layers) == ["act", "act#1", "head"]
    w, b = (np.asarray(params["act"][name]) for name in "wb")
    once = np.maximum(X @ w + b, 0)
    close(layers["act"], once, rtol=1e-5, atol=1e-6)
    close(layers["act#1"], np.maximum(once @ w + b, 0), rtol=1e-5, atol=1e-5)
