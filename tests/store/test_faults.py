"""Writes that fail, whichever it is: what is listed is valid, and the same call goes on to the same bytes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.disk import largest_file

pytestmark = pytest.mark.once
TILES = [f"kernel/c/{i}/{j}" for i in range(3) for j in range(3)]
# calls of the operating system by what they do, the error that each gets, and the files on which they do it
TEMPORARY = ["job.json.new", "zarr.json.new", *(f"{name}.__lock" for name in ("kernel/zarr.json", *TILES))]
FOLDERS = ["", "kernel", *(f"kernel/c/{i}" for i in range(3))]
FAULTS = {
    "open": ("openat", "EDQUOT", [*TEMPORARY, "ledger.jsonl"]),
    "write": ("write,pwrite64,writev,pwritev", "ENOSPC", [*TEMPORARY, "ledger.jsonl"]),
    "sync": ("fsync,fdatasync", "EIO", [*TEMPORARY, "ledger.jsonl", *FOLDERS]),
    "rename": ("rename,renameat,renameat2", "EIO", TEMPORARY),
    "make folder": ("mkdir,mkdirat", "ENOSPC", [*FOLDERS, "kernel/c"]),
}


def check(small, finished):
    """Checks what a writer that failed leaves, goes on, and returns how many tiles there were."""
    listed = 0
    if small.job.exists():
        store, files = small.open(), small.files()
        lines = files.get("ledger.jsonl", b"").splitlines()
        assert set(lines) <= set(finished["ledger.jsonl"].splitlines())
        for line in lines:
            file = "/".join(["kernel", "c", *map(str, json.loads(line)[1][1:])])
            assert files[file] == finished[file]
        listed = len(lines)
        assert store.fraction == listed / 9
        if listed:
            store.verify()
        if not store.complete:
            with pytest.raises(ValueError, match=r"is unfinished, \d+% of its tiles are written"):
                store[...]
    small.write()
    assert small.is_like(finished)
    return listed


@pytest.fixture(scope="module")
def strace(tmp_path_factory):
    """Runs each.py under strace; returns what it printed."""
    program = shutil.which("strace")
    if not program:
        pytest.skip("strace is not installed")
    tried = subprocess.run([program, "-f", "-qq", "--seccomp-bpf", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr}")
    cache = tmp_path_factory.mktemp("cache")

    def run(paths, *options):
        script = [sys.executable, Path(__file__).with_name("each.py"), *paths]
        options = ["-f", "-qq", "--seccomp-bpf", "-o", cache / "calls.txt", *options]
        # every one compiles the same functions
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        done = subprocess.run(
            [program, *options, *script], capture_output=True, text=True, env={**os.environ, **compiled}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), (cache / "calls.txt").read_text()

    return run


@pytest.mark.every(3)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_write_of_a_job_fails_in_turn(strace, small, finished, tmp_path, fault):
    calls, error, names = FAULTS[fault]
    jobs = [replace(small, path=tmp_path / str(i)) for i in range(len(names))]
    only = [part for job, name in zip(jobs, names, strict=True) for part in ("-P", str(job.path / name).rstrip("/"))]
    said, log = strace([job.path for job in jobs], "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}", *only)
    assert log.count("INJECTED") >= len(names)
    assert [name for name, how in zip(names, said, strict=True) if how == "finished"] == []
    listed = Counter(check(job, finished) for job in jobs)
    assert 9 not in listed


def test_a_tile_is_on_the_disk_before_the_ledger_lists_it(strace, small, finished):
    calls = "openat,rename,fsync,pwrite64"
    said, log = strace([small.path], "--decode-fds=path", "-s", "100000", "-e", f"trace={calls}")
    assert said == ["finished"]
    assert small.is_like(finished)
    lines = log.splitlines()

    def at(pattern):
        found = [i for i, line in enumerate(lines) if re.search(pattern, line)]
        assert found, pattern
        return found

    for tile in TILES:
        chunk = ", ".join(tile.split("/")[2:])
        listed = at(rf"pwrite64\(.*/ledger\.jsonl>, .*\[0, {chunk}\]")[0]
        synced = at(rf"fsync\(.*/{tile}\.__lock>")[0]
        renamed = at(rf"rename\(\".*/{tile}\.__lock\", ")[0]
        folder = [i for i in at(rf"fsync\(.*{tile.rpartition('/')[0]}>") if i > renamed]
        assert synced < renamed < folder[0] < listed
    assert at(r"fsync\(.*/ledger\.jsonl>")[-1] > at(r"pwrite64\(.*/ledger\.jsonl>")[-1]


# without strace


@pytest.mark.parametrize("name", ["kernel/zarr.json", TILES[0], TILES[5], TILES[8]])
def test_an_obstacle_where_a_file_is_to_be(small, finished, name):
    obstacle = small.path.with_name("obstacle")
    small.write()
    small.keep(0)
    (small.path / name).unlink(missing_ok=True)
    (small.path / name / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"What is written stays; run the same call again to go on") as failed:
        small.write()
    assert len(str(failed.value)) < 1000  # no description of the array
    (small.path / name).rename(obstacle)
    listed = check(small, finished)
    assert listed < 9
    assert listed > 0 or name == "kernel/zarr.json"


def test_files_that_may_not_grow(small, finished):
    sizes, stages = [len(finished[name]) for name in ("kernel/c/0/0", "ledger.jsonl")], set()
    for size in (0, 1, sizes[0] - 5, sizes[0] - 1, *range(sizes[0] + 1, sizes[1], 60), sizes[1] - 1):
        job = replace(small, path=small.path / str(size))
        job.write()
        job.keep(0)
        job.ledger.unlink()
        with largest_file(size), pytest.raises(OSError, match=r"What is written stays|bytes fit into|File too large"):
            job.write()
        stages.add(check(job, finished))
    assert len(stages) > 3, stages


def test_files_that_may_not_grow_from_the_start(small, finished):
    sizes = sorted({len(content) for content in finished.values()})
    for size in (size - 1 for size in sizes):
        job = replace(small, path=small.path / str(size))
        with largest_file(size), pytest.raises(OSError, match=r"What is written stays|bytes fit into|File too large"):
            job.write()
        check(job, finished)


# full disks


@pytest.fixture
def disk(tmp_path):
    """Makes a small disk, or gives one that is there another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounts are refused here: {done.stderr}")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_a_disk_that_fills_up(small, finished, disk):
    stages = set()
    for pages in range(3, 13):
        folder = disk("-o", f"size={4096 * pages}")
        try:
            job = replace(small, path=folder / "k.zarr")
            with pytest.raises(OSError, match=r"What is written stays|No space left on device|bytes fit into"):
                job.write()
            disk("-o", "remount,size=1m")
            stages.add(check(job, finished))
        finally:
            subprocess.run(["umount", folder], check=True)
    assert len(stages) > 3, stages


def test_a_disk_that_is_too_small(small, disk):
    folder = disk("-o", "size=8192")
    job = replace(small, path=folder / "k.zarr")
    x1 = small.x1.repeat(10, axis=0)
    with pytest.raises(OSError, match=r"needs 42\.5 kB more, and its disk has 8\.19 kB left"):
        job.write(x1=x1)
    assert job.files() == {}
    disk("-o", "remount,size=10m")
    assert job.write(x1=x1).complete


@pytest.mark.parametrize(("listed", "needed"), [(0, 612), (4, 340), (8, 68)])
def test_free_bytes_are_counted(written, finished, monkeypatch, listed, needed):
    written.keep(listed)
    free = shutil.disk_usage(written.path)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=rf"needs {needed} B more, and its disk has {needed - 1} B left") as refused:
        written.write()
    assert refused.value.errno == 28
    free = free._replace(free=needed)
    written.write()
    assert written.is_like(finished)
