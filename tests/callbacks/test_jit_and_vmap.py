"""Trackers of whole trainings that JAX transforms: made inside a compiled function, and mapped over seeds."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nngp_plugins as nngp

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
LABELS = np.arange(12) % 3
NET = nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(3)])
F = nngp.from_linen(NET)
PARAMS, _ = jax.jit(F.init)(jax.random.key(0), X)
METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("relative_change", "scale")}


def drawing(params, x, rng):
    return F(params, x + 0.1 * jax.random.normal(rng, x.shape))


def make(f=F, probe_x=X, **options):
    return nngp.KernelTracker(f, probe_x, **{"schedule": nngp.every(2), "metrics": METRICS, **options})


def test_calls_within_a_compiled_function():
    calls = {
        "step": lambda v: tracker(v.astype(int), PARAMS),
        "loss": lambda v: tracker(1, PARAMS, loss=v),
        "params": lambda v: tracker(1, jax.tree.map(lambda w: w * v, PARAMS)),
        "the snapshot": lambda v: tracker(1, PARAMS),
    }
    tracker = make(schedule=nngp.every(1))
    for name, call in calls.items():
        told = rf"{name} is traced, because the tracker is called inside a compiled .* nngp.track_kernel\(tracker\)"
        with pytest.raises(TypeError, match=told):
            jax.jit(call)(np.float32(1))
    assert tracker(0, PARAMS)  # The calls that were refused do not count.
    tracker.close()
    assert tracker.history.steps.tolist() == [0]


def test_a_call_within_a_compiled_function_that_does_not_measure():
    tracker = make(schedule=nngp.at(50))
    tracker(0, PARAMS)
    jax.jit(lambda v: tracker(1, {"params": v}))(jnp.float32(1))
    with pytest.raises(TypeError, match="params is traced, because the tracker is called inside a compiled function"):
        tracker.close()


def train(tracker, key, length=5):
    """Returns the parameters after a scan of ``length`` updates."""
    optimizer = optax.chain(optax.sgd(0.1), nngp.track_kernel(tracker))

    def step(carry, _):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((F(params, X) - 1) ** 2))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params, loss=loss)
        return (optax.apply_updates(params, updates), opt_state), None

    params, _ = F.init(key, X)
    return jax.lax.scan(step, (params, optimizer.init(params)), length=length)[0][0]


class TestMadeInsideJit:
    @pytest.mark.every(2)
    @pytest.mark.parametrize(
        "options",
        [
            {"targets": LABELS, "metrics": None},  # those of the targets, too
            {"probe_x": jnp.asarray(X), "targets": jnp.asarray(LABELS), "metrics": None},
            {"f": drawing, "rng": jax.random.key(3)},
            {"f": drawing, "rng": np.asarray(jax.random.PRNGKey(3))},
        ],
        ids=["numpy", "jax", "key", "key in numpy"],
    )
    def test_it_measures_what_one_made_outside_does(self, options):
        trackers = [make(**options)]

        def made_inside(key):
            trackers.append(make(**options))
            return train(trackers[1], key)

        jax.jit(lambda key: train(trackers[0], key))(jax.random.key(1))
        with jax.checking_leaks():
            params = jax.jit(made_inside)(jax.random.key(1))
        for tracker in trackers:
            tracker(5, params)
            tracker.close()
        outside, inside = (tracker.history for tracker in trackers)
        assert inside.steps.tolist() == [0, 2, 4, 5]
        assert inside.metrics == outside.metrics
        for metric in ("relative_change", "scale", *inside.metrics[-2:]):
            np.testing.assert_allclose(inside.metric(metric), outside.metric(metric), rtol=1e-2, atol=1e-5)
        assert inside.metric("relative_change")[-1, 0] > 0.01

    def test_it_goes_on_with_a_run(self, tmp_path):
        @jax.jit
        def resumed(key):
            trackers.append(make(run=tmp_path))
            return train(trackers[0], key, length=9)

        with make(run=tmp_path) as tracker:
            jax.jit(lambda key: train(tracker, key))(jax.random.key(1))
        trackers = []
        with jax.checking_leaks():
            resumed(jax.random.key(1))
        trackers[0].close()
        history = nngp.History.load(tmp_path)
        assert history.steps.tolist() == [0, 2, 4, 6, 8]
        assert (np.diff(history.metric("relative_change")[:, 0]) > 0).all()

    @pytest.mark.parametrize(
        ("name", "traced"),
        [
            ("probe_x", lambda key: {"images": X, "noise": jax.random.normal(key, X.shape)}),
            ("targets", lambda key: jnp.asarray(LABELS)),
            ("rng", lambda key: key),
            ("rng", lambda key: jax.random.key(0)),
        ],
    )
    def test_what_the_function_computes_is_refused_at_once(self, name, traced):
        with pytest.raises(TypeError, match=f"^{name} is traced, because this tracker is made inside a comp"):
            jax.jit(lambda key: train(make(**{name: traced(key)}), key))(jax.random.key(0))


class TestVmap:
    @pytest.mark.parametrize(
        "transform",
        [
            jax.vmap,
            lambda train: jax.jit(jax.vmap(train)),
            lambda train: jax.vmap(jax.jit(train)),
            lambda train: lambda keys: jax.lax.map(train, keys, batch_size=3),
        ],
        ids=["vmap", "jit(vmap)", "vmap(jit)", "map"],
    )
    def test_several_seeds_are_refused_by_name(self, transform):
        tracker = make()
        told = r"^vmap maps track_kernel over 3 trainings, .* seeds one after another, with a new tracker for each\."
        with pytest.raises(ValueError, match=told):
            transform(lambda key: train(tracker, key))(jax.random.split(jax.random.key(0), 3))
        tracker.close()
        assert len(tracker.history) == 0

    @pytest.mark.every(3)
    @pytest.mark.parametrize("mapped", ["updates", "opt_state", "part of params", "loss", "model_state"])
    def test_any_mapped_argument_of_an_update_is_refused(self, mapped):
        tracker = make(lambda w, x, state: x @ w["kernel"] + w["bias"] * state)
        optimizer = nngp.track_kernel(tracker)
        params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}

        def update(leaf):
            given = {name: leaf if name == mapped else jnp.ones(()) for name in ("loss", "model_state")}
            of = {**params, "bias": leaf * params["bias"]} if mapped == "part of params" else params
            updates = jax.tree.map(lambda w: w * leaf, params) if mapped == "updates" else params
            opt_state = optimizer.init(params)
            if mapped == "opt_state":
                opt_state = opt_state._replace(step=opt_state.step + leaf.astype(int))
            return optimizer.update(updates, opt_state, of, **given)[0]

        with pytest.raises(ValueError, match="vmap maps track_kernel over 2 trainings"):
            jax.vmap(update)(jnp.ones(2))
        update(jnp.ones(()))
        tracker.close()
        assert tracker.history.steps.tolist() == [1 if mapped == "opt_state" else 0]

    def test_the_way_that_the_error_tells(self):
        trackers = [make() for _ in range(2)]
        keys = jax.random.split(jax.random.key(0), 2)
        params = jax.jit(jax.vmap(lambda key: F.init(key, X)[0]))(keys)
        grad = jax.grad(lambda params: jnp.mean((F(params, X) - 1) ** 2))
        step_fn = jax.jit(lambda params: jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.vmap(grad)(params)))
        for step in range(5):
            for i, tracker in enumerate(trackers):
                tracker(step, jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], params))
            params = step_fn(params)
        for tracker, key in zip(trackers, keys, strict=True):
            tracker.close()
            alone = make()
            jax.jit(lambda key, alone=alone: train(alone, key))(key)
            alone.close()
            assert alone.history.steps.tolist() == tracker.history.steps.tolist() == [0, 2, 4]
            for metric in ("relative_change", "scale"):
                np.testing.assert_allclose(alone.history.metric(metric), tracker.history.metric(metric), rtol=1e-3)


def test_a_whole_equinox_model_as_params():
    """Its leaves are not all arrays."""
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(1))
    tracker = make(nngp.from_equinox(model).layers())
    optimizer = optax.chain(optax.sgd(0.1), nngp.track_kernel(tracker))

    @eqx.filter_jit
    def step(model, opt_state):
        grads = eqx.filter_grad(lambda model: jnp.mean(jax.vmap(model)(X) ** 2))(model)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state

    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    for _ in range(3):
        model, opt_state = step(model, opt_state)
    tracker.close()
    assert tracker.history.steps.tolist() == [0, 2]
