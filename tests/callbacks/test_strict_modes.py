"""A tracker under JAX's strict modes: it measures as usual, and ends no training that goes on without it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.strict_modes import MODES, in_every_mode, setting

import nngp_plugins as nngp

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
PROBE, W, TARGETS = jnp.asarray(X), jnp.ones((1, 3)), np.arange(8) % 2
NUMBERS = RATE, LOSS = jnp.float32(1), jnp.float32(0.5)
METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("kernel_velocity", "scale")}
STEPS = 2


def f(w, x):
    return {"narrow": (x * w)[:, :1], "wide": jnp.tanh(x * w)}


def make(**options):
    return nngp.KernelTracker(f, PROBE, schedule=nngp.every(1), metrics=METRICS, targets=TARGETS, **options)


def train_in_python(tracker):
    w = W
    step_fn = jax.jit(lambda w: w + RATE)
    for step in range(STEPS):
        tracker(step, w, loss=LOSS, epoch=step)
        w = step_fn(w)


def train_in_a_scan(tracker):
    optimizer = optax.chain(optax.identity(), nngp.track_kernel(tracker))

    def step(carry, _):
        w, opt_state = carry
        updates, opt_state = optimizer.update(jnp.ones_like(w), opt_state, w, loss=LOSS)
        return (optax.apply_updates(w, updates), opt_state), None

    carry = W, optimizer.init(W)
    jax.block_until_ready(jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS))(carry))


def scale(w):
    return [np.mean(y.astype(np.float64) ** 2) for y in (X[:, :1] * w, np.tanh(X * w))]


@in_every_mode
def test_a_training_in_a_scan(mode, tmp_path):
    check_a_training(mode, train_in_a_scan, tmp_path)


def test_a_training_in_python(tmp_path):
    check_a_training(MODES["refusals"], train_in_python, tmp_path)


def check_a_training(mode, train, tmp_path):
    with setting(**mode), make(run=tmp_path, batch_size=4) as tracker:
        train(tracker)
    np.testing.assert_allclose(tracker.history.metric("scale"), [scale(w) for w in (1, 2)], rtol=1e-5)
    assert np.isnan(tracker.history.metric("kernel_velocity")[0]).all()
    assert tracker.history.metric("kernel_velocity")[1, 1] > 0
    np.testing.assert_array_equal(tracker.history.scalar("loss"), [0.5] * STEPS)


@in_every_mode
def test_a_run_that_goes_on(mode, tmp_path):
    with setting(**mode):
        for step, w in enumerate([W, W + RATE]):
            with make(run=tmp_path) as tracker:
                tracker(0, W)  # measured again in a run that goes on
                tracker(step, w)
    np.testing.assert_allclose(tracker.history.metric("scale"), [scale(w) for w in (1, 2)], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_layer_that_diverges(value):
    """The layer of a masked attention holds infinities, and its output is finite."""
    bad, loss = jnp.full((1, 3), value), jnp.float32(value)
    with setting(jax_debug_nans=True, jax_debug_infs=True):
        tracker = make()
        tracker(0, W)
        tracker(1, bad, loss=loss)
        with pytest.warns(UserWarning, match="are not finite at step 1|is not finite at step 1"):
            tracker.close()
    assert tracker.history.diverged == 1
    assert not np.isfinite(tracker.history.rows[1]["loss"])


@pytest.mark.parametrize("wide_first", [True, False])
def test_64_bits_are_switched_between_snapshots(wide_first, tmp_path):
    x = X.astype(np.float64)
    metrics = {name: nngp.metrics.DEFAULT[name] for name in ("relative_change", "scale")}
    with setting(jax_enable_x64=wide_first):
        options = {"schedule": nngp.every(1), "metrics": metrics, "run": tmp_path, "keep_kernels": True}
        tracker = nngp.KernelTracker(f, x, **options)
    for step, wide in enumerate([wide_first, not wide_first, wide_first]):
        with setting(jax_enable_x64=wide):
            tracker(step, np.full((1, 3), 1.0 + step), loss=np.float64(0.5))
            tracker.flush()
    tracker.close()
    np.testing.assert_allclose(tracker.history.metric("scale"), [scale(w) for w in (1, 2, 3)], rtol=1e-6)
    np.testing.assert_allclose(tracker.history.metric("relative_change")[:, 0], [0, 3, 8], rtol=1e-5, atol=1e-6)
    for step in range(3):
        y = X[:, :1] * (1.0 + step)
        np.testing.assert_allclose(tracker.history.kernel("narrow", step), y @ y.T, rtol=1e-5)


@pytest.mark.parametrize("wide_first", [True, False])
def test_64_bits_are_switched_before_a_run_goes_on(wide_first, tmp_path):
    x = X.astype(np.float64)
    with setting(jax_enable_x64=wide_first), nngp.KernelTracker(f, x, metrics=METRICS, run=tmp_path) as tracker:
        tracker(0, np.ones((1, 3)))
    told = f"other probe, as JAX takes it: jax_enable_x64 is {wide_first} there, {not wide_first} now; go on with the"
    with setting(jax_enable_x64=not wide_first), pytest.raises(ValueError, match=told):
        nngp.KernelTracker(f, x, metrics=METRICS, run=tmp_path)


@pytest.mark.every(2)
@pytest.mark.parametrize("wide_first", [True, False])
def test_the_same_probe_in_float32_goes_on_with_other_numbers_of_bits(wide_first, tmp_path):
    for step, wide in enumerate([wide_first, not wide_first, wide_first]):
        with setting(jax_enable_x64=wide), make(run=tmp_path, keep_kernels=True) as tracker:
            tracker(0, np.full((1, 3), 1.0))
            tracker(step, np.full((1, 3), 1.0 + step))
    assert tracker.history.steps.tolist() == [0, 1, 2]
    np.testing.assert_allclose(tracker.history.metric("scale"), [scale(w) for w in (1, 2, 3)], rtol=1e-6)
    y = 3 * X[:, :1]
    np.testing.assert_allclose(tracker.history.kernel("narrow", 2), y @ y.T, rtol=1e-5)
