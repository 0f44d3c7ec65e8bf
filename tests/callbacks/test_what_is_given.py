"""What is given to a call counts as it was at the call, whatever training writes to later."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nngp_plugins as nngp

SCALE = {"scale": nngp.metrics.DEFAULT["scale"]}
RNG = np.random.default_rng(0)
# So large that JAX computes some milliseconds, and reads arrays of NumPy where they lie.
X, LARGE = (RNG.normal(size=(384, 384)).astype(np.float32) for _ in range(2))
PROBE, W = X[:8, :4].copy(), LARGE[:4, :5].copy()


def linear(w, x):
    return x @ w


def make(f=linear, probe=PROBE, **options):
    return nngp.KernelTracker(f, probe, **{"schedule": nngp.every(1), "metrics": SCALE, **options})


def scale(w, x=PROBE):
    return np.mean((x.astype(np.float64) @ w) ** 2)


def assert_scales(tracker, expected):
    np.testing.assert_allclose(tracker.history.metric("scale")[:, 0], expected, rtol=1e-5)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        inner = self.variable("stats", "inner", jnp.zeros, (384, 384)).value
        return nn.Dense(384, use_bias=False)(x @ inner)


class TestArraysOfNumPy:
    def test_parameters_at_every_snapshot(self):
        w, expected = LARGE.copy(), []
        with make(probe=X) as tracker:
            for step in range(8):
                expected.append(scale(w, X))
                tracker(step, w)
                w *= 1.1
        assert_scales(tracker, expected)

    def test_state_of_a_model(self):
        params, inner, expected = {"Dense_0": {"kernel": jnp.asarray(LARGE)}}, LARGE.copy(), []
        with make(nngp.from_linen(Net()), X) as tracker:
            for step in range(8):
                expected.append(scale(LARGE, X @ inner))
                tracker(step, params, state={"stats": {"inner": inner}})
                inner *= 1.1
        assert_scales(tracker, expected)

    @pytest.mark.parametrize("pack", [lambda w: w, lambda w: {"w": w}, lambda w: [w]], ids=["array", "dict", "list"])
    def test_parameters_of_the_last_call(self, pack):
        w = W.copy()
        tracker = make(lambda params, x: x @ jax.tree.leaves(params)[0], schedule=nngp.at(50))
        for step in range(4):
            tracker(step, pack(w))
            last = scale(w)
            w *= 2
        tracker.close()
        assert_scales(tracker, [scale(W), last])

    def test_a_live_model(self):
        model = nnx.Linear(4, 5, use_bias=False, rngs=nnx.Rngs(0))
        model.kernel[...] = w = W.copy()
        tracker = make(nngp.from_nnx(model), schedule=nngp.at(50))
        tracker(0, model)
        tracker(1, model)
        model.kernel = nnx.Param(w)
        tracker(2, model)
        w *= 2
        with pytest.warns(UserWarning, match="cannot measure step 2: its parameters were trained further since"):
            tracker.close()
        assert_scales(tracker, [scale(W)])

    def test_given_for_the_first_time_at_the_last_call(self):
        tracker = make(schedule=nngp.at(50))
        tracker(0, jnp.asarray(W))
        tracker(1, W)
        with pytest.warns(UserWarning, match="its parameters are NumPy arrays, unlike those before"):
            tracker.close()
        assert tracker.history.steps.tolist() == [0]

    def test_scalars(self):
        """An epoch that a loop counts in place, which the schedule compares with that of the call before."""
        epoch, loss = np.zeros(()), np.ones(())
        with make(schedule=nngp.every(2, of="epoch")) as tracker:
            for step in range(5):
                tracker(step, W, epoch=epoch, loss=loss)
                epoch += 1
                loss *= 2
        assert tracker.history.steps.tolist() == [0, 2, 4]
        np.testing.assert_array_equal(tracker.history.scalar("epoch"), [0, 2, 4])
        np.testing.assert_array_equal(tracker.history.scalar("loss"), [1, 4, 16])

    def test_what_a_tracker_is_made_of(self, tmp_path):
        probe, targets, rng = PROBE.copy(), np.arange(8) % 2, np.asarray(jax.random.PRNGKey(0)).copy()

        def noisy(w, x, rng):
            return x @ w + jax.random.normal(rng, (8, 5))

        expected = np.asarray(noisy(W, PROBE, jax.random.PRNGKey(0)), np.float64)
        with make(noisy, probe, targets=targets, rng=rng, run=tmp_path) as tracker:
            for given in (probe, targets, rng):
                given[:] = 0
            tracker(0, W)
        assert_scales(tracker, [np.mean(expected**2)])
        np.testing.assert_array_equal(np.load(tmp_path / "reference.npz")["targets"], np.arange(8) % 2)


@pytest.mark.parametrize("nested", [True, False])
def test_a_dict_that_gets_new_parameters(nested):
    params = {"layer": {"w": jnp.asarray(W)}}
    layer = params["layer"] if nested else params
    if not nested:
        layer["w"] = params.pop("layer")["w"]
    tracker = make(lambda params, x: x @ jax.tree.leaves(params)[0], schedule=nngp.at(50))
    for step in range(3):
        tracker(step, params)
        layer["w"] = layer["w"] * 2
    tracker.close()
    assert_scales(tracker, [scale(W), scale(4 * W)])


class TestDonatedScalars:
    @pytest.fixture
    def add(self):
        return jax.jit(lambda total: total + 1, donate_argnums=0)

    def test_the_state_of_an_optimizer(self):
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)

        @partial(jax.jit, donate_argnums=(0, 1))
        def train_step(w, opt_state):
            updates, opt_state = optimizer.update(w, opt_state, w)
            return optax.apply_updates(w, updates), opt_state

        w = jnp.asarray(LARGE)
        opt_state = optimizer.init(w)
        with make(probe=X) as tracker:
            for step in range(4):
                w, opt_state = train_step(w, opt_state)
                tracker(step, w, rate=opt_state.hyperparams["learning_rate"], count=opt_state.count)
        np.testing.assert_array_equal(tracker.history.scalar("rate"), [0.5] * 4)
        np.testing.assert_array_equal(tracker.history.scalar("count"), [1, 2, 3, 4])

    def test_at_the_last_call(self, add):
        total, tracker = jnp.float32(0), make(schedule=nngp.at(50))
        for step in range(4):
            tracker(step, W, total=total)
            tracker.flush()
            total = add(total)
        tracker.close()
        np.testing.assert_array_equal(tracker.history.scalar("total"), [0, 3])

    def test_a_schedule_that_reads_it(self, add):
        epoch = jnp.int32(0)
        with make(schedule=nngp.every(2, of="epoch")) as tracker:
            for step in range(7):
                assert tracker.due(step, epoch=epoch) == (step % 2 == 0)
                tracker(step, W, epoch=epoch)
                epoch = add(epoch)
        assert tracker.history.steps.tolist() == [0, 2, 4, 6]

    def test_only_after_the_last_call(self, add):
        tracker = make(schedule=nngp.at(50))
        tracker(0, W)
        total = jnp.float32(3)
        tracker(1, W, total=total)
        add(total)
        with pytest.warns(UserWarning, match=r"close\(\) cannot measure step 1: total= was donated to a later step"):
            tracker.close()

    def test_a_schedule_that_compares_with_one_that_is_gone(self, add):
        """From the second call on nothing has shown that scalars are donated, so that one call measures too early."""
        tracker = make(schedule=nngp.every(100, of="epoch"))
        tracker(0, W, epoch=0)
        epoch = jnp.int32(1)
        tracker(1, W, epoch=epoch)
        add(epoch)
        assert tracker(2, W, epoch=2)
        assert not tracker(3, W, epoch=3)
        tracker.close()

    def test_before_the_call(self, add):
        total = jnp.float32(3)
        add(total)
        with pytest.raises(ValueError, match="total= was donated before this call; pass the number that came after"):
            make()(0, W, total=total)
