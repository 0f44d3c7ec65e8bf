import contextlib
import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nngp_plugins as nngp

PROBE = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)


METRICS = {"cka": nngp.metrics.cka}


def linear(w, x):
    return {"hidden": x * w}


@pytest.fixture(scope="module")
def unused():
    """A tracker all of whose calls fail."""
    return nngp.KernelTracker(linear, PROBE, metrics=METRICS)


class Pretrained:
    """Can be called like a Flax model of Hugging Face, which holds its module and its parameters."""

    module, params = nn.Dense(2), {}

    def __call__(self, input_ids):
        return self.module.apply(self.params, input_ids)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"f": 3}, TypeError, r"f=3 is no function f\(params, x\); pass one"),
        ({"f": nn.Dense(3)}, TypeError, r"is no function f\(params, x\); .* nngp.as_model_fn\(model\)"),
        ({"f": Pretrained()}, TypeError, r"; pass one, such as nngp.as_model_fn\(model.module\).* and model.params to"),
        ({"metrics": ["cka"]}, TypeError, r"metrics=\['cka'\] is not a dict"),
        ({"metrics": {"s": nngp.metrics.scale}}, TypeError, r"metrics\['s'\] is no metric\(gram, reference_gram\)"),
        (
            {"metrics": {"c": lambda gram, _: 1j * gram.trace()}},
            TypeError,
            r"metrics\['c'\] returns complex64, which",
        ),
        ({"metrics": {"d": lambda gram, _: gram.diagonal()}}, TypeError, r"metrics\['d'\] returns .* shape \(8,\)"),
        ({"probe_x": PROBE[:3]}, ValueError, r"metrics\['cka'\] on a probe of 3 examples: .* needs N >= 4"),
        ({"targets": np.zeros((8, 2, 2))}, ValueError, r"targets of shape \(8, 2, 2\) do not label"),
        ({"config": 3}, TypeError, "config=3 is not a mapping"),
        ({"reference": 1.5}, TypeError, r"reference=1\.5 is not a step; pass an int, such as reference=1000, or None"),
        ({"reference": True}, TypeError, "reference=True is not a step"),
        ({"reference": "first"}, TypeError, "reference='first' is not a step"),
        ({"reference": np.arange(2)}, TypeError, r"reference=array\(\[0, 1\]\) is not a step"),
        ({"reference": -1}, ValueError, "reference=-1 is negative; pass the step of the reference"),
        ({"schedule": 10}, TypeError, r"schedule=10 is not a schedule; pass nngp.every\(10\)"),
        ({"metrics": {"top/1": lambda gram, reference: gram.trace()}}, ValueError, "'top/1' has a slash"),
        ({"probe_x": jnp.ones((0, 3))}, ValueError, r"probe_x must hold arrays .* got batch sizes \[0\]"),
        ({"probe_x": (jnp.ones((2, 3)), jnp.ones(3))}, ValueError, r"got batch sizes \[2, 3\]"),
        ({"targets": np.array([1, "two"] * 4, dtype=object)}, TypeError, "targets hold Python objects"),
        ({"targets": np.zeros(5)}, ValueError, r"targets of shape \(5,\) do not label the 8 examples"),
    ],
)
def test_making_a_tracker(arguments, error, message):
    with pytest.raises(error, match=message):
        nngp.KernelTracker(**{"f": linear, "probe_x": PROBE, **arguments})


NO_SCALARS = [None, "0.1", np.ones(1), [1.0], np.str_("a"), np.complex64(1j), jnp.complex64(1j), np.datetime64("2020")]
NO_SCALARS += [np.timedelta64(1, "s"), 10**400, jax.random.key(0), np.zeros((), jax.dtypes.float0), np.array(None)]


@pytest.mark.parametrize("scalar", NO_SCALARS, ids=lambda scalar: str(getattr(scalar, "dtype", type(scalar).__name__)))
def test_what_is_not_a_scalar(unused, scalar):
    with pytest.raises(TypeError, match=r"loss=.* is not a scalar; pass single numbers"):
        unused(0, 1.0, loss=scalar)


@pytest.mark.parametrize("name", ["seconds", "layer", "diverged", "reference_of", "cka", "kernel/hidden/cka"])
def test_names_of_the_trackers_own(unused, name):
    with pytest.raises(ValueError, match=f"the scalar '{name}' has a name of the tracker's own"):
        unused(0, 1.0, **{name: 1.0})


@pytest.mark.parametrize("nothing", [None, {}, ()], ids=repr)
def test_f_that_returns_nothing(nothing):
    with pytest.raises(ValueError, match="which holds no array to measure"):
        nngp.KernelTracker(lambda w, x: nothing, PROBE, metrics=METRICS)(0, 1.0)


@pytest.mark.parametrize(
    "outputs",
    [lambda x: {"a/b": x, "a": {"b": 5 * x}}, lambda x: {"a/0": x, "a": [x]}, lambda x: {"": x, "output": x}],
)
def test_two_outputs_of_one_name(outputs):
    with pytest.raises(ValueError, match=r"two outputs of f are called '(a/b|a/0|output)'; give each a name"):
        nngp.KernelTracker(lambda w, x: outputs(x * w), PROBE, metrics=METRICS)(0, 1.0)


def test_scalars_keep_the_order_given():
    with nngp.KernelTracker(linear, PROBE, metrics=METRICS) as tracker:
        tracker(0, 1.0, zeta=1, alpha=np.float32(2), mid=jnp.float32(3))
    assert tracker.history.scalars == ["zeta", "alpha", "mid"]


def test_a_line_on_its_way_is_not_read(tmp_path):
    with nngp.KernelTracker(linear, PROBE, metrics=METRICS, run=tmp_path, schedule=nngp.every(1)) as tracker:
        for step in range(3):
            tracker(step, 1.0 + step)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-5])
    assert nngp.History.load(tmp_path).rows == tracker.history.rows[:2]


def test_a_union_with_a_number():
    with pytest.raises(TypeError, match=r"Every\(n=5\) \| 100 joins schedules; pass nngp.every\(100\)"):
        nngp.every(5) | 100


def test_labels_with_an_axis_of_one(tmp_path):
    labels = np.arange(8) % 3
    with nngp.KernelTracker(linear, PROBE, metrics=METRICS, targets=labels[:, None], run=tmp_path) as tracker:
        tracker(0, 1.0)
    np.testing.assert_array_equal(np.load(tmp_path / "reference.npz")["targets"], labels)


def test_a_first_call_that_fails_does_not_count():
    tracker = nngp.KernelTracker(linear, PROBE, metrics=METRICS, schedule=nngp.every(100))
    with pytest.raises(TypeError):
        tracker(0, "no parameters")
    assert tracker(0, 1.0)
    tracker(5, 2.0)
    tracker.close()
    assert tracker.history.steps.tolist() == [0, 5]


def test_a_run_that_failed_at_once_leaves_the_folder_free(tmp_path):
    for w in ("no parameters", 1.0):
        with (
            pytest.raises(TypeError) if isinstance(w, str) else contextlib.nullcontext(),
            nngp.KernelTracker(linear, PROBE, metrics=METRICS, run=tmp_path) as tracker,
        ):
            tracker(0, w)
    assert nngp.History.load(tmp_path).steps.tolist() == [0]


def test_a_live_model_trained_further_is_not_measured_as_the_step_seen():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tracker = nngp.KernelTracker(nngp.from_nnx(model), PROBE, metrics=METRICS, schedule=nngp.every(100))
    tracker(0, model)
    tracker(7, model)
    model.kernel[...] = 10 * model.kernel[...]
    with pytest.warns(UserWarning, match=r"cannot measure step 7: its parameters were trained further"):
        tracker.close()
    assert tracker.history.steps.tolist() == [0]


def test_a_constant_kernel_warns():
    tracker = nngp.KernelTracker(lambda w, x: jnp.full((8, 3), w), PROBE, metrics=METRICS)
    tracker(0, 0.1)
    told = r"'output' is constant at step 0: its metrics are nan\. Its reference .* first kernel that is not constant\."
    with pytest.warns(UserWarning, match=told):
        tracker.close()


def test_a_closed_tracker_lets_go_of_the_model():
    w = jnp.ones(3)
    alive = weakref.ref(w)
    tracker = nngp.KernelTracker(linear, PROBE, metrics=METRICS)
    tracker(0, w)
    tracker.close()
    del w
    gc.collect()
    assert alive() is None
    assert len(tracker.history) == 1
