"""Stores that several processes write, each a part, without a word to each other."""

import math
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

pytestmark = pytest.mark.once

X = normal(0, 21, 5)
PARAMS = normal(2, 5, 6)


def features(path, part=None, f=lambda params, x: jnp.tanh(x @ params), **options):
    options = {"batch_size": 2, "block_size": 2, "progress": False, **options}
    return nngp.write_features(f, X, PARAMS, path, part=part, **options)


def kernel(path, part=None, x2=None, f=lambda params, x: jnp.tanh(x @ params), **options):
    options = {"batch_size": 2, "tile_size": 2, "progress": False, **options}
    return nngp.write_kernel(nngp.empirical_nngp_fn(f), X, x2, PARAMS, path, part=part, **options)


def kernel_of_features(path, part=None, *, store):
    return nngp.write_kernel(store, path=path, tile_size=2, progress=False, part=part)


def chunks(path, files_of):
    """All files but the ledgers, and all lines of the ledgers."""
    files = files_of(path)
    lines = [line for name in list(files) if name.startswith("ledger.") for line in files.pop(name).splitlines()]
    return files, sorted(lines)


JOBS = {
    "features": (features, {}),
    "kernel": (kernel, {}),
    "kernel with x2": (kernel, {"x2": X[:12]}),
    "kernel of features": (kernel_of_features, {}),
}


@pytest.fixture(scope="module", params=JOBS)
def job(request, tmp_path_factory, files_of):
    """What writes a store, and what one process writes."""
    write, options = JOBS[request.param]
    if write is kernel_of_features:
        options = {"store": features(tmp_path_factory.mktemp("features") / "phi.zarr")}
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    write(path, **options)
    return (lambda path, part=None, **more: write(path, part, **options, **more)), chunks(path, files_of)


def test_any_number_of_processes_finishes_what_another_number_began(job, tmp_path, files_of):
    write, whole = job
    path = tmp_path / "parts.zarr"
    assert not write(path, (2, 3)).complete
    before = chunks(path, files_of)[1]
    assert 0 < len(before) < len(whole[1])
    assert set(before) < set(whole[1])
    write(path, (0, 5))
    assert not write(path, (0, 2)).complete
    assert write(path, (1, 2)).complete
    # No chunk is written twice, although the parts overlap.
    assert chunks(path, files_of) == whole
    write(path).verify()


def test_each_part_writes_its_own_and_nothing_else(job, tmp_path, files_of):
    write, whole = job
    lines, sizes = [], []
    for index in range(4):
        write(tmp_path / f"{index}.zarr", (index, 4))
        own = chunks(tmp_path / f"{index}.zarr", files_of)[1]
        lines.extend(own)
        sizes.append(len(own))
    assert sorted(lines) == whole[1]
    # Tiles off the diagonal are written twice, as mirror images.
    assert max(sizes) <= 2 * min(sizes) + 2, sizes


def test_a_part_runs_few_rows_of_the_network(tmp_path):
    rows = []

    def f(params, x):
        jax.debug.callback(lambda x: rows.append(len(x)), x)
        return jnp.tanh(x @ params)

    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), check=False)

    def rows_of(part):
        rows.clear()
        options = {"batch_size": 4, "tile_size": 4, "progress": False, "part": part}
        nngp.write_kernel(kernel_fn, normal(0, 64, 5), None, PARAMS, tmp_path / f"{part}.zarr", **options)
        jax.effects_barrier()
        return sum(rows)

    assert rows_of((0, 1)) == 64
    assert max(rows_of((index, 16)) for index in (0, 9)) <= 3 * 64 / math.sqrt(16)


def test_the_rows_of_features_fall_with_the_number_of_processes(tmp_path):
    """As 1 / P, on a logarithmic scale. Each process runs a few examples of others to see that they change nothing."""
    counts, most, seen = (1, 2, 4, 8), [], set()
    examples = np.arange(64, dtype=np.float32)[:, None]

    def f(params, x):
        jax.debug.callback(lambda x: seen.update(x.ravel().tolist()), x)
        return x

    for count in counts:
        rows = []
        for index in range(count):
            seen.clear()
            options = {"batch_size": 4, "block_size": 4, "progress": False, "part": (index, count)}
            nngp.write_features(f, examples, None, tmp_path / str(count), **options)
            jax.effects_barrier()
            rows.append(len(seen))
        assert 64 <= sum(rows) <= 64 + 2 * count
        most.append(max(rows))
    assert np.polyfit(np.log(counts), np.log(most), 1)[0] == pytest.approx(-1, abs=0.1)


def test_the_same_part_and_other_divisions_at_once_are_refused(tmp_path):
    refused = []

    def at_the_same_time(path, parts):
        """Tries to write parts while another one is being written."""

        def f(params, x):
            def attempt(x):
                if not refused:
                    for part in parts:
                        with pytest.raises(nngp.FolderInUseError) as caught:
                            features(path, part)
                        refused.append(str(caught.value))

            jax.debug.callback(attempt, x)
            return jnp.tanh(x @ params)

        return f

    path = tmp_path / "busy.zarr"
    features(path, (0, 2), at_the_same_time(path, [(0, 2), (0, 3), None]))
    assert re.match(rf"part=\(0, 2\) of path='{path}' is in use: another process", refused[0])
    other = rf"path='{path}' is in use: a process writes a part of it, as ledger\.0-of-2\.jsonl shows"
    assert re.match(rf"part=\(0, 3\) of {other}", refused[1])
    assert re.match(other, refused[2])


def test_processes_that_begin_at_the_same_time(forks, tmp_path):
    """The ids take long to write, so that a process would come between another one and its file."""
    forks.start(tmp_path / "phi.zarr", kind="ids", parts=4)
    assert forks.wait() == 0, forks.errors()
    store = nngp.open_features(tmp_path / "phi.zarr")
    assert store.complete
    np.testing.assert_array_equal(store.ids, np.arange(400_000))


@pytest.mark.once
@pytest.mark.parametrize(
    ("kind", "rounds"),
    [("symmetric", 1), *(pytest.param(kind, 5, marks=pytest.mark.exhaustive) for kind in ("features", "symmetric"))],
)
def test_processes_that_are_killed(kind, rounds, forks, tmp_path, files_of):
    """Processes write parts at the same time, some are killed, and others in another number go on."""
    whole, path, dice = tmp_path / "whole.zarr", tmp_path / "parts.zarr", random.Random(rounds)
    forks.start(whole, kind=kind)
    assert forks.wait() == 0, forks.errors()
    open_store = nngp.open_features if kind == "features" else nngp.open_kernel
    for seed in range(rounds):
        forks.start(path, kind=kind, parts=dice.choice([2, 3, 4]), kills=1, seed=seed)
        assert forks.wait() == 0, forks.errors()
        if (path / "job.json").exists() and (store := open_store(path)).fraction:
            store.verify()
    forks.start(path, kind=kind, parts=3, kills=0, seed=0)
    assert forks.wait() == 0, forks.errors()
    assert open_store(path).complete
    assert chunks(path, files_of) == chunks(whole, files_of)
