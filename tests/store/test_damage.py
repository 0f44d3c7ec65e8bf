"""Files that are damaged after they were written are noticed and named, and can be computed again."""

import json
import re
import shutil
import zlib

import numpy as np
import pytest

import nngp_plugins as nngp

pytestmark = pytest.mark.once

TILE = 4 * 4 * 4 + 4  # bytes: numbers, then their checksum


def damaged(*files, of=9):
    names = ", ".join(re.escape(str(file)) for file in files)
    return rf"^{len(files)} of {of} tiles are damaged or missing: {names}; delete these files and run write_kernel"


def flip(file, position, bits=0xFF):
    content = bytearray(file.read_bytes())
    content[position] ^= bits
    file.write_bytes(content)


def repair(job, finished, *files):
    """Deletes what verify has named, and calls again."""
    for file in files:
        file.unlink(missing_ok=True)
    job.write().verify()
    assert job.is_like(finished)


@pytest.mark.parametrize("chunk", [(0, 1), (2, 2)], ids=str)
def test_every_byte_of_a_tile(written, finished, chunk):
    file, store = written.tile(*chunk), written.open()
    part = tuple(slice(4 * i, 4 * i + 4) for i in chunk)
    others = store[tuple(slice(None, 4) if i else slice(4, None) for i in chunk)]
    store.verify()
    for position in range(TILE):
        flip(file, position, 1 << position % 8)
        with pytest.raises(ValueError, match=damaged(file)):
            store.verify()
        with pytest.raises(ValueError, match=r"kernel 'kernel' of .* is damaged: .*; store\.verify\(\) lists what to"):
            store[part]
        flip(file, position, 1 << position % 8)
    flip(file, 7)
    np.testing.assert_array_equal(store[tuple(slice(None, 4) if i else slice(4, None) for i in chunk)], others)
    with pytest.raises(ValueError, match=r"is damaged"):
        store[...]
    repair(written, finished, file)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, TILE - 4, TILE - 1, TILE + 1, 2 * TILE])
def test_a_tile_of_another_size(written, finished, size):
    file = written.tile(1, 2)
    file.write_bytes((file.read_bytes() * 2)[:size])
    with pytest.raises(ValueError, match=damaged(file)):
        written.open().verify()
    if size < TILE:  # else the numbers are there
        with pytest.raises(ValueError, match=r"is damaged: "):
            written.open()[4, 9]
    repair(written, finished, file)


def test_a_deleted_tile_is_no_fill_value(written, finished):
    written.tile(2, 1).unlink()
    with pytest.raises(ValueError, match=damaged(written.tile(2, 1))):
        written.open().verify()
    with pytest.raises(ValueError, match=r"is damaged: "):
        written.open()[9, 4]
    assert np.isfinite(written.open()[:4, :4]).all()
    repair(written, finished)


def test_a_valid_tile_in_the_place_of_another(written, finished):
    shutil.copy(written.tile(0, 0), written.tile(1, 1))
    with pytest.raises(ValueError, match=damaged(written.tile(1, 1))):
        written.open().verify()
    repair(written, finished, written.tile(1, 1))


def test_it_is_not_read_as_numbers(written, small):
    """The place of each tile is compared when it is read for the first time, whatever reads it."""
    good = written.open()[...]
    shutil.copy(written.tile(0, 0), written.tile(1, 1))
    told = rf"kernel 'kernel' of .* is damaged: {written.tile(1, 1)} is not the tile that was written there; store\.ver"
    for key in (..., 5, (5, 5), (slice(None), -6), ([1, 6], [2, 7]), (slice(7, 3, -2), 4), [4], np.arange(10) == 5):
        with pytest.raises(ValueError, match=told):
            written.open()[key]
    with pytest.raises(ValueError, match=told):
        written.write()[...]
    store = written.open()
    for key in (slice(4), (slice(4, 8), [0, 9]), ([1, 6], [2, 1]), (slice(8, None), slice(4, 8)), (slice(5, 5), 5)):
        np.testing.assert_array_equal(store[key], good[key])
    with pytest.raises(ValueError, match=told):
        store[4:8]


def test_a_description_that_is_larger_than_its_tiles(written):
    """Nothing takes the memory that a prepared store says it needs."""
    large = [10**6, 10**6]
    job = json.loads(written.job.read_text())
    job["arrays"][0].update(shape=large, chunk=large)
    written.job.write_text(json.dumps(job))
    meta = json.loads((written.path / "kernel/zarr.json").read_text())
    meta["shape"] = meta["chunk_grid"]["configuration"]["chunk_shape"] = large
    (written.path / "kernel/zarr.json").write_text(json.dumps(meta))
    (written.path / "zarr.json").unlink()
    written.ledger.write_bytes(written.ledger.read_bytes().splitlines(keepends=True)[0])
    store = nngp.open_kernel(written.path)
    assert store.complete
    with pytest.raises(ValueError, match=r"kernel/c/0/0 is not the tile that was written there"):
        store[...]
    with pytest.raises(ValueError, match="1 of 1 tiles are damaged"):
        store.verify()


def test_a_tile_of_an_older_kernel(written, small):
    other = written.path.with_name("other")
    small.write(path=other, params=2 * small.params)
    shutil.copy(other / "kernel/c/2/0", written.tile(2, 0))
    with pytest.raises(ValueError, match=r"kernel/c/2/0 is not the tile that was written there"):
        written.open()[9, 1]


def test_all_damaged_tiles_are_counted(small):
    small.write(tile_size=2)
    files = sorted(small.tile().rglob("*/*"))
    for file in files[:12]:
        flip(file, 0)
    with pytest.raises(ValueError, match=r"^12 of 25 tiles are damaged or missing: .*/c/1/4 and 2 more; delete these"):
        small.open().verify()


def test_tiles_of_several_kernels(small):
    store = small.write(lambda params, x: {"a": x, "b/c": x @ params})
    flip(small.tile(1, 0, name="b.c"), 3)
    with pytest.raises(ValueError, match=damaged(small.tile(1, 0, name="b.c"), of=18)):
        store.verify()
    assert store["a"][...].shape == (10, 10)
    with pytest.raises(ValueError, match=r"kernel 'b/c' of .* is damaged"):
        store["b/c"][...]


def test_a_damaged_tile_is_no_sign_of_another_f(written, finished):
    written.keep(4)
    flip(written.tile(0, 2), 5)  # the one that is computed again
    with pytest.raises(ValueError, match=r"holds a damaged tile: .*verify\(\) lists what to delete"):
        written.write()
    repair(written, finished, written.tile(0, 2))


# descriptions


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b"[1]"], ids=repr)
def test_the_description_of_an_array(written, finished, content):
    file = written.path / "kernel/zarr.json"
    file.unlink() if content is None else file.write_bytes(content)
    for read in (written.open().verify, lambda: written.open()[0, 0]):
        with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is damaged or missing: "):
            read()
    written.keep(8)
    repair(written, finished, file)


def test_the_shape_of_an_array(written):
    file = written.path / "kernel/zarr.json"
    file.write_text(file.read_text().replace("10,10", "10,11"))
    with pytest.raises(ValueError, match=r"kernel/zarr\.json is damaged or missing: .*shape"):
        written.open()[0, 0]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000], ids=lambda content: repr(content[:4])
)
def test_the_description_of_the_group(written, finished, content):
    file = written.path / "zarr.json"
    file.write_bytes(content)
    for use in (written.open, written.write):
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(file))} is damaged or of other arrays; delete it and run"
        ):
            use()
    file.unlink()
    assert written.open().complete
    repair(written, finished)


def test_the_group_of_another_kernel(written, small):
    other = written.path.with_name("other")
    small.write(x1=small.x1[:9], path=other)
    shutil.copy(other / "zarr.json", written.path / "zarr.json")
    with pytest.raises(ValueError, match=r"zarr\.json is damaged or of other arrays"):
        written.open()


def test_attributes_of_the_user_in_the_group(written):
    file = written.path / "zarr.json"
    group = json.loads(file.read_text())
    file.write_text(json.dumps({**group, "attributes": {"mine": 1}}))
    assert written.open().complete


def test_every_cut_of_the_job(written, finished):
    whole = written.job.read_bytes()
    for size in range(0, len(whole) - 1, 7):
        written.job.write_bytes(whole[:size])
        for use in (written.open, written.write):
            with pytest.raises(ValueError, match=rf"^{re.escape(str(written.job))} is damaged: "):
                use()
    written.job.write_bytes(whole)
    repair(written, finished)


# the ledger


@pytest.mark.parametrize("line", [0, 4, 8])
def test_every_byte_of_a_line_of_the_ledger(written, line):
    whole = written.ledger.read_bytes()
    lines = whole.splitlines(keepends=True)
    start = sum(map(len, lines[:line]))
    message = rf"^{re.escape(str(written.ledger))} is damaged in line {line + 1}, so what it lists can't be trusted"
    for position in range(start, start + len(lines[line]) - 1):
        # another digit, a line that ends early, and a byte that is no text; a space may stand beside another word
        for content in (whole[position] ^ 1, ord("\r"), 0xFF):
            if whole[position : position + 1] != b" ":
                written.ledger.write_bytes(whole[:position] + bytes([content]) + whole[position + 1 :])
                with pytest.raises(ValueError, match=message):
                    nngp.open_kernel(written.path)
    with pytest.raises(ValueError, match=message):
        written.write()


@pytest.mark.parametrize(
    "chunk", [(0, 0, 3), (0, -1, 0), (1, 0, 0), (-1, 0, 0), (0, 0), (0, 0, 0, 0), (), (10**30, 0, 0)]
)
def test_a_line_of_a_tile_that_is_not_there(written, chunk):
    rest = [list(chunk), "00000000"]
    line = json.dumps([zlib.crc32(json.dumps(rest).encode()), *rest]).encode() + b"\n"
    with written.ledger.open("ab") as file:
        file.write(line)
    for use in (written.open, written.write):
        with pytest.raises(ValueError, match=r"ledger\.jsonl is damaged in line 10, so what it lists can't be trusted"):
            use()


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"1", b'[1, 2, "3"]', b'[1, [0, 0, 0], "00000000"]'], ids=repr)
def test_a_line_that_no_writer_wrote(written, line):
    lines = written.ledger.read_bytes().splitlines()
    written.ledger.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]) + b"\n")
    with pytest.raises(ValueError, match=r"ledger\.jsonl is damaged in line 4, so what it lists can't be trusted"):
        written.open()


def test_a_deleted_ledger_computes_all_anew(written, finished):
    written.ledger.unlink()
    assert written.open().fraction == 0
    repair(written, finished)
    assert written.files() == finished


def test_a_torn_last_line_is_repaired(small, finished):
    small.write()
    whole = small.ledger.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last + 1):
        small.ledger.write_bytes(whole[:-cut])
        assert small.open().fraction == 8 / 9
        small.open().verify()
        small.write()
        assert small.files() == finished


def test_noise_after_the_last_line_is_repaired(written, finished):
    written.keep(4)
    with written.ledger.open("ab") as file:
        file.write(b"\0" * 3000)  # as a file system leaves it that lost its power
    assert written.open().fraction == 4 / 9
    repair(written, finished)
