"""Files that survive a kill: what `_durable.py` promises, on real files."""

import fcntl
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from helpers.disk import largest_file

import nngp_plugins as nngp
from nngp_plugins.engine import all_but_batch, empirical_nngp_fn

pytestmark = pytest.mark.once

PROBE = np.eye(8, 3, dtype=np.float32)
METRICS = {"scale": nngp.metrics.DEFAULT["scale"]}  # each metric is compiled, and the files are the same with one


def product(w, x):
    return x @ w


def scaled(w, x):
    return w * x


def tracker(run, f=product, probe=PROBE):
    return nngp.KernelTracker(f, probe, run=run, schedule=nngp.every(1), metrics=METRICS)


def write_store(path, params=2.0):
    kernel_fn = empirical_nngp_fn(scaled, trace_axes=all_but_batch)
    return nngp.write_kernel(kernel_fn, PROBE, None, params, path, batch_size=4, tile_size=3, progress=False)


def test_a_folder_in_use_is_one_error_for_runs_and_stores(tmp_path):
    write_store(tmp_path / "store")
    with tracker(tmp_path / "run") as seen:
        seen(0, np.eye(3, dtype=np.float32))
        with pytest.raises(nngp.FolderInUseError, match=rf"^run='{tmp_path}/run' is in use: another process, or a"):
            tracker(tmp_path / "run")
    lock = f"file = open({str(tmp_path / 'store/.lock')!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    code = f"import fcntl, time; {lock}; print(1, flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"1\n"
            with pytest.raises(nngp.FolderInUseError, match=rf"^path='{tmp_path}/store' is in use: another process"):
                write_store(tmp_path / "store")
        finally:
            other.kill()
    assert write_store(tmp_path / "store").complete
    # Programs that caught the errors of version 0.1.0 still catch this one.
    assert issubclass(nngp.FolderInUseError, FileExistsError)
    assert issubclass(nngp.FolderInUseError, BlockingIOError)


class TestLocks:
    FORKS = """
import gc, os, sys, time
import numpy as np, nngp_plugins as nngp
tracker = nngp.KernelTracker(lambda w, x: x @ w, np.eye(8, 3, dtype="float32"), run=sys.argv[1])
if not (child := os.fork()):
    del tracker
    gc.collect()
    os._exit(0)
os.waitpid(child, 0)
if not (child := os.fork()):
    sys.exit(0)
# Python's own end comes after all exit handlers, and JAX sometimes waits there for threads that a child does not have.
for _ in range(300):
    if os.waitpid(child, os.WNOHANG)[0]:
        break
    time.sleep(0.01)
else:
    os.kill(child, 9)
if child := os.fork():
    print(child, flush=True)
time.sleep(30)
"""

    def test_of_a_process_that_forks(self, tmp_path):
        """A child that drops the tracker or exits does not let go of its parent's lock; one that lives on has none."""
        run = tmp_path / "run"
        script = [sys.executable, "-W", "ignore", "-c", self.FORKS, run]
        with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as parent:
            try:
                child = int(parent.stdout.readline())
                with pytest.raises(nngp.FolderInUseError, match="is in use"):
                    tracker(run)
            finally:
                parent.kill()
            parent.wait()
            tracker(run).close()
            os.kill(child, signal.SIGKILL)

    def test_who_asks_is_not_taken_for_a_writer(self, tmp_path):
        """To ask takes the lock for a moment; a writer that comes in this moment still gets it."""
        tracker(tmp_path).close()
        with (tmp_path / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            threading.Timer(0.01, fcntl.flock, (file, fcntl.LOCK_UN)).start()
            tracker(tmp_path).close()

    def test_a_deleted_lock_of_a_run(self, tmp_path):
        with tracker(tmp_path) as first:
            first(0, np.eye(3, dtype=np.float32))
            first.flush()
            (tmp_path / ".lock").unlink()
            before = (tmp_path / "run.json").read_bytes()
            with pytest.raises(nngp.FolderInUseError, match="is in use: another process, or a tracker"):
                tracker(tmp_path)
            assert (tmp_path / "run.json").read_bytes() == before
            first(1, 2 * np.eye(3, dtype=np.float32))
        assert nngp.History.load(tmp_path).steps.tolist() == [0, 1]
        tracker(tmp_path).close()

    def test_a_deleted_lock_of_a_store(self, tmp_path):
        write_store(tmp_path / "store")
        with (tmp_path / "store" / "ledger.jsonl").open("rb") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            with pytest.raises(nngp.FolderInUseError, match=rf"^path='{tmp_path}/store' is in use"):
                write_store(tmp_path / "store")
        assert write_store(tmp_path / "store").complete

    def test_a_folder_that_is_replaced_is_left_alone(self, tmp_path):
        """A tracker that is not closed does not write into the run that took its place."""
        run = tmp_path / "run"
        first = tracker(run)
        first(0, np.eye(3, dtype=np.float32))
        first.flush()
        shutil.rmtree(run)
        with tracker(run) as second:
            second(5, np.eye(3, dtype=np.float32))
            second.flush()
            files = {path.name: path.read_bytes() for path in run.iterdir()}
            first(1, 2 * np.eye(3, dtype=np.float32))
            with pytest.warns(UserWarning, match="can't be written|lacks 1 snapshots, which the tracker's") as said:
                first.close()
            assert len(said) == 2
            assert {path.name: path.read_bytes() for path in run.iterdir()} == files
        assert first.history.steps.tolist() == [0, 1]

    def test_a_tracker_that_is_dropped_or_refused_lets_go(self, tmp_path):
        with tracker(tmp_path) as seen:
            seen(0, np.eye(3, dtype=np.float32))
        whole = (tmp_path / "reference.npz").read_bytes()
        (tmp_path / "reference.npz").write_bytes(whole[:100])
        kept = []
        try:
            tracker(tmp_path)
        except ValueError as error:
            kept.append(error)  # as a notebook keeps the last exception
        (tmp_path / "reference.npz").write_bytes(whole)
        dropped = tracker(tmp_path)
        del dropped
        gc.collect()
        tracker(tmp_path).close()
        assert "reference.npz is damaged or missing" in str(kept[0])


@pytest.mark.parametrize("file", ["run/metrics.jsonl", "store/ledger.jsonl"])
def test_a_torn_last_line_is_replaced_even_if_it_is_longer_than_the_next(tmp_path, file):
    with tracker(tmp_path / "run") as seen:
        seen(0, np.eye(3, dtype=np.float32))
    write_store(tmp_path / "store")
    whole = (tmp_path / file).read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / file).write_bytes(b"".join(lines[:-1]) + lines[-1][:9] + b"x" * 10_000)
    if file.startswith("run"):
        with pytest.warns(UserWarning, match="ended within a line of metrics.jsonl, which is repaired"):
            seen = tracker(tmp_path / "run")
        with seen:
            seen(0, np.eye(3, dtype=np.float32))
        assert len(nngp.History.load(tmp_path / "run")) == 1
    else:
        write_store(tmp_path / "store").verify()
        assert sorted((tmp_path / file).read_bytes().splitlines()) == sorted(whole.splitlines())
    assert b"xxx" not in (tmp_path / file).read_bytes()


# NumPy 2.1 leaves its ZipFile open when a write fails, and Python then complains as it collects it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path):
    """A limit on the size of files is a full disk that the test can undo."""
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    with tracker(tmp_path, scaled, big) as seen:
        seen(0, 1.0)
        seen.flush()
        before = (tmp_path / "last.npz").read_bytes()
        with largest_file(len(before) // 2):
            seen(1, 2.0)
            with pytest.warns(UserWarning, match="can't be written"):
                seen.flush()
            assert (tmp_path / "last.npz").read_bytes() == before
        seen(2, 3.0)
    assert nngp.History.load(tmp_path).steps.tolist() == [0, 1, 2]
    with np.load(tmp_path / "last.npz") as last:
        assert last["step"] == 2


TRAINING = """
import sys, warnings
import numpy as np, nngp_plugins as nngp
warnings.simplefilter("ignore")
seen = nngp.KernelTracker(lambda w, x: w * x, np.eye(4, dtype="float32"), run=sys.argv[1],
                          schedule=nngp.every(1), metrics={"scale": nngp.metrics.DEFAULT["scale"]})
for step in range(int(sys.argv[2])):
    seen(step, 1.0 + step)
    seen.flush()
seen.close()
print(seen.history.steps.tolist())
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_a_snapshot_is_on_the_disk_before_it_is_named(tmp_path):
    """The contents reach the disk before the new name does, and the name reaches it before the next snapshot."""
    calls = tmp_path / "calls.txt"
    options = ["-f", "--seccomp-bpf", "-y", "-e", "trace=fsync,rename", "-o", calls]
    subprocess.run(
        ["strace", *options, sys.executable, "-c", TRAINING, tmp_path / "run", "1"], check=True, capture_output=True
    )
    lines = [line for line in calls.read_text().splitlines() if str(tmp_path) in line and " = 0" in line]

    def first(call, file):
        return next(i for i, line in enumerate(lines) if f" {call}(" in line and file in line)

    for name in ("run.json", "reference.npz", "next.npz"):
        renamed = first("rename", f'{name}"')
        assert first("fsync", f"{name}.new>") < renamed
        assert "fsync" in lines[renamed + 1]
        assert f"{tmp_path}/run>" in lines[renamed + 1]
    assert first("fsync", "metrics.jsonl>") < first("rename", 'last.npz"')


def test_the_fingerprint_of_a_probe_is_the_hash_of_its_numbers(tmp_path):
    """Run folders of older versions hold these, so they never change."""
    probe = {"a": np.arange(12.0, dtype=np.float32).reshape(4, 3), "b": np.arange(4, dtype=np.int32)}
    with tracker(tmp_path, lambda w, x: x["a"] * w, probe) as seen:
        seen(0, 1.0)
    expected = hashlib.sha256()
    for leaf in jax.tree.leaves(probe):
        expected.update(f"{leaf.shape}{leaf.dtype}".encode() + leaf.tobytes())
    assert json.loads((tmp_path / "run.json").read_text())["probe"] == {"n": 4, "sha256": expected.hexdigest()}


def test_another_folder_of_the_process_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tracker("run") as seen:
        seen(0, np.eye(3, dtype=np.float32))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        seen(1, 2 * np.eye(3, dtype=np.float32))
    assert nngp.History.load(tmp_path / "run").steps.tolist() == [0, 1]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_report_that_does_not_fit_leaves_the_old_one(tmp_path):
    pytest.importorskip("plotly")
    with tracker(tmp_path) as seen:
        seen(0, np.eye(3, dtype=np.float32))
    before = nngp.write_report(tmp_path).read_bytes()
    with largest_file(len(before) // 2), pytest.raises(OSError, match=r"File too large: .*report\.html"):
        nngp.write_report(tmp_path, title="another")
    assert (tmp_path / "report.html").read_bytes() == before
    assert not (tmp_path / "report.html.new").exists()


@pytest.mark.parametrize("limit", [0, 1500], ids=["nothing fits", "lines would fit"])
def test_a_disk_that_is_full_at_the_first_snapshot(tmp_path, limit):
    """Lines are not written before the files without which they can't be used, and all is there in the end."""
    big = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    seen = tracker(tmp_path, scaled, big)
    with largest_file(limit):
        for step in range(3):
            seen(step, 1.0 + step)
        with pytest.warns(UserWarning, match="can't be written: .*; training goes on"):
            seen.flush()
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    seen.close()
    assert nngp.History.load(tmp_path).steps.tolist() == [0, 1, 2]
    with np.load(tmp_path / "reference.npz") as reference, np.load(tmp_path / "last.npz") as last:
        np.testing.assert_allclose(reference["kernels"][0], big @ big.T / 16, atol=1e-6)
        np.testing.assert_allclose(last["kernels"][0], 9 * big @ big.T / 16, atol=1e-5)
    again = tracker(tmp_path, scaled, big)
    again(3, 4.0)
    again.close()
    assert nngp.History.load(tmp_path).steps.tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_a_disk_that_also_refuses_to_cut_off_a_line(tmp_path):
    """Half of the first line of three is on the disk when it and all later truncations fail for a while."""
    file = tmp_path / "run" / "metrics.jsonl"
    options = ["-f", "-qq", "--seccomp-bpf", "-o", tmp_path / "calls.txt", "-P", file, "-e", "trace=fsync,ftruncate"]
    faults = ["-e", "inject=fsync:error=EIO:when=1..2", "-e", "inject=ftruncate:error=EIO:when=1..2"]
    command = ["strace", *options, *faults, sys.executable, "-c", TRAINING, tmp_path / "run", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.stdout == "[0, 1, 2, 3]\n", done.stderr
    assert (tmp_path / "calls.txt").read_text().count("INJECTED") == 4
    assert nngp.History.load(tmp_path / "run").steps.tolist() == [0, 1, 2, 3]
