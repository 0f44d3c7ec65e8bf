"""The tracker as an optax transformation: the numbers of the hook, from within compiled loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from helpers.arrays import normal

import nngp_plugins as nngp

X = normal(0, 40, 8)
Y = np.arange(40) % 3
STEPS = 12
MEASURED = [0, 1, 2, 4, 5, 8, 10]
METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "relative_change", "kernel_velocity", "effective_rank")}
SCALE = {"scale": nngp.metrics.DEFAULT["scale"]}
SCHEDULE = nngp.at(1, 2, 4, 8) | nngp.every(5)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))
        return nn.Dense(3)(x)


NET = Net()
F = nngp.from_linen(NET).layers()
VARIABLES = jax.jit(NET.init)(jax.random.key(1), X)


def tracker(**options):
    return nngp.KernelTracker(F, X[:12], schedule=SCHEDULE, metrics=METRICS, **options)


def loss_fn(params, batch_stats):
    variables = {"params": params, "batch_stats": batch_stats}
    logits, new = NET.apply(variables, X, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean(), new["batch_stats"]


loss_and_grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def train_step(optimizer, params, opt_state, batch_stats):
    (loss, new), grads = loss_and_grads(params, batch_stats)
    model_state = {"batch_stats": batch_stats}
    updates, opt_state = optimizer.update(grads, opt_state, params, model_state=model_state, loss=loss)
    return optax.apply_updates(params, updates), opt_state, new, loss


@pytest.fixture(scope="module")
def hook():
    """What the host-side hook measures before each update."""
    optimizer = optax.with_extra_args_support(optax.sgd(0.3, momentum=0.9))
    carry = VARIABLES["params"], optimizer.init(VARIABLES["params"]), VARIABLES["batch_stats"]
    step_fn = jax.jit(lambda carry: train_step(optimizer, *carry))
    with tracker() as seen:
        for step in range(STEPS):
            *new, loss = step_fn(carry)
            seen(step, carry[0], state={"batch_stats": carry[2]}, loss=loss)
            carry = new
    return seen.history


def assert_same(history, expected, steps=MEASURED):
    assert history.steps.tolist() == steps
    assert history.layers == expected.layers
    assert history.metrics == list(METRICS)
    rows = [list(expected.steps).index(step) for step in steps]
    for metric in history.metrics:
        np.testing.assert_allclose(history.metric(metric), expected.metric(metric)[rows], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(history.scalar("loss"), expected.scalar("loss")[rows], rtol=1e-5)
    assert history.metric("relative_change")[-1].min() > 0.01  # far more than the tolerance


SGD = optax.sgd(0.3, momentum=0.9)


def compiled(optimizer):
    def update(updates, state, params=None, **_):
        return jitted(updates, state, params)

    jitted = jax.jit(optimizer.update)
    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def inside(make, loop):
    with tracker() as seen:
        optimizer = make(nngp.track_kernel(seen))
        if loop == "python":  # what is not ours is compiled
            optimizer = optax.chain(compiled(SGD), nngp.track_kernel(seen))

        def step(carry):
            return train_step(optimizer, *carry)[:3]

        def train(carry):
            if loop == "scan":
                return jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=STEPS)[0]
            return jax.lax.fori_loop(0, STEPS, lambda _, carry: step(carry), carry)

        carry = VARIABLES["params"], optimizer.init(VARIABLES["params"]), VARIABLES["batch_stats"]
        if loop == "jit":
            step = jax.jit(step)
            for _ in range(STEPS):
                carry = step(carry)
        elif loop == "python":
            for _ in range(STEPS):
                carry = step(carry)
        else:
            jax.jit(train)(carry)
    return seen.history


@pytest.mark.every(2)
@pytest.mark.parametrize("loop", ["scan", "fori_loop", "python", "jit"])
def test_chain(hook, loop):
    assert_same(inside(lambda track: optax.chain(SGD, track), loop), hook)


def test_inject_hyperparams(hook):
    def make(track):
        return optax.inject_hyperparams(
            lambda learning_rate: optax.chain(track, optax.sgd(learning_rate, momentum=0.9))
        )(0.3)

    assert_same(inside(make, "scan"), hook)


def test_multi_steps():
    """A step is an update of the parameters: every third batch."""
    history = inside(lambda track: optax.MultiSteps(optax.chain(optax.sgd(0.3, momentum=0.9), track), 3), "scan")
    assert history.steps.tolist() == [0, 1, 2]
    assert (np.diff(history.metric("relative_change")[:, 0]) > 0.01).all()


def test_train_state():
    net = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
    f = nngp.from_linen(net)

    def loss_fn(params):
        return optax.softmax_cross_entropy_with_integer_labels(f(params, X), Y).mean()

    probe = X[:12]
    with (
        nngp.KernelTracker(f.layers(), probe, schedule=SCHEDULE, metrics=METRICS) as inner,
        nngp.KernelTracker(f.layers(), probe, schedule=SCHEDULE, metrics=METRICS) as outer,
    ):
        tx = optax.chain(optax.sgd(0.3, momentum=0.9), nngp.track_kernel(inner))
        state = TrainState.create(apply_fn=net.apply, params=jax.jit(f.init)(jax.random.key(1), X)[0], tx=tx)

        @jax.jit
        def step(state):
            loss, grads = jax.value_and_grad(loss_fn)(state.params)
            return state.apply_gradients(grads=grads), loss

        for i in range(STEPS):
            new, loss = step(state)
            outer(i, state.params, loss=loss)
            state = new
    assert inner.history.scalars == []  # apply_gradients passes nothing on
    assert inner.history.steps.tolist() == MEASURED
    for metric in ("cka", "kernel_velocity", "effective_rank"):
        np.testing.assert_allclose(
            inner.history.metric(metric), outer.history.metric(metric)[:-1], rtol=2e-5, atol=2e-6
        )


def test_nnx_optimizer():
    model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(16, 3, rngs=nnx.Rngs(1)))
    f = nngp.from_nnx(model).layers()

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(X), Y).mean()

    probe = X[:12]
    with (
        nngp.KernelTracker(f, probe, schedule=SCHEDULE, metrics=METRICS) as inner,
        nngp.KernelTracker(f, probe, schedule=SCHEDULE, metrics=METRICS) as outer,
    ):
        optimizer = nnx.Optimizer(
            model, optax.chain(optax.sgd(0.3, momentum=0.9), nngp.track_kernel(inner)), wrt=nnx.Param
        )

        @nnx.jit
        def step(model, optimizer):
            loss, grads = nnx.value_and_grad(loss_fn)(model)
            optimizer.update(model, grads, loss=loss)
            return loss

        for i in range(STEPS):
            values = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
            outer(i, values, loss=step(model, optimizer))
        inner.flush()
        outer.flush()
        assert_same(inner.history, outer.history)


def test_two_probes_side_by_side():
    with tracker() as train, nngp.KernelTracker(F, X[20:30], schedule=nngp.every(6), metrics=METRICS) as test:
        optimizer = optax.chain(nngp.track_kernel(train), optax.sgd(0.1), nngp.track_kernel(test))
        carry = VARIABLES["params"], optimizer.init(VARIABLES["params"]), VARIABLES["batch_stats"]
        jax.lax.scan(lambda carry, _: (train_step(optimizer, *carry)[:3], None), carry, length=8)
    assert train.history.steps.tolist() == [0, 1, 2, 4, 5]
    assert test.history.steps.tolist() == [0, 6]


def test_updates_are_left_alone():
    with tracker() as seen:
        track = nngp.track_kernel(seen)
        grads = jax.tree.map(jnp.ones_like, VARIABLES["params"])
        state = track.init(VARIABLES["params"])
        batch_stats = {"batch_stats": VARIABLES["batch_stats"]}
        updates, state = track.update(grads, state, VARIABLES["params"], model_state=batch_stats)
        assert updates is grads
        assert int(state.step) == 1
    assert seen.history.steps.tolist() == [0]


def test_updates_in_python_are_compiled_once():
    traced, x = [], X[:12].reshape(12, -1)

    def f(w, x):
        traced.append(w)
        return w * x

    with nngp.KernelTracker(f, x, schedule=nngp.every(2), metrics=SCALE) as seen:
        track, counts = nngp.track_kernel(seen), []
        state = track.init(jnp.float32(1))
        for step in range(6):
            _, state = track.update(jnp.float32(0), state, jnp.float32(1 + step))
            counts.append(len(traced))
    assert 0 < counts[0] == counts[-1]
    assert seen.history.steps.tolist() == [0, 2, 4]
    trace = np.trace(x.astype(np.float64) @ x.T) / x.shape[1] / 12
    np.testing.assert_allclose(seen.history.metric("scale")[:, 0], [trace, 9 * trace, 25 * trace], rtol=1e-5)


def test_a_new_training_with_the_same_tracker_is_told():
    def train(seen, opt_state=None):
        optimizer = optax.chain(optax.sgd(0.1), nngp.track_kernel(seen))
        w = jnp.eye(8)
        state, update = optimizer.init(w), jax.jit(optimizer.update)
        for _ in range(4):
            updates, state = update(w, state, w)
            w = optax.apply_updates(w, updates)

    seen = nngp.KernelTracker(lambda w, x: x @ w, X[:12], schedule=nngp.every(1), metrics=SCALE)
    train(seen)
    train(seen)
    with pytest.warns(UserWarning, match=r"track_kernel: step 0 comes after step 3, .* Make a new tracker"):
        seen.close()
    assert seen.history.steps.tolist() == [0, 1, 2, 3]


def test_without_params():
    with tracker() as seen:
        track = nngp.track_kernel(seen)
        with pytest.raises(ValueError, match=r"track_kernel measures params; pass them: optimizer.update\("):
            track.update({}, track.init({}))


PLACES = {  # where track_kernel must not stand, and what the message says
    "partition": (
        lambda track: optax.partition({"a": optax.chain(SGD, track), "b": SGD}, {"Dense_0": "a", "Dense_1": "b"}),
        r"params\['Dense_1'\] is masked, because optax.partition .* optax.chain\(optax.partition",
    ),
    "masked": (
        lambda track: optax.masked(track, {"Dense_0": False, "Dense_1": True}),
        r"params\['Dense_0'\] is masked",
    ),
    "lookahead": (
        lambda track: optax.chain(optax.lookahead(SGD, 2, 0.5), track),
        r"params is a LookaheadParams, .* optax.lookahead\(optax.chain\(optimizer, nngp.track_kernel\(tracker\)\)",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_places_that_get_other_parameters(place):
    make, message = PLACES[place]
    params = {name: {"kernel": jnp.ones((8, 8))} for name in ("Dense_0", "Dense_1")}
    if place == "lookahead":
        params = optax.LookaheadParams.init_synced(params)
    optimizer = make(nngp.track_kernel(nngp.KernelTracker(linear, X[:12], metrics=SCALE)))
    with pytest.raises(ValueError, match=message):
        optimizer.init(params)
    if place == "lookahead":
        with pytest.raises(ValueError, match=r"call tracker\(step, params.slow\)"):
            nngp.KernelTracker(linear, X[:12], metrics=SCALE)(0, params)


def linear(params, x):
    return x @ params["Dense_0"]["kernel"]


def test_parameters_that_are_not_those_trained():
    """Averages, as of EMA or ``schedule_free_eval_params``, and both sets of a lookahead."""
    fast, average, slow = (
        nngp.KernelTracker(lambda w, x: x * w, X[:12], schedule=nngp.every(1), metrics=SCALE) for _ in range(3)
    )
    track = nngp.track_kernel(average)
    optimizer = optax.lookahead(optax.chain(optax.sgd(1.0), nngp.track_kernel(fast)), 3, 0.5)
    params = optax.LookaheadParams.init_synced(jnp.float32(1))

    @jax.jit
    def step(params, opt_state, track_state, averages):
        updates, opt_state = optimizer.update(jnp.float32(-1), opt_state, params)
        _, track_state = track.update(updates, track_state, averages)
        averages = optax.incremental_update(params.fast, averages, 0.5)
        return optax.apply_updates(params, updates), opt_state, track_state, averages

    carry = params, optimizer.init(params), track.init(params.fast), params.fast
    with fast, average, slow:
        for i in range(4):
            slow(i, carry[0].slow)
            carry = step(*carry)
    x = np.mean(np.asarray(X[:12], np.float64) ** 2)
    for seen, expected in ((fast, [1, 2, 3, 2.5]), (average, [1, 1, 1.5, 2.25]), (slow, [1, 1, 1, 2.5])):
        np.testing.assert_allclose(seen.history.metric("scale")[:, 0], x * np.square(expected), rtol=1e-5)


def test_batches_of_a_model_in_training_mode_cause_one_warning_and_no_end_of_training():
    f = nngp.from_linen(NET, train=True, mutable=["batch_stats"]).layers("BatchNorm_0")
    seen = nngp.KernelTracker(f, X[:12], schedule=SCHEDULE, batch_size=5, metrics=SCALE)
    optimizer = optax.chain(optax.sgd(0.3), nngp.track_kernel(seen))
    carry = VARIABLES["params"], optimizer.init(VARIABLES["params"]), VARIABLES["batch_stats"]

    def step(carry, _):
        *new, loss = train_step(optimizer, *carry)
        return tuple(new), loss

    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS))(carry)
    with pytest.warns(UserWarning, match="output 'BatchNorm_0' of f depends on the other examples in") as warned:
        seen.close()
    assert len(warned) == 1
    assert np.isfinite(losses).all()
    assert seen.history.steps.tolist() == MEASURED
