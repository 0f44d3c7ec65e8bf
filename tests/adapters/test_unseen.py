"""What no layer covers is said: in the summary with the reason, and once by the tracker."""

import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from helpers.arrays import normal

import nngp_plugins as nngp

X = normal(0, 4, 3)
COND, LOOP, NEVER = "it is called inside cond", "it is called inside while_loop", "no call of it returns an array"


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        cond, case, loop = nn.Dense(3, name="cond"), nn.Dense(3, name="case"), nn.Dense(3, name="loop")
        if self.is_initializing():
            return nn.Dense(2, name="head")(cond(case(loop(x))))
        x = nn.cond(x.sum() > -1e6, lambda net, x: cond(x), lambda net, x: x, self, x)
        x = nn.switch(x.shape[0] % 2, [lambda net, x: case(x), lambda net, x: x], self, x)

        def body(net, carry):
            return loop(carry[0]), carry[1] + 1

        x, _ = nn.while_loop(lambda net, carry: carry[1] < 2, body, self, (x, 0))
        return nn.Dense(2, name="head")(x)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.cond, self.case, self.loop, self.head = (nnx.Linear(3, 3, rngs=rngs) for _ in range(4))

    def __call__(self, x):
        x = nnx.cond(x.sum() > -1e6, lambda layer, x: layer(x), lambda layer, x: x, self.cond, x)
        x = nnx.switch(jnp.int32(x.sum() > -1e6), [lambda layer, x: layer(x), lambda layer, x: x], self.case, x)
        return self.head(jax.lax.while_loop(lambda c: c[1] < 2, lambda c: (self.loop(c[0]), c[1] + 1), (x, 0))[0])


def haiku_net(x):
    cond, case, loop = hk.Linear(3, name="cond"), hk.Linear(3, name="case"), hk.Linear(3, name="loop")
    if hk.running_init():
        return hk.Linear(2, name="head")(cond(case(loop(x))))
    x = hk.cond(x.sum() > -1e6, cond, lambda x: x, x)
    x = hk.switch(jnp.int32(x.sum() > -1e6), [case, lambda x: x], x)
    x, _ = hk.while_loop(lambda c: c[1] < 2, lambda c: (loop(c[0]), c[1] + 1), (x, 0))
    return hk.Linear(2, name="head")(x)


class EquinoxNet(eqx.Module):
    cond: eqx.nn.Linear
    case: eqx.nn.Linear
    loop: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        self.cond, self.case, self.loop, self.head = (eqx.nn.Linear(3, 3, key=k) for k in jax.random.split(key, 4))

    def __call__(self, x):
        # A predicate that depends on the example would become a selection under vmap, and both branches be seen.
        x = jax.lax.cond(self.cond.bias.sum() > 0, lambda x: self.cond(x), lambda x: x, x)
        x = jax.lax.switch(jnp.int32(self.cond.bias.sum() > 1), [lambda x: self.case(x), lambda x: x], x)
        return self.head(jax.lax.while_loop(lambda c: c[1] < 2, lambda c: (self.loop(c[0]), c[1] + 1), (x, 0))[0])


MODELS = {
    "linen": lambda: nngp.from_linen(LinenNet()),
    "nnx": lambda: nngp.from_nnx(NNXNet),
    "haiku": lambda: nngp.from_haiku(hk.without_apply_rng(hk.transform(haiku_net))),
    "equinox": lambda: nngp.from_equinox(EquinoxNet),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_summary_names_them(name):
    f = MODELS[name]()
    summary = f.layers().summary(jax.eval_shape(f.init, jax.random.key(0), X)[0], X)
    assert list(summary.shapes) == ["head"]
    assert summary.modules == 4
    assert summary.unseen == {"cond": COND, "case": COND, "loop": LOOP}
    text = str(summary)
    assert "modules with parameters: 1 seen, 3 not seen" in text
    for module, reason in summary.unseen.items():
        assert f"  {module}: {reason}" in text
    told = rf"^layers\('loop'\) matches 'loop', which is no layer: {LOOP}\.$"
    with pytest.raises(ValueError, match=told):
        f.layers("loop").summary(jax.eval_shape(f.init, jax.random.key(0), X)[0], X)


def test_modules_without_a_call():
    """What is never called is not seen; what only holds parameters is covered by the module that uses them."""

    class Part(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="d")(x)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            unused = Part(name="unused")
            if self.is_initializing():
                unused(x)
            return nn.LayerNorm(name="norm")(x @ self.param("w", nn.initializers.ones, (3, 3)))

    f = nngp.from_linen(Model())
    summary = f.layers().summary(jax.eval_shape(f.init, jax.random.key(0), X)[0], X)
    assert (summary.modules, summary.unseen) == (3, {"unused/d": NEVER})
    lstm = nngp.from_linen(nn.RNN(nn.OptimizedLSTMCell(3)))
    xs = normal(1, 4, 5, 3)
    summary = lstm.layers().summary(jax.eval_shape(lstm.init, jax.random.key(0), xs)[0], xs)
    assert (summary.modules, summary.unseen) == (8, {})


def test_tags_of_a_function():
    """A function has no modules, and what it tags is meant to be seen."""

    def apply(w, x):
        nngp.tag("mean", x.mean(0))
        return jax.lax.cond(x.sum() > 0, lambda x: nngp.tag("branch", x @ w), lambda x: x, x)

    summary = nngp.from_callable(apply).layers().summary(normal(2, 3, 3), X)
    assert (summary.modules, list(summary.shapes)) == (0, ["output"])
    assert summary.unseen == {"branch": COND, "mean": "it has no row for each example: its shape is (3,)"}


METRICS = {"scale": lambda gram, reference: nngp.metrics.scale(gram)}


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODELS["haiku"]().init)(jax.random.key(0), X)[0]


class TestTracker:
    f = MODELS["haiku"]()

    def track(self, f, params, batch_size=None):
        """What the tracker warns of in three snapshots."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options = {"metrics": METRICS, "schedule": nngp.every(1), "batch_size": batch_size}
            with nngp.KernelTracker(f, X, **options) as tracker:
                for step in range(3):
                    tracker(step, params)
        assert tracker.history.layers == ["head"]
        return [str(warning.message) for warning in caught]

    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_said_once(self, params, batch_size):
        (message,) = self.track(self.f.layers(), params, batch_size)
        assert all(f"'{name}': " in message for name in ("cond", "case", "loop"))
        assert message.startswith("3 modules with parameters are not seen, so that no layer covers them (")

    def test_only_of_what_is_chosen(self, params):
        assert self.track(self.f.layers("head"), params) == []
        (message,) = self.track(self.f.layers("*", "!c*"), params)
        assert message.startswith("1 modules with parameters are not seen")

    def test_said_once_in_a_compiled_training(self, params):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with nngp.KernelTracker(self.f.layers(), X, metrics=METRICS, schedule=nngp.every(1)) as tracker:
                optimizer = optax.chain(optax.sgd(0.1), nngp.track_kernel(tracker))

                @jax.jit
                def train(params):
                    def step(carry, _):
                        params, state = carry
                        updates, state = optimizer.update(params, state, params)
                        return (optax.apply_updates(params, updates), state), None

                    return jax.lax.scan(step, (params, optimizer.init(params)), length=3)

                jax.block_until_ready(train(params))
        assert list(tracker.history.steps) == [0, 1, 2]
        (message,) = [str(warning.message) for warning in caught]
        assert message.startswith("3 modules with parameters are not seen")


def test_a_scan_over_examples_is_said():
    """The batch is the axis that the scan runs over, so that no step has a row for each example."""
    f = nngp.from_callable(lambda params, x: jax.lax.map(lambda row: nngp.tag("row", jnp.tanh(row)), x))
    x = jnp.asarray(normal(3, 6, 6))
    assert list(f.layers()(None, x)) == ["output"]
    (reason,) = f.summary(None, x).unseen.values()
    assert reason.startswith("it takes one example at a time, in a scan over the batch")
    with pytest.raises(ValueError, match=r"^layers\('row'\) matches 'row', which is no layer: it takes one example at"):
        f.layers("row")(None, x)
