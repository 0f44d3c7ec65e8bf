"""Trainings that are killed, and go on in their run folder."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from helpers.disk import largest_file

import nngp_plugins as nngp

pytestmark = pytest.mark.once

X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
W = np.eye(4, dtype=np.float32)
METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "kernel_velocity")}


def f(w, x):
    return {"hidden": x @ w, "square": (x @ w) ** 2}


def tracker(run, **options):
    options = {"schedule": nngp.every(2), "metrics": METRICS, "run": run, **options}
    return nngp.KernelTracker(options.pop("f", f), options.pop("x", X), **options)


def train(seen, start, stop):
    for step in range(start, stop):
        seen(step, W + 0.1 * step * W[::-1], loss=1 / (1 + step))


def assert_equal(found, expected):
    assert found.steps.tolist() == expected.steps.tolist()
    assert (found.layers, found.metrics, found.scalars) == (expected.layers, expected.metrics, expected.scalars)
    for metric in expected.metrics:
        np.testing.assert_allclose(found.metric(metric), expected.metric(metric), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.scalar("loss"), expected.scalar("loss"), rtol=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The history of steps 0 to 11, without interruption."""
    with tracker(tmp_path_factory.mktemp("whole")) as seen:
        train(seen, 0, 12)
    return seen.history


class TestKilled:
    @pytest.mark.parametrize(
        ("least", "most", "pause"), [(3, 3, 0.005), pytest.param(5, 10, 0.03, marks=pytest.mark.exhaustive)]
    )
    def test_at_random_moments(self, forks, least, most, pause, tmp_path):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        whole.mkdir()
        killed.mkdir()
        forks.start(whole)
        assert forks.wait() == 0, forks.errors()
        expected = nngp.History.load(whole / "run")
        start = time.monotonic()
        forks.start(whole)
        assert forks.wait() == 0, forks.errors()
        longest = time.monotonic() - start  # of a process that finds nothing left to do
        choice, kills, references, before = random.Random(0), 0, {}, []
        for _ in range(200):
            pid = forks.start(killed, pause=pause)
            if choice.random() < 0.3:
                time.sleep(choice.random() * longest)
            else:
                self.wait_for_more(killed / "run", before, pid)
                time.sleep(choice.random() * 0.04)
            if kills < most:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            code = forks.wait()
            assert code in (0, -signal.SIGKILL), forks.errors()
            lines = self.lines(killed / "run")
            assert lines[: len(before)] == before  # nothing that was there is gone, or other
            before = lines
            if lines:
                assert references.items() <= (references := self.references(killed / "run")).items()
            kills += code != 0
            if code == 0:
                break
        assert kills >= least, kills
        assert {layer: step for layer, (step, _) in references.items()} == expected.reference_steps
        assert expected.reference_steps["late"] > expected.reference_steps["head"] == 0
        assert_equal(nngp.History.load(killed / "run"), expected)
        for layer in ("hidden", "head", "late"):
            kept = [self.kept(path / "run", layer) for path in (killed, whole)]
            np.testing.assert_allclose(*kept, rtol=1e-5, atol=1e-6)
            assert len(kept[0]) == len(expected)

    def wait_for_more(self, run, lines, pid):
        """Until there is another snapshot, or the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            while len(self.lines(run)) <= len(lines):
                os.kill(pid, 0)
                time.sleep(0.001)

    def references(self, run):
        """The step and the bytes of the kernel of each layer that has a reference by the last line."""
        last = nngp.History.load(run).steps[-1]
        with np.load(run / "reference.npz") as saved:
            steps = saved["steps"].tolist()
            kernels = [kernel.tobytes() for kernel in saved["kernels"]]
            found = zip(saved["layers"].tolist(), steps, kernels, strict=True)
            return {layer: (step, kernel) for layer, step, kernel in found if step <= last}

    def lines(self, run):
        with contextlib.suppress(FileNotFoundError):
            return (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[: len(nngp.History.load(run))]
        return []

    def kept(self, run, layer):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{run}/kernels/{layer}/"}}
        return tensorstore.open(spec).result().read().result()

    def test_goes_on_with_layers_in_another_order(self, whole, tmp_path):
        """Layers are matched by name: a layer that was listed first is not compared with the reference of another."""

        def backwards(w, x):
            return OrderedDict(reversed(f(w, x).items()))

        seen = tracker(tmp_path / "run", f=lambda w, x: OrderedDict(f(w, x)))
        train(seen, 0, 6)
        seen.__exit__(InterruptedError)
        with tracker(tmp_path / "run", f=backwards) as seen:
            train(seen, 6, 12)
        assert_equal(seen.history, whole)
        assert_equal(nngp.History.load(tmp_path / "run"), whole)

    @pytest.mark.parametrize("again", [6, 3, 0], ids=["at the next step", "from an older checkpoint", "from the start"])
    def test_goes_on(self, whole, tmp_path, again):
        seen = tracker(tmp_path / "run")
        train(seen, 0, 6)
        # An error leaves the folder as the death of the process would: the last step is not measured.
        seen.__exit__(InterruptedError)
        with tracker(tmp_path / "run") as seen:
            measured = [step for step in range(again, 12) if seen(step, W + 0.1 * step * W[::-1], loss=1 / (1 + step))]
        assert measured == [6, 8, 10]
        assert_equal(seen.history, whole)
        assert_equal(nngp.History.load(tmp_path / "run"), whole)
        seconds = [row["seconds"] for row in seen.history.rows]
        assert seconds == sorted(seconds)
        resumed = json.loads((tmp_path / "run" / "run.json").read_text())["resumed"]
        assert [entry["step"] for entry in resumed] == [4]

    def test_between_the_line_and_its_kernels(self, whole, tmp_path):
        """The velocity of the next snapshot needs the kernels of the one before."""
        run = tmp_path / "run"
        with tracker(run) as seen:
            train(seen, 0, 5)
        (run / "last.npz").rename(run / "next.npz")
        with tracker(run) as seen:
            train(seen, 5, 12)
        assert_equal(seen.history, whole)

    def test_a_torn_line_is_repaired(self, whole, tmp_path):
        run = tmp_path / "run"
        with tracker(run) as seen:
            train(seen, 0, 7)
        lines = (run / "metrics.jsonl").read_bytes()
        (run / "metrics.jsonl").write_bytes(lines[:-9])
        with pytest.warns(UserWarning, match=r"ended within a line of metrics.jsonl, which is repaired"):
            seen = tracker(run)
        assert seen.history.steps.tolist() == [0, 2, 4]
        with seen:
            train(seen, 5, 12)
        found = seen.history
        assert found.steps.tolist() == whole.steps.tolist()
        # the kernels before the lost snapshot are gone: no number is better than one over other steps
        assert np.isnan(found.metric("kernel_velocity")[3]).all()
        np.testing.assert_allclose(found.metric("cka"), whole.metric("cka"), rtol=1e-5)
        assert str(nngp.History.load(run).rows) == str(found.rows)

    def test_before_the_first_snapshot(self, tmp_path):
        tracker(tmp_path, metrics={"cka": nngp.metrics.cka}).close()
        with tracker(tmp_path, x=X[:5]) as seen:  # nothing is lost by it
            train(seen, 0, 3)
        assert nngp.History.load(tmp_path).steps.tolist() == [0, 2]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    run = tmp_path_factory.mktemp("begun")
    with tracker(run, targets=np.arange(9) % 2) as seen:
        train(seen, 0, 3)
    return run


class TestRefused:
    @pytest.fixture
    def run(self, begun, tmp_path):
        return shutil.copytree(begun, tmp_path / "run")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"x": X + 1}, "is a run with other probe; go on with the same, or name another folder"),
            ({"targets": np.arange(9) % 3}, "is a run with other targets"),
            (
                {"metrics": {"cka": nngp.metrics.cka}},
                r"other metrics: \['cka', 'kernel_velocity'\] there, \['cka'\] now",
            ),
        ],
        ids=["probe", "targets", "metrics"],
    )
    def test_of_something_else(self, run, options, message):
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        with pytest.raises(ValueError, match=message):
            tracker(run, **{"targets": np.arange(9) % 2, **options})
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        tracker(run, targets=np.arange(9) % 2).close()  # which the refusal does not block

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (lambda w, x: {"hidden": x @ w, "head": x @ w}, r"layer 'square' is of shape \(4,\) there and missing now"),
            (
                lambda w, x: {"hidden": x, "square": (x @ w)[:, :3]},
                r"'square' is of shape \(4,\) there and of shape \(3,\)",
            ),
        ],
        ids=["names", "widths"],
    )
    def test_of_another_model(self, run, other, message):
        with tracker(run, f=other, targets=np.arange(9) % 2) as seen, pytest.raises(ValueError, match=message):
            seen(4, W)
        assert nngp.History.load(run).steps.tolist() == [0, 2]

    def test_another_training_from_the_start(self, run):
        with (
            tracker(run, targets=np.arange(9) % 2) as seen,
            pytest.raises(ValueError, match="step=0 has other kernels than the first snapshot of this run folder"),
        ):
            seen(0, 2 * W)

    def test_without_resume(self, run):
        told = re.escape(f"run={str(run)!r} already holds a run; name another folder, or delete this one.")
        with pytest.raises(FileExistsError, match=told):
            tracker(run, targets=np.arange(9) % 2, resume=False)

    def test_a_damaged_line(self, run):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join(["{", *lines[1:]]) + "\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 1: "):
            tracker(run, targets=np.arange(9) % 2)

    def test_a_damaged_reference(self, run):
        (run / "reference.npz").write_bytes((run / "reference.npz").read_bytes()[:200])
        with pytest.raises(ValueError, match=r"reference.npz is damaged or missing"):
            tracker(run, targets=np.arange(9) % 2)

    def test_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=r"run='.*file' can't be written"):
            tracker(tmp_path / "file")


def test_a_full_disk_is_told_once_and_loses_nothing(tmp_path):
    seen = tracker(tmp_path, schedule=nngp.every(1))
    train(seen, 0, 4)
    seen.flush()

    def train_on():
        with largest_file(300):
            train(seen, 4, 9)
            seen.flush()

    with pytest.warns(UserWarning, match="can't be written: .* training goes on") as told:
        train_on()
    assert len(told) == 1
    assert 1 <= len((tmp_path / "metrics.jsonl").read_text().splitlines()) < 9
    train(seen, 9, 10)
    seen.close()
    assert seen.history.steps.tolist() == nngp.History.load(tmp_path).steps.tolist() == list(range(10))


def test_live_arrays_stay_as_many(tmp_path):
    """Thirty snapshots hold no more arrays than ten."""

    seen = tracker(tmp_path, schedule=nngp.every(1))
    counts = []
    for step in range(30):
        seen(step, jnp.asarray(W + np.float32(0.001) * step))
        if step in (10, 20, 29):
            seen.flush()
            counts.append(len(jax.live_arrays()))
    seen.close()
    assert max(counts) <= counts[0] + 3  # arrays of the loop itself
    assert len(nngp.History.load(tmp_path)) == 30


def test_a_metric_that_fails_leaves_the_folder_free(tmp_path):
    def fails(gram, reference):
        def raises(trace):
            raise ZeroDivisionError("of the metric")

        return jax.pure_callback(raises, jax.ShapeDtypeStruct((), jnp.float32), gram.trace())

    seen = tracker(tmp_path, metrics={"fails": fails})
    seen(0, W)
    with pytest.raises(jax.errors.JaxRuntimeError, match="of the metric"):
        seen.close()
    with tracker(tmp_path) as seen:
        train(seen, 0, 3)
    assert nngp.History.load(tmp_path).steps.tolist() == [0, 2]
