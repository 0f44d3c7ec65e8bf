"""What a snapshot is: kept kernels, velocity, batches, checkpoints, several trackers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers.arrays import assert_close, normal

import nngp_plugins as nngp

close = partial(assert_close, tolerance=1e-6)

X = normal(0, 30, 6)
Y = np.arange(30) % 3
PROBE = X[:10]
NET = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(3)])
F = nngp.from_linen(NET)
PARAMS = jax.jit(F.init)(jax.random.key(1), X)[0]
CKA, SCALE, CHANGE = ({name: nngp.metrics.DEFAULT[name]} for name in ("cka", "scale", "relative_change"))


def train(on_step, optimizer, steps):
    """Plain gradient descent; ``on_step`` sees the parameters before each update."""
    params, opt_state = PARAMS, optimizer.init(PARAMS)

    def loss_fn(params):
        return optax.softmax_cross_entropy_with_integer_labels(F(params, X), Y).mean()

    @jax.jit
    def update(params, opt_state):
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for step in range(steps):
        on_step(step, params)
        params, opt_state = update(params, opt_state)


@pytest.fixture(scope="module")
def trained():
    """The parameters before each of ten updates."""
    found = []
    train(lambda step, params: found.append(params), optax.sgd(1.0), 10)
    return found


def kernel(y):
    y = np.asarray(y, np.float64).reshape(len(y), -1)
    return y @ y.T / y.shape[1]


def test_kernels_after_the_fact_from_orbax_checkpoints(tmp_path):
    """The hook and the transformation against kernels computed from what orbax saved."""
    f, runs = F.layers(), {"hook": tmp_path / "hook", "transformation": tmp_path / "transformation"}
    inner, outer = (
        nngp.KernelTracker(f, PROBE, schedule=nngp.every(2), metrics=CHANGE, run=run, keep_kernels=True)
        for run in (runs["transformation"], runs["hook"])
    )
    with ocp.StandardCheckpointer() as checkpointer, inner, outer:

        def on_step(step, params):
            if outer(step, params):
                checkpointer.save(tmp_path / "checkpoints" / str(step), params)

        train(on_step, optax.chain(optax.sgd(1.0), nngp.track_kernel(inner)), 7)
        checkpointer.wait_until_finished()
        restored = {s: checkpointer.restore(tmp_path / "checkpoints" / str(s), PARAMS) for s in (0, 2, 4, 6)}
    layers = {step: f(params, PROBE) for step, params in restored.items()}
    for run in runs.values():
        history = nngp.History.load(run)
        assert history.steps.tolist() == [0, 2, 4, 6]
        for step, outputs in layers.items():
            for layer, y in outputs.items():
                close(history.kernel(layer, step), kernel(y))
        for layer in history.layers:
            k, k0 = kernel(layers[6][layer]), kernel(layers[0][layer])
            expected = np.linalg.norm(k - k0) / np.linalg.norm(k0)
            found = history.metric("relative_change")[-1, history.layers.index(layer)]
            assert found == pytest.approx(expected, rel=1e-5)
            assert expected > 0.05


def test_velocity_is_the_distance_to_the_snapshot_before_over_the_steps_between(trained):
    f, seen = F.layers("layers_0"), {}
    metrics = {"kernel_velocity": nngp.metrics.DEFAULT["kernel_velocity"]}
    with nngp.KernelTracker(f, PROBE, schedule=nngp.at(1, 4, 9), metrics=metrics) as tracker:
        for step, params in enumerate(trained):
            if tracker(step, params):
                dense = jax.device_get(params["layers_0"])
                seen[step] = kernel(PROBE @ dense["kernel"] + dense["bias"])
    (a, b, c, d), steps = seen.values(), [0, 1, 4, 9]
    assert list(seen) == steps
    pairs = (b, a), (c, b), (d, c)
    cosines = [np.sum(k * other) / np.linalg.norm(k) / np.linalg.norm(other) for k, other in pairs]
    expected = (1 - np.array(cosines)) / np.diff(steps)
    found = tracker.history.metric("kernel_velocity")[:, 0]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected, rtol=1e-3)


def test_a_velocity_of_ones_own():
    metrics = {"turn": nngp.metrics.Velocity(lambda a, before: a.trace() - before.trace())}
    with nngp.KernelTracker(lambda w, x: w * x, PROBE, schedule=nngp.every(2), metrics=metrics) as tracker:
        for step in range(5):
            tracker(step, np.float32(1 + step))
    trace = np.sum(PROBE**2) / 6
    np.testing.assert_allclose(tracker.history.metric("turn")[1:, 0], [trace * 8 / 2, trace * 16 / 2], rtol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("kept") / "run"
    f = {"a/b": 12, "a": 4, "a.b": 12, "step": 3}  # wider and narrower than the probe, names that meet
    with nngp.KernelTracker(
        lambda w, x: {name: jnp.tile(w * x, 2)[:, :d] for name, d in f.items()},
        PROBE,
        schedule=nngp.every(1),
        metrics=SCALE,
        run=run,
        keep_kernels=True,
    ) as tracker:
        for step in range(3):
            tracker(5 * step, 1.0 + step)
        tracker.flush()
        close(tracker.history.kernel("a", 10), kernel(3 * PROBE[:, :4]))  # while it is open
    return run


class TestKeptKernels:
    def test_all_are_there(self, run):
        history = nngp.History.load(run)
        for step in (0, 5, 10):
            w = 1 + step / 5
            wide, narrow = kernel(w * np.tile(PROBE, 2)), kernel(w * PROBE[:, :4])
            close(history.kernel("a/b", step), wide)
            close(history.kernel("a.b", step), wide)
            close(history.kernel("a", step), narrow)
            close(history.kernel("step", step), kernel(w * PROBE[:, :3]))

    def test_zarr_reads_them(self, run):
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(run / "kernels", mode="r")
        by_name = {array.attrs["name"]: array for _, array in group.arrays()}
        assert by_name["a/b"].shape == (3, 10, 10)
        assert by_name["a"].shape == (3, 10, 4)  # features
        close(by_name["a/b"][1], kernel(2 * np.tile(PROBE, 2)))
        assert group["step"][:].tolist() == [0, 5, 10]

    @pytest.mark.parametrize(
        ("layer", "step", "message"),
        [
            ("b", 0, "'b' is no layer of this history; there are a, a.b"),
            ("a", 3, "step 3 has no snapshot; there are 0, 5"),
        ],
    )
    def test_what_is_not_there(self, run, layer, step, message):
        with pytest.raises(KeyError, match=message):
            nngp.History.load(run).kernel(layer, step)

    def test_not_kept(self, tmp_path):
        with nngp.KernelTracker(lambda w, x: w * x, PROBE, metrics=SCALE, run=tmp_path) as tracker:
            tracker(0, 1.0)
        with pytest.raises(FileNotFoundError, match=r"keeps no kernels; pass keep_kernels=True to KernelTracker"):
            nngp.History.load(tmp_path).kernel("output", 0)

    def test_without_a_run_folder(self):
        with pytest.raises(ValueError, match=r"keep_kernels=True keeps them in the run folder; pass run="):
            nngp.KernelTracker(lambda w, x: w * x, PROBE, keep_kernels=True)


@pytest.fixture(scope="module")
def measured_at_once(trained):
    return measured(trained, None)


def measured(trained, batch_size):
    with nngp.KernelTracker(F.layers(), PROBE, batch_size=batch_size, metrics=CKA) as seen:
        for step in range(3):
            seen(step, trained[step])
    return seen.history


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_batches_of_the_probe(trained, measured_at_once, batch_size):
    history = measured(trained, batch_size)
    assert measured_at_once.steps.tolist() == history.steps.tolist() == [0, 1, 2]
    np.testing.assert_allclose(history.metric("cka"), measured_at_once.metric("cka"), rtol=1e-5)


def test_a_layer_without_a_batch_in_batches():
    with (
        nngp.KernelTracker(lambda w, x: {"mean": x.mean(axis=0)}, PROBE, batch_size=4) as seen,
        pytest.raises(ValueError, match=r"output 'mean' of f has shape \(6,\) for a batch of 4 examples of probe_x"),
    ):
        seen(0, 1.0)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(16)(x)
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, name="norm")(x))


NORMED = Normed()
NORMED_VARIABLES = jax.jit(partial(NORMED.init, train=False))(jax.random.key(1), X)
TRAINING = nngp.from_linen(NORMED, train=True, mutable=["batch_stats"])


def refusal(call):
    """What is said of a model in training mode, up to the remedy."""
    with pytest.raises(ValueError, match="of f depends on the other examples in the batch") as error:
        call()
    return str(error.value).partition(", or ")[0]


@pytest.mark.parametrize("batch_size", [2, 7])
def test_batches_of_a_model_in_training_mode_are_refused_by_the_words_of_batch(batch_size):
    f = TRAINING.layers("norm")
    seen = nngp.KernelTracker(f, PROBE, batch_size=batch_size, metrics=SCALE)
    by_tracker = refusal(lambda: seen(0, NORMED_VARIABLES))
    by_batch = refusal(lambda: nngp.batch(nngp.empirical_nngp_fn(f), batch_size)(PROBE, None, NORMED_VARIABLES))
    assert by_tracker == by_batch
    assert "next to other examples" in by_tracker
    assert by_tracker.startswith("output 'norm' of f")
    seen.close()
    assert len(seen.history) == 0


def test_a_model_that_rounding_changes_much_is_measured_with_a_warning():
    def f(params, x):
        terms = [5e5 * x[:, i] for i in range(5)]
        # the large terms cancel, and are added up in another order in small batches
        return x + (sum(terms if len(x) > 2 else terms[::-1]) - sum(terms))[:, None]

    warned = pytest.warns(UserWarning, match="the output of f is ill-conditioned: .* batches of 3 and 2")
    with nngp.KernelTracker(f, PROBE, batch_size=3, metrics=SCALE) as seen, warned:
        assert seen(0, jnp.ones(()))
    assert len(seen.history) == 1


def test_batches_of_a_model_in_evaluation_mode_are_measured():
    f = nngp.from_linen(NORMED, train=False).layers()
    with nngp.KernelTracker(f, PROBE, batch_size=3, metrics=SCALE) as seen:
        assert seen(0, NORMED_VARIABLES)
    assert len(seen.history) == 1


@pytest.mark.parametrize("batch_size", [10, 64])
def test_a_model_in_training_mode_is_measured_on_the_whole_probe_at_once(batch_size):
    with nngp.KernelTracker(TRAINING.layers("norm"), PROBE, batch_size=batch_size, metrics=SCALE) as seen:
        seen(0, NORMED_VARIABLES)
    assert seen.history.metric("scale") == pytest.approx(1, rel=1e-3)  # batch norm makes it so


def test_no_metrics_are_the_default_ones_and_a_mapping_is_what_it_says():
    def names(**options):
        return list(nngp.KernelTracker(F, PROBE, **options).recorder.metrics)

    default, targets = list(nngp.metrics.DEFAULT), list(nngp.metrics.of_targets(Y[:10]))
    assert names() == names(metrics=None) == default
    assert names(targets=Y[:10]) == default + targets
    assert names(targets=Y[:10], metrics=dict(nngp.metrics.DEFAULT)) == default
    assert names(targets=Y[:10], metrics=nngp.metrics.DEFAULT) == default


@pytest.mark.parametrize("size", [0, -3])
def test_bad_batches(size):
    with pytest.raises(ValueError, match=f"batch_size={size} must be positive, or None"):
        nngp.KernelTracker(lambda w, x: w * x, PROBE, batch_size=size)


def test_diverged():
    def f(w, x):
        return {"head": w * x, "body": x}

    seen = nngp.KernelTracker(f, PROBE, schedule=nngp.every(1), metrics=CKA)
    for step, w in enumerate([1.0, 2.0, np.inf, np.nan]):
        seen(step, np.float32(w))
    with pytest.warns(UserWarning, match="'head' is not finite at step 2"):
        seen.close()
    assert [row.get("diverged") for row in seen.history.rows] == [None, None, ["head"], ["head"]]
    assert seen.history.diverged == 2
    assert np.isfinite(seen.history.metric("cka")[:, 0]).all()  # of the body, which comes first


def test_names_tell_trackers_apart():
    class Written:
        def __init__(self):
            self.names = set()

        def write_scalars(self, step, scalars):
            self.names |= set(scalars)

    written, metrics = Written(), CKA
    with (
        nngp.KernelTracker(lambda w, x: x * w, PROBE, writers=[written], name="train", metrics=metrics) as one,
        nngp.KernelTracker(lambda w, x: x * w, X[10:], writers=[written], name="test", metrics=metrics) as two,
    ):
        one(0, 1.0, loss=0.5)
        two(0, 1.0)
    assert written.names == {"train/kernel/output/cka", "test/kernel/output/cka", "loss", "seconds"}


def test_x64_of_the_users_thread():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 6)))
        with nngp.KernelTracker(lambda w, x: x * w, x, metrics={"scale": lambda a, _: a.trace()}) as seen:
            seen(0, jnp.float64(1))
    expected = float(np.sum(np.asarray(x) ** 2) / 6)
    assert seen.history.metric("scale")[0, 0] == pytest.approx(expected, rel=1e-14)


def test_a_keras_model_trained_further_is_not_measured_as_the_step_seen():
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    f, y = nngp.from_keras(model).layers(), np.zeros((30, 3))

    def tracked(after):
        seen = nngp.KernelTracker(f, PROBE, schedule=nngp.every(100), metrics=CHANGE)
        seen(0, model)
        model.fit(X, y, verbose=0)
        seen(1, model)
        after()
        return seen

    seen = tracked(lambda: None)
    seen.close()
    assert seen.history.steps.tolist() == [0, 1]
    assert seen.history.metric("relative_change")[1].min() > 1e-3
    seen = tracked(lambda: model.fit(X, y, verbose=0))
    with pytest.warns(UserWarning, match="cannot measure step 1: its parameters were trained further since"):
        seen.close()
    assert seen.history.steps.tolist() == [0]


def test_a_step_is_measured_once():
    schedule = nngp.every(4) | nngp.every(1, of="epoch")
    with nngp.KernelTracker(lambda w, x: w * x, PROBE, schedule=schedule, metrics=SCALE) as seen:
        for step in range(9):
            seen(step, 1.0 + step, epoch=0)
        assert not seen(8, 9.0, epoch=1)
    assert seen.history.steps.tolist() == [0, 4, 8]


def test_spectra_are_those_of_jax():
    """The tracker has LAPACK's eigenvalues from SciPy; the metrics by themselves those of XLA."""
    metrics = {name: nngp.metrics.DEFAULT[name] for name in ("effective_rank", "stable_rank", "participation_ratio")}
    with nngp.KernelTracker(F.layers("layers_0"), PROBE, metrics=metrics) as seen:
        seen(0, PARAMS)
    (gram,) = nngp.gram(F.layers("layers_0"), PROBE, PARAMS).values()
    expected = jax.jit(lambda gram: {name: metric(gram, gram) for name, metric in metrics.items()})(gram)
    for name in metrics:
        np.testing.assert_allclose(seen.history.metric(name)[0], expected[name], rtol=1e-5)


class Noisy(nn.Module):
    """Draws at every call, as a variational autoencoder does."""

    @nn.compact
    def __call__(self, x):
        mean = nn.Dense(4, name="mean")(x)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        return nn.Dense(6, name="decoder")(mean + noise)


class TestModelsThatDraw:
    f = nngp.from_linen(Noisy(), rngs=("noise",))
    params = jax.jit(f.init)(jax.random.key(1), X)[0]
    key = jax.random.key(7)

    def test_every_snapshot_draws_the_noise_of_the_key_in_each_batch(self, tmp_path):
        with nngp.KernelTracker(
            self.f.layers(),
            PROBE,
            rng=self.key,
            batch_size=4,
            schedule=nngp.every(1),
            metrics=CKA,
            keep_kernels=True,
            run=tmp_path,
        ) as seen:
            for step in range(3):
                assert seen(step, self.params)
        outputs = nngp.batch(nngp.empirical_nngp_fn(self.f.layers()), 4, device_count=1)
        y = outputs.outputs(PROBE, self.params, rng=self.key)["decoder"]
        for step in range(3):
            np.testing.assert_allclose(seen.history.kernel("decoder", step), kernel(y), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(seen.history.metric("cka"), 1, rtol=1e-4)

    def test_what_is_no_key(self):
        with pytest.raises(TypeError, match=r"^rng=3 is not a key; pass rng=jax\.random\.key\(3\)"):
            nngp.KernelTracker(self.f.layers(), PROBE, rng=3)

    def test_a_model_that_depends_on_the_batch_is_refused_though_it_draws(self):
        def f(params, x, rng):
            return (x - x.mean(axis=0)) * jax.random.bernoulli(rng, 0.9, x.shape)

        seen = nngp.KernelTracker(f, PROBE, rng=self.key, batch_size=4, metrics=SCALE)
        with pytest.raises(ValueError, match="the output of f depends on the other examples in the batch") as error:
            seen(0, jnp.ones(()))
        assert "next to other examples" in str(error.value)

    def test_the_transformation_draws_the_same_noise(self):
        histories, options = [], {"batch_size": 4, "schedule": nngp.every(1), "metrics": SCALE}
        for inside in (False, True):
            seen = nngp.KernelTracker(self.f.layers("decoder"), PROBE, rng=self.key, **options)
            if inside:
                optimizer = nngp.track_kernel(seen)
                jax.jit(optimizer.update)(self.params, optimizer.init(self.params), self.params)
            else:
                seen(0, self.params)
            seen.close()
            histories.append(seen.history)
        np.testing.assert_allclose(histories[0].metric("scale"), histories[1].metric("scale"), rtol=1e-4)


def test_trackers_of_the_same_metrics_share_what_is_compiled():
    traced = []

    def scaled_trace(a, b, by=1.0):
        traced.append(by)
        return by * a.trace()

    def value(metric):
        with nngp.KernelTracker(lambda w, x: w * x, PROBE, metrics={"value": metric}) as tracker:
            tracker(0, np.float32(2))
        return float(tracker.history.metric("value")[0, 0])

    texts = dict.fromkeys(("title", "formula", "range", "cost", "tells", "misleads"), "-")
    scaled_trace = nngp.metrics.entry(**texts, relative_to_reference=True)(scaled_trace)
    # A function that the catalogue does not know is compiled for each tracker, whatever its name.
    others = [lambda a, b: a.trace(), lambda a, b: -a.trace()]
    try:
        found = [value(metric) for metric in [*(partial(scaled_trace, by=by) for by in (1.0, 1.0, 3.0)), *others]]
    finally:
        nngp.metrics.unregister("scaled_trace")
    trace = float(np.sum((2 * PROBE.astype(float)) ** 2) / PROBE.shape[1])
    np.testing.assert_allclose(found, [trace, trace, 3 * trace, trace, -trace], rtol=1e-5)
    # Each tracker looks at the shape of its metric, and two programs are compiled.
    assert traced == [1.0, 1.0, 1.0, 3.0, 3.0]
