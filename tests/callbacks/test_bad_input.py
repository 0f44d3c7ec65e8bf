import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp

PROBE = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)


def linear(w, x):
    return {"hidden": x * w}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"f": 3}, TypeError, "f=3 is not callable; pass a ModelFn or a function"),
        ({"schedule": 10}, TypeError, r"schedule=10 is not a schedule; pass nngp.every\(10\)"),
        ({"metrics": {"top/1": lambda gram, reference: gram.trace()}}, ValueError, "'top/1'.* have a slash"),
        ({"probe_x": jnp.ones((0, 3))}, ValueError, r"probe_x must hold arrays .* got batch sizes \[0\]"),
        ({"probe_x": (jnp.ones((2, 3)), jnp.ones(3))}, ValueError, r"got batch sizes \[2, 3\]"),
        ({"targets": np.array([1, "two"] * 4, dtype=object)}, TypeError, "targets hold Python objects"),
        ({"targets": np.zeros(5)}, ValueError, r"targets of shape \(5,\) do not label the 8 examples"),
    ],
)
def test_making_a_tracker(arguments, error, message):
    with pytest.raises(error, match=message):
        nngp.KernelTracker(**{"f": linear, "probe_x": PROBE, **arguments})


@pytest.mark.parametrize("scalar", [None, "0.1", np.ones(1), [1.0]], ids=repr)
def test_what_is_not_a_scalar(scalar):
    with pytest.raises(TypeError, match=r"loss=.* is not a scalar; a tracker logs single numbers"):
        nngp.KernelTracker(linear, PROBE)(0, 1.0, loss=scalar)


@pytest.mark.parametrize("name", ["seconds", "layer", "cka", "kernel/hidden/cka"])
def test_names_of_the_trackers_own(name):
    with pytest.raises(ValueError, match=f"the scalar '{name}' has a name of the tracker's own"):
        nngp.KernelTracker(linear, PROBE)(0, 1.0, **{name: 1.0})


@pytest.mark.parametrize("nothing", [None, {}, ()], ids=repr)
def test_f_that_returns_nothing(nothing):
    with pytest.raises(ValueError, match="which holds no array to measure"):
        nngp.KernelTracker(lambda w, x: nothing, PROBE)(0, 1.0)


def test_scalars_keep_the_order_given():
    with nngp.KernelTracker(linear, PROBE) as tracker:
        tracker(0, 1.0, zeta=1, alpha=np.float32(2), mid=jnp.float32(3))
    assert tracker.history.scalars == ["zeta", "alpha", "mid"]


def test_a_line_on_its_way_is_not_read(tmp_path):
    with nngp.KernelTracker(linear, PROBE, run=tmp_path, schedule=nngp.every(1)) as tracker:
        for step in range(3):
            tracker(step, 1.0 + step)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-5])
    assert nngp.History.load(tmp_path).rows == tracker.history.rows[:2]
