"""Processes that write a kernel are killed at every stage; another goes on, to the same bytes."""

import contextlib
import json
import os
import random
import signal
import time

import pytest

import nngp_plugins as nngp

KINDS = "symmetric", "two kernels"
pytestmark = pytest.mark.once


@pytest.fixture(scope="module", params=KINDS)
def job(request, forks, files_of, tmp_path_factory):
    """What to write, its files, and the seconds until the first tile is listed."""
    path = tmp_path_factory.mktemp("uninterrupted") / "k.zarr"
    forks.start(path, kind=request.param)  # the first one compiles
    assert forks.wait() == 0, forks.errors()
    files, again, start = files_of(path), path.with_name("again.zarr"), time.monotonic()
    pid = forks.start(again, kind=request.param)
    wait_until(pid, lambda: lines(again))
    begun = time.monotonic() - start
    assert forks.wait() == 0, forks.errors()
    assert files_of(again) == files
    return request.param, files, begun


def lines(path):
    with contextlib.suppress(FileNotFoundError):
        return (path / "ledger.jsonl").read_bytes().count(b"\n")
    return 0


def wait_until(pid, happened):
    """Until it happened, or the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        while not happened():
            os.kill(pid, 0)
            time.sleep(0.0002)


def kill(forks, pid):
    """Whether the process was still running."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    code = forks.wait()
    assert code in (0, -signal.SIGKILL), forks.errors()
    return code != 0


def check(path, final, files_of):
    """What must hold at any moment; returns the fraction that is written."""
    found = files_of(path) if path.exists() else {}
    if "job.json" not in found:
        with pytest.raises(FileNotFoundError, match="holds no kernel"):
            nngp.open_kernel(path)
        assert set(found) <= {"job.json.new"}
        return 0.0
    store, ledger = nngp.open_kernel(path), found.get("ledger.jsonl", b"")
    assert final["ledger.jsonl"].startswith(ledger)
    components = [array["component"] for array in json.loads(found["job.json"])["arrays"]]
    listed = [json.loads(line)[1] for line in ledger.splitlines(keepends=True) if line.endswith(b"\n")]
    for array, *chunk in listed:
        file = "/".join([components[array], "c", *map(str, chunk)])
        assert found[file] == final[file]
    assert store.fraction == len(listed) / final["ledger.jsonl"].count(b"\n")
    assert store.complete == (store.fraction == 1)
    kernel = next(iter(store.arrays.values()))
    if not store.complete:
        with pytest.raises(ValueError, match=f"is unfinished, {store.fraction:.0%} of its tiles are written"):
            kernel[0, 0]
    if listed:
        store.verify()
    return store.fraction


def finish(forks, path, kind, final, files_of):
    forks.start(path, kind=kind)
    assert forks.wait() == 0, forks.errors()
    assert files_of(path) == final  # so nothing is left over, either
    assert nngp.open_kernel(path).complete


@pytest.mark.parametrize("job", KINDS[:1], indirect=True)
@pytest.mark.parametrize("pauses", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_killed_while_it_begins(forks, job, pauses, files_of, tmp_path):
    kind, final, _ = job
    dice, stages, kills = random.Random(0), [], 0
    names = ".lock", "job.json.new", "job.json", "zarr.json.new", "zarr.json", "kernel", "kernel/c"
    for name in names if pauses > 1 else names[::2]:
        path = tmp_path / name.replace("/", ".")
        for pause in (0, dice.uniform(0, 0.001))[:pauses]:
            pid = forks.start(path, kind=kind)
            wait_until(pid, (path / name).exists)
            time.sleep(pause)
            kills += kill(forks, pid)  # unless it has ended before
            stages.append(max((i for i, name in enumerate(names) if (path / name).exists()), default=-1))
            check(path, final, files_of)
        finish(forks, path, kind, final, files_of)
    assert kills >= len(stages) // 2, kills
    assert len(set(stages)) >= min(3, len(stages) // 2), stages


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments(forks, job, kills, files_of, tmp_path):
    kind, final, begun = job
    dice, stages, path, fraction = random.Random(kills), [], tmp_path / "0.zarr", 0.0
    while len(stages) < kills:
        if fraction == 1:  # a job may end before it was killed often enough
            assert files_of(path) == final
            path, fraction = tmp_path / f"{len(stages)}.zarr", 0.0
        before, pid = lines(path), forks.start(path, kind=kind)
        if dice.random() < 0.25:  # while JAX starts and compiles
            time.sleep(dice.uniform(0, begun))
        else:  # while tiles are written
            wait_until(pid, lambda path=path, before=before: lines(path) > before)
            time.sleep(dice.uniform(0, 0.01))
        if kill(forks, pid):
            stages.append(lines(path))
        before, fraction = fraction, check(path, final, files_of)
        assert fraction >= before
    finish(forks, path, kind, final, files_of)
    assert len(set(stages)) >= kills // 3, stages
