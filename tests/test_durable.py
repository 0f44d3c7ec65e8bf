"""Files that survive a kill: what `_durable.py` promises, on real files."""

import hashlib
import json
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import nngp_plugins as nngp
from nngp_plugins.engine import all_but_batch, empirical_nngp_fn

PROBE = np.eye(8, 3, dtype=np.float32)


def tracker(run, **options):
    return nngp.KernelTracker(lambda w, x: x @ w, PROBE, run=run, schedule=nngp.every(1), **options)


def write_store(path, params=2.0):
    kernel_fn = empirical_nngp_fn(lambda params, x: params * x, trace_axes=all_but_batch)
    return nngp.write_kernel(kernel_fn, PROBE, None, params, path, batch_size=4, tile_size=3, progress=False)


def test_a_folder_in_use_is_one_error_for_runs_and_stores(tmp_path):
    write_store(tmp_path / "store")
    with tracker(tmp_path / "run") as seen:
        seen(0, np.eye(3, dtype=np.float32))
        with pytest.raises(nngp.FolderInUseError, match=rf"^run='{tmp_path}/run' is in use: another process, or a"):
            tracker(tmp_path / "run")
    lock = f"lock = filelock.FileLock({str(tmp_path / 'store/.lock')!r}); lock.acquire()"
    code = f"import filelock, time; {lock}; print(1, flush=True); time.sleep(99)"
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
    with nngp.KernelTracker(lambda w, x: w * x, big, run=tmp_path, schedule=nngp.every(1)) as seen:
        seen(0, 1.0)
        seen.flush()
        before = (tmp_path / "last.npz").read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
        try:
            seen(1, 2.0)
            with pytest.warns(UserWarning, match="can't be written"):
                seen.flush()
            assert (tmp_path / "last.npz").read_bytes() == before
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        seen(2, 3.0)
    assert nngp.History.load(tmp_path).steps.tolist() == [0, 1, 2]
    with np.load(tmp_path / "last.npz") as last:
        assert last["step"] == 2


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_a_snapshot_is_on_the_disk_before_it_is_named(tmp_path):
    """The contents reach the disk before the new name does, and the name reaches it before the next snapshot."""
    code = f"""
import numpy as np, nngp_plugins as nngp
tracker = nngp.KernelTracker(lambda w, x: w * x, np.eye(4, dtype="float32"), run={str(tmp_path / "run")!r})
tracker(0, 1.0)
tracker.close()
"""
    calls = tmp_path / "calls.txt"
    options = ["-f", "-y", "-e", "trace=fsync,rename", "-o", calls]
    subprocess.run(["strace", *options, sys.executable, "-c", code], check=True)
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
    with nngp.KernelTracker(lambda w, x: x["a"] * w, probe, run=tmp_path) as seen:
        seen(0, 1.0)
    expected = hashlib.sha256()
    for leaf in jax.tree.leaves(probe):
        expected.update(f"{leaf.shape}{leaf.dtype}".encode() + leaf.tobytes())
    assert json.loads((tmp_path / "run.json").read_text())["probe"] == {"n": 4, "sha256": expected.hexdigest()}
