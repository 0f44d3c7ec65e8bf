"""What each layer is compared with: its first kernel that is not zero, or that of a step of one's own."""

import contextlib
import json
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.arrays import close, normal
from helpers.oracles import numbers

import nngp_plugins as nngp

pytestmark = pytest.mark.once

X = normal(0, 9, 4)
START = normal(1, 4, 4)
DRIFT = normal(2, 4, 4)
NAMES = ("cka", "relative_change")
METRICS = {name: nngp.metrics.DEFAULT[name] for name in (*NAMES, "kernel_velocity")}
LATE = "ignore:the kernel of layer 'head':UserWarning"


def weights(step):
    return START + 0.1 * step * DRIFT


def f(params, x):
    return {"body": x @ params["w"], "head": x @ (params["gate"] * params["w"]) + params["bias"]}


def params_at(step, opens=4, bias=0.0):
    """Parameters whose head does not look at the input before step ``opens``."""
    return {"w": weights(step), "gate": np.float32(step >= opens), "bias": np.float32(bias)}


def track(steps, params_at=params_at, end=None, **options):
    """Calls a tracker at the steps; with the error ``end``, it ends as the death of the process would end it."""
    with (
        contextlib.suppress(InterruptedError),
        nngp.KernelTracker(f, X, schedule=nngp.every(2), metrics=METRICS, **options) as tracker,
    ):
        for step in steps:
            tracker(step, params_at(step))
        if end is not None:
            raise end
    return tracker.history


def rows(history):
    """The rows as text, in which nan equals nan, without the time."""
    return [json.dumps({name: value for name, value in row.items() if name != "seconds"}) for row in history.rows]


def assert_compared_with(history, step, layer):
    """The metrics of a layer against a snapshot; nan before it, because there is nothing to compare with."""
    j = history.layers.index(layer)
    for i, now in enumerate(history.steps):
        expected = numbers(X @ weights(now), X @ weights(step)) if now >= step else dict.fromkeys(NAMES, np.nan)
        for name in NAMES:
            close(history.metric(name)[i, j], expected[name])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run folder of a training without interruption, with a reference."""

    @cache
    def whole(reference):
        run = tmp_path_factory.mktemp("whole")
        track(range(11), reference=reference, run=run)
        return run

    return whole


class TestFirstKernelThatIsNotZero:
    @pytest.mark.filterwarnings(LATE)
    @pytest.mark.parametrize("bias", [0.0, 0.7], ids=["zero", "constant"])
    def test_a_layer_is_compared_with_it_from_then_on(self, bias, whole):
        if bias:
            history = track(range(11), lambda step: params_at(step, bias=0 if step >= 4 else bias))
        else:
            history = nngp.History.load(whole(None))
        assert_compared_with(history, 0, "body")
        assert_compared_with(history, 4, "head")
        assert history.reference_steps == {"body": 0, "head": 4}
        assert [row.get("reference_of") for row in history.rows] == [["body"], None, ["head"], None, None, None]

    @pytest.mark.filterwarnings(LATE)
    def test_velocity_recovers_with_the_second_kernel_that_is_not_zero(self, whole):
        velocity = nngp.History.load(whole(None)).metric("kernel_velocity")[:, 1]
        pairs = [(X @ weights(step), X @ weights(step - 2)) for step in (6, 8, 10)]
        expected = [numbers(*pair)["kernel_distance"] / 2 for pair in pairs]
        close(velocity, [np.nan, np.nan, np.nan, *expected])

    def test_kernels_that_are_no_reference(self):
        few, x3 = np.arange(9)[:, None] == 3, normal(3, 9, 4)
        layers = {
            "zero": np.zeros((9, 4)),
            "not normal": x3 * 1e-42,  # which processors round to zero
            "constant": np.full((9, 4), 0.3),
            "constant up to rounding": np.where(few, np.float32(1) + np.finfo(np.float32).eps, np.ones((9, 4))),
            "nan": np.full((9, 4), np.nan),
            "infinity": np.where(few, np.inf, x3),
        }
        layers = {name: y.astype(np.float32) for name, y in layers.items()}

        def train():
            with nngp.KernelTracker(f, X, schedule=nngp.every(1), metrics=METRICS) as tracker:
                for step in range(3):
                    tracker(step, np.int32(step))
            return tracker.history

        def f(step, x):
            return {name: jnp.where(step < 2, y, x @ weights(3)) for name, y in layers.items()}

        with pytest.warns(UserWarning, match="at step 0: their metrics are nan") as warned:
            history = train()
        told = [str(warning.message) for warning in warned]
        kinds = {"zero": ("zero", "not normal"), "constant": ("constant", "constant up to rounding")}
        kinds["not finite"] = ("nan", "infinity")
        assert len(told) == len(kinds)
        for flaw, names in kinds.items():
            usable = "finite" if flaw == "not finite" else f"not {flaw}"
            said = f"{' and '.join(map(repr, sorted(names, key=history.layers.index)))} are {flaw} at step 0: their "
            said += f"metrics are nan. Their reference will be their first kernel that is {usable}."
            assert sum(said in message for message in told) == 1, (said, told)
        assert history.reference_steps == dict.fromkeys(history.layers, 2)
        assert set(history.layers) == set(layers)
        assert np.isnan(history.metric("cka")[:2]).all()
        close(history.metric("cka")[2], [1] * 6)
        close(history.metric("relative_change")[2], [0] * 6)

    def test_a_small_or_large_kernel_is_a_reference(self):
        """A wide layer in a warm-up: most entries of its kernel are much smaller than the diagonal."""
        x, later = normal(4, 100, 300), normal(5, 100, 300)
        sizes = {str(exponent): 10.0**exponent for exponent in (-36, -20, -8, 20, 36)}
        names = (*NAMES, "kernel_distance", "scale")
        metrics = {name: nngp.metrics.DEFAULT[name] for name in names}
        with nngp.KernelTracker(lambda y, x: y, x, schedule=nngp.every(1), metrics=metrics) as tracker:
            for step in range(3):
                ys = {name: [size * x, x, size * (x + later)][step] for name, size in sizes.items()}
                tracker(step, {name: y.astype(np.float32) for name, y in ys.items()})
        history = tracker.history
        assert set(history.layers) == set(sizes)
        assert history.reference_steps == dict.fromkeys(history.layers, 0)
        same, other = numbers(x, x), numbers(x + later, x)
        for j, layer in enumerate(history.layers):
            for step, expected in {1: same, 2: other}.items():
                for metric in ("cka", "kernel_distance"):
                    close(history.metric(metric)[step, j], expected[metric], rtol=1e-3)
            close(history.metric("relative_change")[2, j], other["relative_change"], rtol=1e-3)
            # The scale is one of Python's floats, which hold what float32 does not.
            for step, y in ((0, x), (2, x + later)):
                expected = np.mean(y.astype(float) ** 2) * sizes[layer] ** 2
                np.testing.assert_allclose(history.metric("scale")[step, j], expected, rtol=1e-4)

    def test_rows_of_a_run_without_such_layers_say_nothing(self):
        history = track(range(5), lambda step: params_at(step, opens=0))
        assert history.reference_steps == {"body": 0, "head": 0}
        assert not any("reference_of" in row for row in history.rows)

    @pytest.mark.filterwarnings(LATE)
    def test_a_layer_that_stays_zero_has_none(self, tmp_path):
        history = track(range(5), lambda step: params_at(step, opens=99), run=tmp_path)
        assert history.reference_steps == nngp.History.load(tmp_path).reference_steps == {"body": 0}
        assert np.isnan(history.metric("relative_change")[:, 1]).all()

    def test_a_divergence_after_it_is_told_too(self):
        def at(step):
            return params_at(step, opens=2) | ({"bias": np.float32(np.inf)} if step == 4 else {})

        with pytest.warns(UserWarning, match="the kernel of layer 'head' is") as warned:
            history = track(range(7), at)
        told = [str(warning.message) for warning in warned]
        assert "its first kernel that is not zero." in told[0]
        assert told[1:] == ["the kernel of layer 'head' is not finite at step 4: its metrics are nan."]
        assert history.reference_steps["head"] == 2

    @pytest.mark.filterwarnings(LATE)
    def test_a_metric_of_ones_own_gets_nan_before_it(self):
        metrics = {"trace": lambda gram, reference: reference.trace()}
        with nngp.KernelTracker(f, X, schedule=nngp.every(2), metrics=metrics) as tracker:
            for step in range(7):
                tracker(step, params_at(step))
        close(tracker.history.metric("trace")[:, 1], [np.nan] * 2 + [np.sum((X @ weights(4)) ** 2) / 4] * 2)

    @pytest.mark.filterwarnings(LATE)
    def test_writers_get_numbers_alone(self):
        class Written:
            def write_scalars(self, step, scalars):
                assert all(isinstance(value, float) for value in scalars.values()), scalars

        assert len(track(range(7), writers=[Written()])) == 4


class TestStepOfOnesOwn:
    @pytest.mark.parametrize(("reference", "step"), [(0, 0), (5, 6), (np.int64(6), 6)])
    def test_is_the_first_snapshot_at_or_after_it(self, reference, step, tmp_path):
        history = track(range(11), lambda step: params_at(step, opens=0), reference=reference, run=tmp_path)
        for layer in ("body", "head"):
            assert_compared_with(history, step, layer)
        assert history.reference_steps == {"body": step, "head": step}
        assert json.loads((tmp_path / "run.json").read_text())["reference"] == reference

    @pytest.mark.filterwarnings(LATE)
    def test_a_layer_that_is_zero_then_waits_longer(self):
        history = track(range(11), lambda step: params_at(step, opens=7), reference=3)
        assert_compared_with(history, 4, "body")
        assert_compared_with(history, 8, "head")
        assert history.reference_steps == {"body": 4, "head": 8}

    def test_the_warning_of_a_zero_layer_says_from_when(self):
        with pytest.warns(UserWarning, match="will be its first kernel from step 5 on that is not zero"):
            track(range(3), reference=5)

    def test_before_it_there_is_none(self, tmp_path):
        history = track(range(4), lambda step: params_at(step, opens=0), reference=50, run=tmp_path)
        assert history.reference_steps == nngp.History.load(tmp_path).reference_steps == {}
        assert np.isnan(history.metric("cka")).all()
        assert np.isfinite(history.metric("kernel_velocity")[1:]).all()


@pytest.mark.filterwarnings(LATE)
@pytest.mark.parametrize("reference", [None, 3])
def test_inside_jit(reference, whole):
    def params(step):
        return {"w": START + 0.1 * step * DRIFT, "gate": (step >= 4).astype(jnp.float32), "bias": jnp.float32(0)}

    tracker = nngp.KernelTracker(f, X, schedule=nngp.every(2), metrics=METRICS, reference=reference)
    track_kernel = nngp.track_kernel(tracker)

    @jax.jit
    def train(state):
        def one(state, step):
            return track_kernel.update(params(step), state, params(step))[1], None

        return jax.lax.scan(one, state, jnp.arange(11))[0]

    train(track_kernel.init(params(jnp.int32(0))))
    tracker.close()
    expected = nngp.History.load(whole(reference))
    assert tracker.history.reference_steps == expected.reference_steps
    assert tracker.history.reference_steps["head"] == 4
    for metric in METRICS:
        np.testing.assert_allclose(tracker.history.metric(metric), expected.metric(metric), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings(LATE)
class TestRunFolder:
    @pytest.mark.every(3)
    @pytest.mark.parametrize("reference", [None, 3])
    @pytest.mark.parametrize("stop", [3, 5, 7], ids=["before it", "right after it", "later"])
    def test_goes_on_to_the_same_rows(self, stop, reference, whole, tmp_path):
        track(range(stop), reference=reference, run=tmp_path, end=InterruptedError)
        history = track(range(stop, 11), reference=reference, run=tmp_path)
        expected = whole(reference)
        assert rows(history) == rows(nngp.History.load(tmp_path)) == rows(nngp.History.load(expected))
        for name in ("reference.npz", "last.npz"):
            assert (tmp_path / name).read_bytes() == (expected / name).read_bytes()

    def test_reference_npz_has_the_kernel_and_the_step_of_each_layer(self, tmp_path):
        def saved():
            with np.load(tmp_path / "reference.npz", allow_pickle=False) as arrays:
                return dict(arrays)

        tracker = nngp.KernelTracker(f, X, schedule=nngp.every(2), metrics=METRICS, run=tmp_path)
        for step in range(5):
            tracker(step, params_at(step))
            tracker.flush()
            if step == 0:
                assert np.isnan(saved()["kernels"][1]).all()
                np.testing.assert_array_equal(saved()["steps"], [0, np.nan])
        tracker.close()
        arrays = saved()
        features = [X @ weights(0) / 2, X @ weights(4) / 2]
        close(arrays["kernels"], [phi @ phi.T for phi in features])
        features = [phi - phi.mean(0) for phi in features]
        close(arrays["centered"], [phi @ phi.T for phi in features])
        close(arrays["first"][1], np.zeros((9, 9)))
        assert arrays["layers"].tolist() == ["body", "head"]
        assert (arrays["step"], arrays["steps"].tolist()) == (0, [0, 4])

    @pytest.mark.parametrize(("again", "step"), [(3, 4), (5, 5)], ids=["from its step", "from a later step"])
    def test_killed_between_the_reference_and_the_line(self, again, step, whole, tmp_path):
        """The reference of a snapshot that was never finished does not count."""
        track(range(3), run=tmp_path, end=InterruptedError)
        shutil.copy(whole(None) / "reference.npz", tmp_path)  # which is that of step 4 from then on
        history = track(range(again, 11), run=tmp_path)
        assert history.reference_steps == {"body": 0, "head": step}
        assert_compared_with(history, step, "head")
        if step == 4:
            assert rows(history) == rows(nngp.History.load(whole(None)))

    def test_a_reference_that_the_disk_refused_is_saved_later(self, tmp_path):
        tracker = nngp.KernelTracker(f, X, schedule=nngp.every(2), metrics=METRICS, run=tmp_path)
        for step in range(4):
            tracker(step, params_at(step))
        tracker.flush()
        blocked = tmp_path / "reference.npz.new"
        blocked.mkdir()
        tracker(4, params_at(4))
        with pytest.warns(UserWarning, match="can't be written: .* training goes on"):
            tracker.flush()
        blocked.rmdir()
        tracker(6, params_at(6))
        tracker.close()
        with np.load(tmp_path / "reference.npz") as saved:
            assert saved["steps"].tolist() == [0, 4]

    def test_another_reference_is_refused(self, tmp_path):
        track(range(5), run=tmp_path, reference=3)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        for reference in (None, 4):
            told = f"is a run with other reference: 3 there, {reference} now; go on with the same, or name another"
            with pytest.raises(ValueError, match=told):
                track(range(5, 7), run=tmp_path, reference=reference)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("steps", [5, 9], ids=["before it", "after it"])
    def test_another_training_is_refused_by_the_first_snapshot(self, steps, tmp_path):
        options = {"run": tmp_path, "reference": 6}
        track(range(steps), **options, end=InterruptedError)
        with pytest.raises(ValueError, match="step=0 has other kernels than the first snapshot of this run folder"):
            track(range(steps), lambda step: params_at(step + 6), **options)
        assert track(range(11), **options).reference_steps == {"body": 6, "head": 6}

    def test_another_training_is_refused_inside_jit(self, tmp_path):
        track(range(9), run=tmp_path, reference=6, end=InterruptedError)

        def train(factor):
            tracker = nngp.KernelTracker(f, X, schedule=nngp.every(2), metrics=METRICS, run=tmp_path, reference=6)
            with tracker:
                optimizer = optax.chain(nngp.track_kernel(tracker))
                params = jax.tree.map(lambda leaf: factor * leaf, params_at(0))
                jax.block_until_ready(jax.jit(optimizer.update)(params, optimizer.init(params), params))
                jax.effects_barrier()

        train(1.0)
        with pytest.raises(Exception, match="step=0 has other kernels than the first snapshot of this run folder"):
            train(2.0)
