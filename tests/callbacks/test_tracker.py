"""The tracker on real networks, against the metrics recomputed from saved weights in float64 NumPy."""

from collections import OrderedDict
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
from helpers.arrays import normal
from helpers.oracles import numbers
from sklearn.datasets import load_digits

import nngp_plugins as nngp

METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "relative_change", "effective_rank", "scale")}
SCALE = {"scale": METRICS["scale"]}


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return (images / 8 - 1).astype(np.float32), labels.astype(np.int32)


def assert_history(history, layers_at):
    """Every number of every layer at every snapshot; `layers_at` are the true activations by step."""
    first = layers_at[int(history.steps[0])]
    assert history.layers == list(first)
    for i, step in enumerate(history.steps):
        for j, layer in enumerate(history.layers):
            expected = numbers(layers_at[int(step)][layer], first[layer])
            for metric in METRICS:
                found = history.metric(metric)[i, j]
                assert found == pytest.approx(expected[metric], rel=1e-3, abs=1e-5), (step, layer, metric)
    # and training has moved the kernels by far more than the tolerance
    assert history.metric("relative_change")[-1].min() > 0.05
    np.testing.assert_allclose(history.metric("cka")[0], 1, rtol=1e-5)
    np.testing.assert_array_equal(history.metric("relative_change")[0], 0)


def mlp_layers(weights, x):
    """Activations of a ReLU network in float64, from {layer: (kernel, bias)}."""
    layers = {}
    for name, (kernel, bias) in weights.items():
        layers[name] = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
        x = np.maximum(layers[name], 0)
    return layers


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        # names against the alphabet, to see that columns are in forward order
        x = nn.relu(nn.Dense(16, name="wide")(x))
        x = nn.relu(nn.Dense(12, name="narrow")(x))
        return nn.Dense(10, name="head")(x)


class NNXMLP(nnx.Module):
    def __init__(self, rngs):
        self.wide = nnx.Linear(64, 16, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.wide(x)))


def haiku_net(x, is_training=False):
    x = hk.Linear(16, name="wide")(x)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9, name="norm")(x, is_training)
    return hk.Linear(10, name="head")(jax.nn.relu(x))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.mark.usefixtures("full_precision")
class TestRealTraining:
    def test_linen(self, digits):
        x, y = digits
        probe, labels = x[-30:], y[-30:]
        f = nngp.from_linen(LinenMLP())
        params, _ = jax.jit(f.init)(jax.random.key(0), x[:1])
        optimizer = optax.adam(1e-2)
        opt_state = optimizer.init(params)

        @jax.jit
        def train_step(params, opt_state, x, y):
            loss, gradient = jax.value_and_grad(lambda params: cross_entropy(f(params, x), y))(params)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return optax.apply_updates(params, updates), opt_state, loss

        schedule = nngp.log_spaced(per_decade=3) | nngp.every(15)
        tracker = nngp.KernelTracker(f.layers(), probe, targets=labels, schedule=schedule)
        saved, losses, measured = {}, {}, []
        for step in range(41):
            due = tracker.due(step)
            saved[step] = mlp_layers(
                {n: (params[n]["kernel"], params[n]["bias"]) for n in ("wide", "narrow", "head")}, probe
            )
            batch = slice(32 * step, 32 * step + 32)
            new_params, opt_state, loss = train_step(params, opt_state, x[batch], y[batch])
            losses[step] = float(loss)
            assert tracker(step, params, loss=loss) is due
            measured += [step] if due else []
            params = new_params
        tracker.close()
        assert measured == [0, 1, 3, 5, 10, 15, 22, 30]
        assert tracker.history.steps.tolist() == [*measured, 40]
        assert tracker.history.metrics[: len(nngp.metrics.DEFAULT)] == list(nngp.metrics.DEFAULT)
        assert_history(tracker.history, saved)
        np.testing.assert_allclose(tracker.history.scalar("loss"), [losses[s] for s in tracker.history.steps])
        assert (np.diff([row["seconds"] for row in tracker.history.rows]) >= 0).all()

    def test_live_nnx_model(self, digits):
        x, y = digits
        probe = x[-30:]
        model = NNXMLP(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        saved = {}

        @nnx.jit
        def train_step(model, optimizer):
            optimizer.update(model, nnx.grad(lambda model: cross_entropy(model(x[:64]), y[:64]))(model))

        f = nngp.from_nnx(model).layers()
        with nngp.KernelTracker(f, probe, schedule=nngp.every(4), metrics=METRICS) as tracker:
            for step in range(11):
                if step:
                    train_step(model, optimizer)
                weights = {n: (getattr(model, n).kernel[...], getattr(model, n).bias[...]) for n in ("wide", "head")}
                saved[step] = mlp_layers(weights, probe)
                tracker(step, model)
        assert tracker.history.steps.tolist() == [0, 4, 8, 10]
        assert_history(tracker.history, saved)

    def test_haiku_with_state(self, digits):
        x, y = digits
        probe = x[-30:]
        transformed = hk.transform_with_state(haiku_net)
        f = nngp.from_haiku(transformed)
        params, state = jax.jit(partial(f.init, is_training=True))(jax.random.key(0), x[:64])

        @jax.jit
        def train_step(params, state, step):
            def loss(params):
                logits, new_state = transformed.apply(params, state, None, x[:64], is_training=True)
                return cross_entropy(logits, y[:64]), new_state

            gradient, new_state = jax.grad(loss, has_aux=True)(params)
            return jax.tree.map(lambda w, g: w - 0.5 * g, params, gradient), new_state

        saved = {}
        with nngp.KernelTracker(f.layers(), probe, schedule=nngp.every(4), metrics=METRICS) as tracker:
            for step in range(9):
                w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
                s = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state)
                mean, var = (s[f"norm/~/{ema}_ema"]["average"] for ema in ("mean", "var"))
                wide = probe.astype(np.float64) @ w["wide"]["w"] + w["wide"]["b"]
                norm = (wide - mean) / np.sqrt(var + 1e-5) * w["norm"]["scale"] + w["norm"]["offset"]
                head = np.maximum(norm, 0) @ w["head"]["w"] + w["head"]["b"]
                saved[step] = {"wide": wide, "norm": norm.reshape(30, -1), "head": head}
                tracker(step, params, state=state)
                params, state = train_step(params, state, step)
        assert tracker.history.steps.tolist() == [0, 4, 8]
        assert_history(tracker.history, saved)


# From here on, the network is x @ w, whose kernels are known.


@pytest.fixture
def probe():
    return normal(1, 8, 3)


def make(f, probe, **options):
    """A tracker of the scale alone, so that little is compiled."""
    return nngp.KernelTracker(f, probe, **{"metrics": SCALE, **options})


def linear(w, x):
    return {"hidden": x @ w}


@pytest.fixture
def tracker(probe):
    return make(linear, probe, schedule=nngp.every(5))


W = jnp.eye(3)


class TestOutputs:
    def test_one_array(self, probe):
        with make(lambda w, x: x @ w, probe) as tracker:
            tracker(0, W)
        assert tracker.history.layers == ["output"]
        assert tracker.history.metric("scale")[0, 0] == pytest.approx(np.mean(probe**2), rel=1e-5)

    def test_nested_and_in_order(self, probe):
        def f(w, x):
            return OrderedDict(second=x @ w, first=(2 * x @ w, {"deep": 3 * x @ w}), none=None)

        with make(f, probe) as tracker:
            tracker(0, W)
        assert tracker.history.layers == ["second", "first/0", "first/1/deep"]
        scale = np.mean(probe**2)
        np.testing.assert_allclose(tracker.history.metric("scale"), [[scale, 4 * scale, 9 * scale]], rtol=1e-5)

    def test_images_and_vectors(self, probe):
        with make(lambda w, x: (jnp.tile(x[:, None], (1, 5, 1)), x[:, 0]), probe) as tracker:
            tracker(0, W)
        expected = [[np.mean(probe**2), np.mean(probe[:, 0] ** 2)]]
        np.testing.assert_allclose(tracker.history.metric("scale"), expected, rtol=1e-5)

    def test_pytree_probe(self, probe):
        with make(lambda w, x: x["u"] @ w + x["v"], {"u": probe, "v": probe}) as tracker:
            tracker(0, W)
        assert tracker.history.metric("scale")[0, 0] == pytest.approx(4 * np.mean(probe**2), rel=1e-5)

    @pytest.mark.usefixtures("full_precision")
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
    def test_other_dtypes(self, probe, dtype):
        with make(lambda w, x: (9 * x @ w).astype(dtype), probe) as tracker:
            tracker(0, W)
        expected = np.mean((9 * probe).astype(dtype).astype(np.float32) ** 2)
        assert tracker.history.metric("scale")[0, 0] == pytest.approx(expected, rel=1e-5)

    def test_offset_features_keep_their_digits(self, probe):
        # centring K in float32 would leave noise of features with a large mean
        with make(lambda w, x: x @ w + 1000, probe, schedule=nngp.every(1), metrics=METRICS) as tracker:
            tracker(0, W)
            tracker(1, W.at[0, 0].set(3))
        y = np.asarray(probe, np.float64)
        expected = numbers(y * [3, 1, 1], y)["cka"]
        assert tracker.history.metric("cka")[1, 0] == pytest.approx(expected, abs=2e-4)


class TestSteps:
    def test_first_call_and_close_always_measure(self, tracker):
        assert [step for step in (3, 4, 6, 8, 12, 13) if tracker(step, W)] == [3, 6, 12]
        tracker.close()
        assert tracker.history.steps.tolist() == [3, 6, 12, 13]

    def test_close_does_not_measure_twice(self, tracker):
        tracker(0, W)
        tracker(5, W)
        tracker.close()
        tracker.close()
        assert tracker.history.steps.tolist() == [0, 5]

    def test_close_without_a_call(self, tracker):
        tracker.close()
        assert len(tracker.history) == 0

    @pytest.mark.parametrize("integer", [np.int64, jnp.int32])
    def test_other_integers(self, tracker, integer):
        tracker(integer(0), W)
        tracker(integer(7), W)
        tracker.close()
        assert [row["step"] for row in tracker.history.rows] == [0, 7]

    def test_going_back(self, tracker):
        tracker(7, W)
        with pytest.raises(ValueError, match="step=6 comes after step 7; steps may be skipped, but not go back"):
            tracker(6, W)
        tracker(7, W)

    def test_fraction(self, tracker):
        with pytest.raises(TypeError, match="integer"):
            tracker(1.5, W)

    def test_use_after_close(self, tracker):
        tracker(0, W)
        tracker.close()
        for use in (lambda: tracker(1, W), lambda: tracker.due(1)):
            with pytest.raises(RuntimeError, match="this tracker is closed; make a new one"):
                use()

    def test_flush(self, tracker):
        tracker(0, W, loss=1.0)
        tracker.flush()
        assert tracker.history.rows[0]["loss"] == 1.0
        tracker.close()
        assert len(tracker.history) == 1

    def test_with_closes(self, probe):
        with make(linear, probe, schedule=nngp.every(5)) as tracker:
            tracker(0, W)
            tracker(3, W)
        assert tracker.history.steps.tolist() == [0, 3]
        with pytest.raises(RuntimeError, match="closed"):
            tracker.due(4)

    def test_an_error_in_training_keeps_what_was_measured(self, probe):
        tracker = make(linear, probe, schedule=nngp.every(5))

        def train():
            with tracker:
                tracker(0, W)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train()
        assert tracker.history.steps.tolist() == [0]


class TestScalars:
    def test_of_every_kind(self, tracker):
        tracker(0, W, loss=jnp.float32(0.5), accuracy=np.float64(0.25), epoch=3)
        tracker(5, W, loss=jnp.asarray(2, jnp.bfloat16))
        tracker.close()
        assert set(tracker.history.scalars) == {"loss", "accuracy", "epoch"}
        np.testing.assert_array_equal(tracker.history.scalar("loss"), [0.5, 2])
        np.testing.assert_array_equal(tracker.history.scalar("accuracy"), [0.25, np.nan])
        assert tracker.history.rows[0]["epoch"] == 3

    def test_close_has_those_of_the_last_call(self, tracker):
        for step in range(8):
            tracker(step, W, loss=float(step))
        tracker.close()
        np.testing.assert_array_equal(tracker.history.scalar("loss"), [0, 5, 7])

    @pytest.mark.parametrize("name", ["seconds", "kernel/hidden/cka"])
    def test_reserved_names(self, tracker, name):
        with pytest.raises(ValueError, match=f"the scalar '{name}' has a name of the tracker's own; choose another"):
            tracker(0, W, **{name: 1.0})

    def test_unknown_metric(self, tracker):
        tracker(0, W)
        tracker.close()
        with pytest.raises(KeyError, match="'loss' was not measured; there is scale"):
            tracker.history.metric("loss")


class TestBadInput:
    @pytest.mark.parametrize("targets", [np.zeros(7), np.zeros((9, 2)), 3])
    def test_targets(self, probe, targets):
        with pytest.raises(ValueError, match=r"targets of shape \(.*\) do not label the 8 examples of the probe"):
            nngp.KernelTracker(linear, probe, targets=targets)

    @pytest.mark.parametrize(
        ("probe", "sizes"),
        [(np.zeros((0, 3)), "[0]"), (1.0, "[0]"), (None, "[]"), ({"a": np.zeros(3), "b": np.zeros(4)}, "[3, 4]")],
    )
    def test_probe(self, probe, sizes):
        with pytest.raises(ValueError, match="probe_x must hold arrays with one batch of examples in front") as error:
            nngp.KernelTracker(linear, probe)
        assert f"got batch sizes {sizes}" in str(error.value)

    @pytest.mark.parametrize(
        ("f", "layer"),
        [
            (lambda w, x: {"mean": x.mean(0)}, "output 'mean' of f has shape (3,)"),
            (lambda w, x: x.sum(), "the output of f has shape ()"),
        ],
    )
    def test_outputs_without_the_batch(self, probe, f, layer):
        with pytest.raises(ValueError, match="for a batch of 8 examples of probe_x") as error:
            nngp.KernelTracker(f, probe)(0, W)
        assert layer in str(error.value)

    def test_train_state(self, probe):
        f = nngp.from_linen(nn.Dense(2))
        params, _ = jax.jit(f.init)(jax.random.key(0), probe)
        train_state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1))
        with pytest.raises(TypeError, match=r"params is a TrainState; pass its \.params"):
            nngp.KernelTracker(f.layers(), probe)(0, train_state)


class TestDegenerateKernels:
    def test_a_zero_layer_warns_once_and_is_nan_until_it_is_not_zero(self, probe):
        # a head that starts at zero and then trains, as in Haiku's ResNets
        tracker = make(lambda w, x: {"alive": x, "head": w * x}, probe, schedule=nngp.every(1), metrics=METRICS)

        def train():
            for step in range(4):
                tracker(step, np.float32(0 if step < 2 else step))
            tracker.close()

        told = (
            r"layer 'head' is zero at step 0: its metrics are nan\. Its reference will be its first kernel that is not"
        )
        with pytest.warns(UserWarning, match=told) as seen:
            train()
        assert len(seen) == 1
        history = tracker.history
        np.testing.assert_allclose(history.metric("cka")[:, 1], [np.nan, np.nan, 1, 1], rtol=1e-5)
        np.testing.assert_allclose(history.metric("relative_change")[:, 1], [np.nan, np.nan, 0, 5 / 4], rtol=1e-5)
        assert np.isfinite(history.metric("effective_rank")[:, 1]).tolist() == [False, False, True, True]
        np.testing.assert_allclose(history.metric("cka")[:, 0], 1, rtol=1e-5)
        np.testing.assert_allclose(history.metric("scale")[3, 1], 9 * np.mean(probe**2), rtol=1e-5)

    @pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
    def test_params_that_are_not_finite(self, probe, value):
        tracker = make(linear, probe, schedule=nngp.every(5), metrics=METRICS)
        tracker(0, W)
        tracker(5, value * W)
        with pytest.warns(UserWarning, match="layer 'hidden' is not finite at step 5: its metrics are nan"):
            tracker.close()
        for metric in METRICS:
            assert np.isnan(tracker.history.metric(metric)[:, 0]).tolist() == [False, True]


class TestDonation:
    def test_close_warns_of_donated_params(self, tracker):
        train_step = jax.jit(lambda w: 2 * w, donate_argnums=0)
        w = jnp.eye(3)
        for step in range(3):
            tracker(step, w)
            w = train_step(w)
        told = (
            r"close\(\) cannot measure step 2: its parameters were donated to a later step. Call the tracker once more"
        )
        with pytest.warns(UserWarning, match=told):
            tracker.close()
        assert tracker.history.steps.tolist() == [0]

    def test_what_was_measured_survives_donation(self, probe, tracker):
        train_step = jax.jit(lambda w: 2 * w, donate_argnums=0)
        w = jnp.eye(3)
        for step in range(5):
            tracker(step, w)
            w = train_step(w)
        tracker(5, w)
        tracker.close()
        expected = np.mean(probe**2) * np.array([1, 4**5])
        np.testing.assert_allclose(tracker.history.metric("scale")[:, 0], expected, rtol=1e-5)


class TestCost:
    def test_compiles_once(self, probe):
        traces = []

        def f(w, x):
            traces.append(w)
            return linear(w, x)

        with make(f, probe, schedule=nngp.every(1)) as tracker:
            for step in range(6):
                tracker(step, step * jnp.eye(3) + 1)
        assert len(tracker.history) == 6
        assert len(traces) == 1

    def test_a_call_that_does_not_measure_does_not_run_the_model(self, probe):
        runs = []

        def f(w, x):
            jax.debug.callback(lambda: runs.append(None))
            return linear(w, x)

        tracker = make(f, probe, schedule=nngp.every(4))
        for step in range(10):
            tracker(step, W)
            jax.effects_barrier()
            assert len(runs) == 1 + step // 4
        tracker.close()


def test_custom_metrics(probe):
    metrics = {
        "trace": lambda gram, reference: gram.trace(),
        "first": lambda gram, reference: reference.trace(),
        "cka": nngp.metrics.cka,
    }
    with make(linear, probe, schedule=nngp.every(1), metrics=metrics) as tracker:
        tracker(0, W)
        tracker(1, 2 * W)
    assert tracker.history.metrics == ["trace", "first", "cka"]
    trace = np.sum(probe**2) / 3
    np.testing.assert_allclose(tracker.history.metric("trace")[:, 0], [trace, 4 * trace], rtol=1e-5)
    np.testing.assert_allclose(tracker.history.metric("first")[:, 0], [trace, trace], rtol=1e-5)
