"""A resumed job computes what is missing, and no more."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp
from nngp_plugins.engine import TileProgram

pytestmark = pytest.mark.once


@pytest.fixture
def count(monkeypatch):
    """Counts the rows through the network and the tiles that are contracted."""
    counted = {"rows": 0, "tiles": 0}

    def rows(x):
        counted["rows"] += len(x)

    def network(params, x):
        jax.debug.callback(rows, x)
        return jnp.tanh(x @ params)

    compute = TileProgram.__call__

    def computed(*arguments):
        counted["tiles"] += 1
        return compute(*arguments)

    monkeypatch.setattr(TileProgram, "__call__", computed)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(network), check=False)

    def run(small, kernel_fn=kernel_fn, **options):
        counted.update(rows=0, tiles=0)
        small.write(kernel_fn=kernel_fn, **options)
        jax.effects_barrier()
        return counted["rows"], counted["tiles"]

    run.kernel_fn = kernel_fn
    return run


def test_a_finished_kernel_runs_nothing(small, count):
    assert count(small) == (12, 6)  # batches of 3
    times = {file: file.stat().st_mtime_ns for file in small.path.rglob("*") if file.name != ".lock"}
    assert count(small) == (0, 0)
    assert {file: file.stat().st_mtime_ns for file in small.path.rglob("*") if file.name != ".lock"} == times


@pytest.mark.parametrize(
    ("listed", "tiles"),
    [(0, 6), (2, 5), (5, 4), (8, 2)],
)
def test_missing_tiles_and_one_more(written, finished, count, listed, tiles):
    order = [(0, 0), (0, 1), (1, 0), (0, 2), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    lines = {tuple(json.loads(line)[1][1:]): line for line in written.ledger.read_text().splitlines(keepends=True)}
    written.ledger.write_text("".join(lines[chunk] for chunk in order))
    written.keep(listed)
    assert count(written) == (12, tiles)
    assert written.is_like(finished)


def test_a_mirror_image_that_is_missing(written, finished, count):
    written.tile(2, 0).unlink()
    assert count(written) == (12, 2)
    assert written.is_like(finished)


def test_another_x2(small, count):
    assert count(small, x2=small.x2) == (12 + 9, 6)
    files = small.files()
    small.keep(4)
    assert count(small, x2=small.x2) == (12 + 9, 3)
    assert small.files() == files


def test_blocks_that_are_written_do_not_run(written, finished, count):
    kernel_fn = nngp.batch(count.kernel_fn.kernel_fn, check=False, memory_budget=150)  # blocks of 4 rows
    written.tile(2, 2).unlink()
    # the last block, 8 and 9, and the one of the tile that is computed again
    whole = 12 + 6 * 3
    assert count(written, kernel_fn)[0] < whole
    assert written.is_like(finished)


def test_files_that_are_there_are_left(written, count):
    written.keep(4)
    before = {file: file.stat().st_ino for file in written.path.rglob("*") if file.name != ".lock"}
    count(written)
    assert all(file.stat().st_ino == inode for file, inode in before.items())


def test_another_f_with_other_numbers(written):
    def other(params, x):
        return 2 * jnp.tanh(x @ params)

    for listed in (1, 8):
        written.keep(listed)
        files = written.files()
        with pytest.raises(ValueError, match=r"holds tiles of another f: one of them, computed again, has other numbe"):
            written.write(other)
        assert written.files() == files
        written.write()


def test_left_overs_of_writes_that_were_killed(written, finished):
    written.keep(4)
    for name in "kernel/zarr.json.__lock", "kernel/c/1/1.__lock", "kernel/c/2/2.__lock":
        (written.path / name).write_bytes(b"half")
    written.write()
    assert written.is_like(finished)


def test_a_start_that_was_killed(small, finished):
    small.path.mkdir()
    (small.path / "job.json.new").write_bytes(b'{"made_of"')
    (small.path / ".lock").touch()
    small.write()
    assert small.is_like(finished)


def test_tiles_that_are_not_listed_are_written_again(written, finished):
    lines = written.ledger.read_bytes().splitlines(keepends=True)
    written.ledger.write_bytes(b"".join(lines[:3]))
    for chunk in (1, 1), (2, 2):
        written.tile(*chunk).write_bytes(b"not a tile")
    assert written.write().complete
    written.open().verify()
    assert written.is_like(finished)


def test_new_arrays_of_the_same_numbers_go_on(written, finished):
    written.keep(4)
    written.write(x1=jnp.array(written.x1), params=np.asfortranarray(written.params))
    assert written.is_like(finished)
