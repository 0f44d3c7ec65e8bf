"""Layers that start at zero, and running statistics of one example, are said at once, with their names and the fix."""

import warnings

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import normal

import nngp_plugins as nngp

pytestmark = pytest.mark.once

IMAGES = normal(0, 6, 8, 8, 3)
METRICS = {"cka": nngp.metrics.cka, "rank": lambda gram, _: nngp.metrics.stable_rank(gram)}
ZERO_HEAD = "the kernel of layer '{}' is zero at step 0: its metrics are nan. Its reference will be its first kernel "
ZERO_HEAD += "that is not zero. If this is not meant to start at zero, initialise its weights with other values"


def linen():
    f = nngp.from_linen(nn.Sequential([nn.Dense(4), nn.Dense(3, kernel_init=nn.initializers.zeros)]))
    return f, *f.init(jax.random.key(1), IMAGES)


def of_nnx():
    def model(rngs):
        head = nnx.Linear(4, 3, kernel_init=nnx.initializers.zeros, rngs=rngs)
        return nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), head)

    f = nngp.from_nnx(model)
    return f, *f.init(jax.random.key(1), IMAGES)


def resnet(**head):
    def net(x, is_training):
        options = {"blocks_per_group": (1,) * 4, "channels_per_group": (4,) * 4, "bottleneck": False}
        return hk.nets.ResNet(num_classes=3, name="net", **options, **head)(x, is_training)

    return nngp.from_haiku(hk.transform_with_state(net), is_training=False)


def haiku():
    f = resnet()
    return f, *f.init(jax.random.key(1), IMAGES, is_training=True)


def track(f, params, state=None):
    """What is said of two snapshots."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with nngp.KernelTracker(f, IMAGES, schedule=nngp.every(1), metrics=METRICS) as tracker:
            tracker(0, params, state=state)
            tracker(1, params, state=state)
    return [str(one.message) for one in said], tracker.history


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("model", "head"),
    [(linen, "layers_1"), (of_nnx, "layers/1"), (haiku, "net/~/logits")],
    ids=["linen", "nnx", "haiku"],
)
def test_a_head_that_starts_at_zero_is_said_once(model, head):
    f, params, state = model()
    (said,), history = track(f.layers(), params, state or None)
    assert said.startswith(ZERO_HEAD.format(head))
    unknown = np.isnan(history.metric("cka")).all(axis=0)
    assert [layer for layer, is_nan in zip(history.layers, unknown, strict=True) if is_nan] == [head]


@pytest.mark.exhaustive
def test_the_fix_that_is_named_helps():
    f = resnet(logits_config={"w_init": hk.initializers.VarianceScaling()})
    params, state = f.init(jax.random.key(1), IMAGES, is_training=True)
    assert track(f.layers("net/~/logits"), params, state)[0] == []


def test_several_such_layers_are_one_warning():
    def f(params, x):
        return {f"gate_{i}": params * x for i in range(5)} | {"body": x, "same": x * 0 + 1}

    with (
        pytest.warns(UserWarning, match="the kernel") as said,
        nngp.KernelTracker(f, np.eye(6), metrics=METRICS) as tracker,
    ):
        tracker(0, 0.0)
    first, second = [str(one.message) for one in said]
    assert first.startswith("the kernels of layers 'gate_0', 'gate_1', 'gate_2' and 2 more are zero at step 0: their")
    assert second.startswith("the kernel of layer 'same' is constant at step 0: its metrics are nan.")


class TestRunningVariance:
    """Haiku takes its first running statistics from the examples of ``init``."""

    @staticmethod
    def net(x, is_training):
        x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training)
        return hk.BatchNorm(True, True, 0.9, name="norm_2")(jnp.tanh(x), is_training)

    X = normal(0, 12, 5)
    TOLD = r"running variance of BatchNorm 'norm' and 1 more is zero, .* f\.init\(rng, x, is_training=True\)\."

    @pytest.mark.parametrize("examples", [X[:1], np.ones((8, 5), np.float32)], ids=["one", "equal"])
    def test_of_one_example_is_said_by_init(self, examples):
        f = nngp.from_haiku(hk.transform_with_state(self.net), is_training=False)
        with pytest.warns(UserWarning, match=self.TOLD) as said:
            params, state = f.init(jax.random.key(1), examples, is_training=True)
        assert len(said) == 1
        # this is why: about 1/sqrt(eps) for each module
        norm = jax.jit(lambda x: f.layers("norm")(params, x, state=state)["norm"])(self.X)
        assert np.nanmax(np.abs(norm)) > 100 or np.isnan(norm).any()

    def test_of_several_examples_is_not(self):
        f = nngp.from_haiku(hk.transform_with_state(self.net), is_training=False)
        f.init(jax.random.key(1), self.X, is_training=True)
        jax.jit(lambda x: f.init(jax.random.key(1), x, is_training=True))(self.X[:1])  # a trace has no numbers

    def test_is_said_by_a_tracker_too(self):
        network = hk.transform_with_state(self.net)
        params, state = network.init(jax.random.key(1), self.X[:1], is_training=True)
        f = nngp.from_haiku(network, is_training=False)
        tracker = nngp.KernelTracker(f.layers(), self.X, schedule=nngp.every(1), metrics=METRICS)
        with pytest.warns(UserWarning, match=self.TOLD):
            tracker(0, params, state=state)
        tracker(1, params, state=state)
        tracker.close()


def batch_norm_in_linen(x):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False, name="norm")(x)

    f = nngp.from_linen(Net(), mutable=["batch_stats"])
    return f, *f.init(jax.random.key(1), x)


def batch_norm_in_nnx(x):
    f = nngp.from_nnx(nnx.Sequential(nnx.BatchNorm(5, rngs=nnx.Rngs(0))))
    return f, *f.split(nnx.Sequential(nnx.BatchNorm(5, rngs=nnx.Rngs(0))))


@pytest.mark.every(2)
@pytest.mark.parametrize("model", [batch_norm_in_linen, batch_norm_in_nnx], ids=["linen", "nnx"])
def test_batch_norm_of_one_example_is_said_with_its_gram(model):
    """In training mode, it subtracts from the only example its mean, which is the example."""
    x = normal(0, 7, 5)
    f, params, state = model(x)
    with pytest.warns(RuntimeWarning, match=r"^all outputs are zero in the output: metrics of it are nan\.$"):
        nngp.gram(f, x[:1], params, state=state)
    nngp.gram(f, x, params, state=state, check=False)
