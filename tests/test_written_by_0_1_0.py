"""A run folder and kernel stores that version 0.1.0 wrote still open, resume, compare and report.

The folders in ``written_by_0_1_0`` were made by ``write_all`` of this file with that version, and are never made anew.
"""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp

HERE = Path(__file__).parent / "written_by_0_1_0"
PROBE = np.cos(np.arange(24.0).reshape(8, 3)).astype(np.float32)
TARGETS = np.arange(8) % 2
# Whole numbers, so that products are exact whatever the order of the sums.
X = (np.arange(33).reshape(11, 3) % 7 - 3).astype(np.float32)
WEIGHTS = (np.arange(12).reshape(3, 4) % 5 - 2).astype(np.float32)


def net(params, x):
    hidden = jnp.tanh(x @ params["hidden"])
    return {"hidden": hidden, "head/0": hidden @ params["head"]}


def weights(step):
    return {
        "hidden": np.sin(np.arange(15, dtype=np.float32).reshape(3, 5) + 0.1 * step),
        "head": np.cos(np.arange(50, dtype=np.float32).reshape(5, 10) * (1 + 0.01 * step)),
    }


def track(run, steps, stop=None, first=0):
    """Trains on to the end of ``steps``; an error ends it at step ``stop``, as a killed process would."""
    schedule = nngp.every(2)
    with nngp.KernelTracker(
        net, PROBE, targets=TARGETS, schedule=schedule, run=run, keep_kernels=True, config={"lr": 0.1}
    ) as tracker:
        for step in range(first, steps):
            if step == stop:
                raise InterruptedError
            tracker(step, weights(step), loss=1 / (1 + step))
    return tracker.history


def write_store(path, tile_size=4):
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: {"a": x @ params, "b": x}, trace_axes=nngp.all_but_batch)
    return nngp.write_kernel(
        kernel_fn, X, None, WEIGHTS, path, batch_size=4, tile_size=tile_size, progress=False, resume=True
    )


def write_all(folder):
    with contextlib.suppress(InterruptedError):
        track(folder / "run", 9, stop=5)
    write_store(folder / "finished.zarr")
    write_store(folder / "unfinished.zarr")
    ledger = folder / "unfinished.zarr" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    for line in lines[5:]:
        _, (array, *chunk), _ = json.loads(line)
        folder.joinpath("unfinished.zarr", "ab"[array], "c", *map(str, chunk)).unlink()
    ledger.write_bytes(b"".join(lines[:5]) + lines[5][:9])  # and a torn line


@pytest.fixture
def old(tmp_path):
    """A copy of the old folders, as if this very version of JAX had begun the stores."""
    shutil.copytree(HERE, tmp_path / "old")
    device = jax.devices()[0]
    for job in tmp_path.glob("old/*.zarr/job.json"):
        said = json.loads(job.read_text())
        said["made_of"]["software"] = f"jax {jax.__version__} on {device.platform} {device.device_kind}"
        job.write_text(json.dumps(said))
    return tmp_path / "old"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of today without interruption."""
    return track(tmp_path_factory.mktemp("whole"), 9)


class TestRunFolder:
    def test_it_goes_on_as_an_uninterrupted_run(self, old, whole):
        lines = (old / "run/metrics.jsonl").read_text()
        resumed = track(old / "run", 9)
        assert resumed.steps.tolist() == whole.steps.tolist() == [0, 2, 4, 6, 8]
        assert (old / "run/metrics.jsonl").read_text().startswith(lines)
        assert resumed.metrics == whole.metrics
        for metric in whole.metrics:
            np.testing.assert_allclose(resumed.metric(metric), whole.metric(metric), rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(resumed.kernel("hidden", 2), resumed.kernel("hidden", 2).T)
        np.testing.assert_allclose(resumed.kernel("head/0", 8), whole.kernel("head/0", 8), rtol=1e-5)

    def test_its_history_reads_as_it_was_written(self, old):
        history = nngp.History.load(old / "run")
        rows = [json.loads(line) for line in (HERE / "run/metrics.jsonl").read_text().splitlines()]
        assert history.layers == ["head/0", "hidden"]
        assert history.steps.tolist() == [row["step"] for row in rows]
        np.testing.assert_equal(history.metric("cka")[:, 0], [row["kernel/head/0/cka"] for row in rows])
        phi = np.tanh(PROBE @ np.asarray(weights(2)["hidden"])) / np.sqrt(5)
        np.testing.assert_allclose(history.kernel("hidden", 2), phi @ phi.T, rtol=1e-5)

    def test_it_compares_with_a_new_run(self, old, whole):
        both = nngp.compare({"old": old / "run", "new": whole})
        table = both.to_pandas().unstack("run")
        table = table[table.index.get_level_values("step") <= 4]
        np.testing.assert_allclose(table["scale"]["old"], table["scale"]["new"], rtol=1e-5)

    def test_its_report_says_that_its_references_are_the_first_snapshot(self, old):
        assert nngp.History.load(old / "run").reference_steps == {"head/0": 0, "hidden": 0}
        page = nngp.write_report(old / "run").read_text()
        assert "head/0" in page
        assert "hidden" in page
        assert "The reference of a layer" not in page
        data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
        assert [frames[0]["step"] for frames in data["kernels"]["frames"]] == [0, 0]

    def test_a_layer_that_was_zero_gets_a_reference(self, old):
        with np.load(old / "run/reference.npz") as saved:
            arrays = dict(saved)
        for name in ("kernels", "centered"):
            arrays[name][0] = 0
        np.savez(old / "run/reference.npz", **arrays)
        resumed = track(old / "run", 9, first=5)
        assert resumed.reference_steps == {"head/0": 6, "hidden": 0}
        np.testing.assert_allclose(resumed.metric("cka")[3, 0], 1, rtol=1e-5)
        assert resumed.metric("cka")[4, 0] < 1

    def test_another_reference_is_refused(self, old):
        with pytest.raises(ValueError, match="is a run with other reference: None there, 4 now"):
            nngp.KernelTracker(net, PROBE, targets=TARGETS, run=old / "run", keep_kernels=True, reference=4)

    def test_another_probe_is_refused(self, old):
        with pytest.raises(ValueError, match="is a run with other probe"):
            nngp.KernelTracker(net, PROBE + 1, targets=TARGETS, run=old / "run", keep_kernels=True)


class TestKernelStore:
    def test_a_finished_one_is_read_and_verified(self, old):
        store = nngp.open_kernel(old / "finished.zarr")
        store.verify()
        np.testing.assert_array_equal(store["a"][...], (X @ WEIGHTS) @ (X @ WEIGHTS).T / 4)
        assert write_store(old / "finished.zarr").complete

    def test_an_unfinished_one_goes_on_to_the_same_bytes(self, old):
        assert nngp.open_kernel(old / "unfinished.zarr").fraction == 5 / 18
        assert write_store(old / "unfinished.zarr").complete
        for file in (HERE / "finished.zarr").glob("[ab]/**/*"):
            if file.is_file():
                assert (old / "unfinished.zarr" / file.relative_to(HERE / "finished.zarr")).read_bytes() == (
                    file.read_bytes()
                )

    def test_other_tiles_are_refused(self, old):
        with pytest.raises(ValueError, match="holds a kernel of other tile_size"):
            write_store(old / "unfinished.zarr", tile_size=5)
