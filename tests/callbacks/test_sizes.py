"""Layers whose kernels leave the range of float32: numbers, run folders and kept kernels are right all the same."""

import contextlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import gram, normal
from helpers.oracles import numbers

import nngp_plugins as nngp

pytestmark = pytest.mark.once

X = normal(0, 9, 4)
METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "relative_change", "kernel_distance", "scale")}
SIZES = {"tiny": 1e-25, "usual": 1.0, "huge": 1e25}


def f(w, x, xp=jnp):
    """Layers that keep their features and layers that keep their kernels, of all sizes."""
    y = x @ w
    wide = xp.concatenate([y, xp.tanh(y), y**2], axis=1)
    narrow = {name: y * size for name, size in SIZES.items()}
    return narrow | {f"{name}, wide": wide * size for name, size in SIZES.items()}


def weights(step):
    return normal(1, 4, 4) + 0.1 * step * normal(2, 4, 4)


def track(run, steps, end=None):
    """Calls a tracker at the steps; with the error ``end``, it ends as the death of the process would end it."""
    options = {"schedule": nngp.every(2), "metrics": METRICS, "keep_kernels": True}
    with contextlib.suppress(InterruptedError), nngp.KernelTracker(f, X, run=run, **options) as tracker:
        for step in steps:
            tracker(step, weights(step))
        if end is not None:
            raise end
    return tracker.history


def rows(history):
    return [json.dumps({name: value for name, value in row.items() if name != "seconds"}) for row in history.rows]


def outputs(step):
    return f(weights(step).astype(float), X.astype(float), np)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    track(run, range(7))
    return run


def test_numbers(whole):
    history = nngp.History.load(whole)
    for i, step in enumerate(history.steps):
        for j, layer in enumerate(history.layers):
            size = SIZES[layer.partition(",")[0]]
            now, first = (outputs(s)[layer] / size for s in (step, 0))
            expected = numbers(now, first)
            expected["scale"] *= size**2
            for name in METRICS:
                least = 0 if name == "scale" else 1e-6
                assert history.metric(name)[i, j] == pytest.approx(expected[name], rel=1e-3, abs=least), (layer, name)


def test_kept_kernels(whole):
    history = nngp.History.load(whole)
    for step in history.steps:
        for layer, y in outputs(step).items():
            found = history.kernel(layer, step)
            assert found.dtype == (np.float32 if layer.startswith("usual") else np.float64)
            assert_close(found, gram(y))


def test_saved_kernels_are_divided_by_powers_that_the_file_names(whole):
    for name, step in (("reference.npz", 0), ("last.npz", 6)):
        with np.load(whole / name) as saved:
            kernels = nngp.metrics.undivided(saved["kernels"], saved["exponents"])
            usual = ["usual" in layer for layer in saved["layers"].tolist()]
            assert (saved["exponents"] == 0).tolist() == usual
            for kernel, layer in zip(kernels, saved["layers"].tolist(), strict=True):
                assert_close(kernel, gram(outputs(step)[layer]))


def test_a_usual_run_has_no_exponents(tmp_path):
    with nngp.KernelTracker(lambda w, x: x @ w, X, metrics=METRICS, run=tmp_path, keep_kernels=True) as tracker:
        tracker(0, weights(0))
    for name in ("reference.npz", "last.npz"):
        with np.load(tmp_path / name) as saved:
            assert "exponents" not in saved
    assert sorted(os.listdir(tmp_path / "kernels")) == ["output", "step", "zarr.json"]


@pytest.mark.every(2)
@pytest.mark.parametrize("stop", [4, 1])
def test_a_killed_run_goes_on_to_the_same_rows(whole, stop, tmp_path):
    track(tmp_path, range(stop), InterruptedError)
    history, expected = track(tmp_path, range(stop, 7)), nngp.History.load(whole)
    assert rows(history) == rows(expected)
    for name in ("reference.npz", "last.npz"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    for layer in history.layers:
        for step in history.steps:
            np.testing.assert_array_equal(history.kernel(layer, step), expected.kernel(layer, step))


def test_another_training_is_noticed(tmp_path):
    def track(size, end=None):
        options = {"schedule": nngp.every(2), "metrics": METRICS, "run": tmp_path}
        with (
            contextlib.suppress(InterruptedError),
            nngp.KernelTracker(lambda w, x: w * x, X, **options) as tracker,
        ):
            for step in range(3):
                tracker(step, np.float32(size))
            if end is not None:
                raise end

    track(1e25, InterruptedError)
    track(1e25, InterruptedError)
    # The exponent alone tells this one from the first.
    with pytest.raises(ValueError, match="step=0 has other kernels than the first snapshot of this run folder"):
        track(1e25 * 2**20)


def test_a_layer_that_leaves_the_range_later(tmp_path):
    """Rows of before have no exponent, and a layer that begins at zero has a first kernel of its own."""
    sizes, wide = [1.0, 1e-25, 1.0, 2e-25], np.concatenate([X, X**2, X**3], axis=1)

    def f(w, x):
        return {"late": w * x, "begins at zero": jnp.where(w > 1e-9, 0, w * x)}

    def train():
        options = {"schedule": nngp.every(1), "metrics": METRICS, "run": tmp_path, "keep_kernels": True}
        with nngp.KernelTracker(f, wide, **options) as tracker:
            for step, size in enumerate(sizes):
                tracker(step, np.float32(size))
        return tracker.history

    with pytest.warns(UserWarning, match="the kernel of layer 'begins at zero' is zero at step 0"):
        history = train()
    assert history.layers == ["begins at zero", "late"]
    for step, size in enumerate(sizes):
        assert_close(nngp.History.load(tmp_path).kernel("late", step), gram(size * wide.astype(float)))
    with np.load(tmp_path / "reference.npz") as saved:
        assert saved["steps"].tolist() == [1, 0]
        assert saved["exponents"][0] < 0 == saved["exponents"][1]
        assert "first_exponents" not in saved
    assert history.metric("relative_change")[3, 0] == pytest.approx(3, rel=1e-5)


def test_the_report_of_such_a_run(whole):
    text = nngp.write_report(whole).read_text()
    assert "huge, wide" in text
    assert '"finite":true' in text
    assert '"finite":false' not in text
    assert not any("not finite" in finding for finding in nngp.report.findings(nngp.History.load(whole)))


def test_inside_jit(whole):
    tracker = nngp.KernelTracker(f, X, schedule=nngp.every(2), metrics=METRICS)
    transformation = nngp.track_kernel(tracker)

    @jax.jit
    def train(state):
        def one(state, step):
            w = weights(step)
            return transformation.update(w, state, w)[1], None

        return jax.lax.scan(one, state, jnp.arange(7))[0]

    train(transformation.init(weights(0)))
    tracker.close()
    expected = nngp.History.load(whole)
    for name in METRICS:
        least = 1e-60 if name == "scale" else 1e-6
        np.testing.assert_allclose(tracker.history.metric(name), expected.metric(name), rtol=1e-3, atol=least)
