"""What a run leaves on disk, and that nobody overwrites it."""

import json
import sys
from importlib.metadata import version

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, normal

import nngp_plugins as nngp

W = np.diag(np.array([1, 2, 3], np.float32))
METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "scale")}


def f(w, x):
    return {"hidden": x @ w, "square": (x @ w) ** 2 + 1}


@pytest.fixture
def probe():
    return normal(1, 6, 3)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "mlp"


def kernels(w, probe):
    layers = f(w.astype(float), probe.astype(float)).values()
    return np.stack([y @ y.T / 3 for y in layers])


def about(path):
    return json.loads((path / "run.json").read_text())


def test_run_json(probe, run):
    config = {"lr": 0.1, "widths": [3, 3], "path": run}
    schedule = nngp.log_spaced(3) | nngp.every(10)
    nngp.KernelTracker(f, probe, schedule=schedule, run=run, config=config, metrics={"cka": nngp.metrics.cka}).close()
    written = about(run)
    assert written["versions"]["nngp-plugins"] == nngp.__version__
    assert written["versions"]["jax"] == version("jax")
    assert written["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert written["config"] == {"lr": 0.1, "widths": [3, 3], "path": str(run)}
    assert written["schedule"] == repr(schedule)
    assert written["metrics"] == ["cka"]
    assert written["probe"]["n"] == 6


def test_fingerprint_of_the_probe(probe, tmp_path):
    def fingerprint(name, probe):
        nngp.KernelTracker(f, probe, run=tmp_path / name, metrics=METRICS).close()
        return about(tmp_path / name)["probe"]["sha256"]

    first = fingerprint("first", probe)
    assert fingerprint("same", jnp.asarray(probe)) == first
    other = probe.copy()
    other[0, 0] += 1e-6
    others = [
        fingerprint("value", other),
        fingerprint("order", probe[::-1]),
        fingerprint("shape", probe.reshape(6, 3, 1)),
        fingerprint("dtype", probe.astype(jnp.bfloat16)),
        fingerprint("fewer", probe[:5]),
    ]
    assert len({first, *others}) == 6


def test_metrics_are_on_disk_while_the_run_is_open(probe, run):
    tracker = nngp.KernelTracker(f, probe, schedule=nngp.every(2), run=run, metrics=METRICS)
    for step in range(5):
        tracker(step, np.float32(1 + step) * W, loss=jnp.float32(1 / (1 + step)))
    tracker.flush()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 2, 4]
    assert str(nngp.History.load(run).rows) == str(tracker.history.rows)
    tracker(5, W)
    tracker.close()
    loaded = nngp.History.load(str(run))
    assert str(loaded.rows) == str(tracker.history.rows)
    assert loaded.steps.tolist() == [0, 2, 4, 5]
    assert loaded.layers == ["hidden", "square"]
    assert (loaded.metrics, loaded.scalars) == (tracker.history.metrics, ["loss"])
    for metric in loaded.metrics:
        np.testing.assert_array_equal(loaded.metric(metric), tracker.history.metric(metric))
    np.testing.assert_array_equal(loaded.scalar("loss"), tracker.history.scalar("loss"))


def test_nan_is_read_back(probe, run):
    tracker = nngp.KernelTracker(f, probe, run=run, metrics=METRICS)
    with pytest.warns(UserWarning, match="not finite"), tracker:
        tracker(0, np.float32("nan") * W)
    assert np.isnan(nngp.History.load(run).metric("cka")).all()


def test_load_of_something_else(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"run='.*' holds no metrics\.jsonl; pass the folder that a KernelTracker"
    ):
        nngp.History.load(tmp_path)


@pytest.mark.parametrize("targets", [None, np.arange(6), np.eye(6)], ids=["none", "labels", "one-hot"])
def test_saved_kernels(probe, run, targets):
    with nngp.KernelTracker(f, probe, schedule=nngp.every(100), run=run, targets=targets, metrics=METRICS) as tracker:
        tracker(3, W)
        tracker(4, 2 * W)
    for name, step, w in (("reference.npz", 3, W), ("last.npz", 4, 2 * W)):
        with np.load(run / name, allow_pickle=False) as saved:
            assert saved["step"] == step
            assert saved["layers"].tolist() == ["hidden", "square"]
            assert_close(saved["kernels"], kernels(w, probe), 1e-6)
            h = np.eye(6) - 1 / 6
            assert_close(saved["centered"], h @ kernels(w, probe) @ h, 1e-6)
            np.testing.assert_array_equal(saved["targets"], np.zeros(0) if targets is None else targets)
            assert set(saved) == {"step", "layers", "kernels", "centered", "targets"}


def test_reference_is_on_disk_while_the_run_is_open(probe, run):
    tracker = nngp.KernelTracker(f, probe, run=run, metrics=METRICS)
    tracker(0, W)
    tracker.flush()
    with np.load(run / "reference.npz", allow_pickle=False) as saved:
        assert_close(saved["kernels"], kernels(W, probe), 1e-6)
    tracker.close()


def test_a_second_tracker_is_refused_while_the_first_writes(probe, run):
    tracker = nngp.KernelTracker(f, probe, schedule=nngp.every(1), run=run, metrics=METRICS)
    tracker(0, W)
    with pytest.raises(nngp.FolderInUseError, match=rf"^run='{run}' is in use"):
        nngp.KernelTracker(f, probe[:5], run=str(run))
    tracker(1, 2 * W)
    tracker.close()
    assert nngp.History.load(run).steps.tolist() == [0, 1]
    assert about(run)["probe"]["n"] == 6


def test_an_error_in_training_closes_the_folder(probe, run):
    def train():
        with nngp.KernelTracker(f, probe, run=run, metrics=METRICS) as tracker:
            tracker(0, W)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert nngp.History.load(run).steps.tolist() == [0]
    assert (run / "last.npz").is_file()


def test_to_pandas(probe, run):
    pytest.importorskip("pandas")
    with nngp.KernelTracker(f, probe, schedule=nngp.every(5), run=run, metrics=METRICS) as tracker:
        tracker(0, W, loss=0.5)
        tracker(5, 2 * W)
    frame = nngp.History.load(run).to_pandas()
    assert frame.index.tolist() == [(step, layer) for step in (0, 5) for layer in ("hidden", "square")]
    assert frame.index.names == ["step", "layer"]
    for metric in tracker.history.metrics:
        np.testing.assert_array_equal(frame[metric].unstack("layer"), tracker.history.metric(metric))
    assert frame.loc[(0, "square"), "loss"] == 0.5
    assert np.isnan(frame.loc[(5, "square"), "loss"])


def test_to_pandas_of_an_empty_history():
    pytest.importorskip("pandas")
    assert len(nngp.History().to_pandas()) == 0


def test_repr(probe):
    with nngp.KernelTracker(f, probe, metrics=METRICS) as tracker:
        tracker(0, W)
    assert repr(tracker.history) == "History(1 snapshots of 2 layers: cka, scale)"
