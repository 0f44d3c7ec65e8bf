"""Reading a stored kernel is reading the array that it is."""

import contextlib
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import nngp_plugins as nngp

# other libraries that read what we write
xarray, zarr = pytest.importorskip("xarray"), pytest.importorskip("zarr")

SHAPE = 7, 7, 2, 2, 3, 3


def conv(params, x):
    return jnp.tanh(x @ params)


def two(params, x):
    return {"block/conv": x @ params, "head": jnp.exp(1j * x)}


@pytest.fixture(scope="module")
def spatial(tmp_path_factory):
    x = np.random.default_rng(0).standard_normal((7, 2, 3, 4)).astype(np.float32)
    kernel_fn, params = nngp.empirical_nngp_fn(conv), np.eye(4, dtype=np.float32)
    path = tmp_path_factory.mktemp("spatial") / "k.zarr"
    return nngp.write_kernel(kernel_fn, x, None, params, path, batch_size=3, tile_size=3, progress=False)


@pytest.fixture(scope="module")
def dense(spatial):
    y = np.asarray(zarr.open_array(spatial.path / "kernel", mode="r"))  # as another library reads it
    assert y.shape == SHAPE
    return y


def integers(size):
    return st.integers(-size, size - 1)


def axis(size):
    arrays = st.lists(integers(size), max_size=4)
    kinds = [
        integers(size),
        st.slices(size),
        arrays,
        arrays.map(lambda items: np.asarray(items, np.int8)),
        st.lists(st.booleans(), min_size=size, max_size=size).map(np.asarray),
    ]
    return st.one_of(kinds)


@st.composite
def keys(draw):
    """An index of up to six axes, with one array or mask at most."""
    first = draw(st.integers(0, len(SHAPE)))
    last = draw(st.integers(0, len(SHAPE) - first))
    items = [draw(axis(size)) for size in (*SHAPE[:first], *SHAPE[len(SHAPE) - last :])]
    arrays = [i for i, item in enumerate(items) if isinstance(item, list | np.ndarray)]
    for i in arrays[1:]:
        items[i] = slice(None)
    if arrays:  # NumPy takes an integer for an array there
        items = [slice(item, item + 1 or None) if isinstance(item, int) else item for item in items]
    if last or draw(st.booleans()):
        items.insert(first, ...)
    return tuple(items)


@settings(deadline=None, max_examples=80)
@given(key=keys())
def test_any_index_reads_as_numpy_reads(spatial, dense, key):
    expected = dense[key]
    actual = spatial[key]
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected, strict=True)


def test_indices_in_words(written):
    store = written.open()
    dense = np.asarray(zarr.open_array(written.path / "kernel", mode="r"))
    for key in (
        3, -1, np.int64(2), np.array(4), slice(2, 5), slice(None, None, -1), slice(8, 1, -3), slice(100), slice(5, 5),
        ..., (..., 2), (3, ...), (slice(2), [1, -1]), ([1, -2], [3, 3]), ([[1], [2]], [0, 4]), (-3, [1, 2]), [],
        np.arange(10) % 3 == 0, (np.arange(10) > 4, slice(1, 3)), np.array([9, -10], np.int8), range(3),
    ):  # fmt: skip
        np.testing.assert_array_equal(store[key], dense[key], err_msg=repr(key), strict=True)
    np.testing.assert_array_equal(np.asarray(store), dense)
    np.testing.assert_array_equal(np.asarray(store, np.float64), dense.astype(np.float64), strict=True)
    np.testing.assert_array_equal(list(store["kernel"]), dense)
    assert store.shape == (10, 10)
    assert store.dtype == np.float32
    assert len(store["kernel"]) == 10


def test_small_integers_index_more_examples_than_they_count(small):
    x = np.ones((200, 5), np.float32) * np.arange(200)[:, None]
    store = small.write(lambda params, x: x, x, tile_size=200)
    np.testing.assert_array_equal(store[np.array([-1, 100], np.int8), 1], [199, 100])


@pytest.mark.parametrize("key", [10, -11, (0, 10), (0, -11), [0, 10], ([0], [-11]), np.array([10**12])], ids=repr)
def test_out_of_range(written, key):
    with pytest.raises(IndexError, match=r"of axis [01] is out of range for its 10 examples or places\."):
        written.open()[key]


@pytest.mark.parametrize("key", [(0, 0, 0), None, (None, 0), (..., ...)], ids=repr)
def test_an_index_that_does_not_fit(written, key):
    with pytest.raises(IndexError, match=r"does not fit an array of shape \(10, 10\)"):
        written.open()[key]


@pytest.mark.parametrize("key", [1.0, True, [0.5], np.ones(4, bool), {"a": 1}], ids=repr)
def test_what_is_no_index(written, key):
    with pytest.raises(IndexError, match=r"of axis 0 is not an integer, a slice or an array of integers\."):
        written.open()[key]


@pytest.mark.parametrize(("tiles", "percentage"), [(0, 0), (1, 11), (5, 56), (8, 89)])
def test_an_unfinished_kernel(written, tiles, percentage):
    written.keep(tiles)
    store = written.open()
    assert store.fraction == tiles / 9
    assert not store.complete
    assert f"{percentage}% written" in repr(store)
    store.verify()
    message = rf"is unfinished, {percentage}% of its tiles are written, as .*ledger.jsonl says; run write_kernel again"
    for read in (lambda: store[0, 0], lambda: store["kernel"][...], lambda: np.asarray(store)):
        with pytest.raises(ValueError, match=message):
            read()


def test_several_kernels_are_picked_by_name(small):
    store = small.write(two)
    assert store["head"].dtype == np.complex64
    assert store["block/conv"].shape == (10, 10)
    for read in (lambda: store[0], lambda: store.shape, lambda: store.dtype, lambda: np.asarray(store)):
        with pytest.raises(ValueError, match=r"holds 2 kernels; pick one: store\[name\] of \['block/conv', 'head'\]\."):
            read()
    with pytest.raises(KeyError, match=r"holds no kernel 'conv', only \['block/conv', 'head'\]\."):
        store["conv"]


def test_nothing_to_open(tmp_path):
    for path in (tmp_path / "not there", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no kernel \(no job\.json\); write one with nngp\.write_k"):
            nngp.open_kernel(path)


# other libraries


@pytest.mark.parametrize("x2", [False, True])
def test_zarr_reads_it(small, x2):
    store = small.write(two, x2=small.x2 if x2 else None)
    group = zarr.open_group(small.path, mode="r")
    assert set(group.array_keys()) == {"block.conv", "head"}
    for name, component in (("block/conv", "block.conv"), ("head", "head")):
        for array in (group[component], zarr.open(small.path / component, mode="r")):
            assert array.attrs["name"] == name
            assert array.dtype == store[name].dtype
            assert array.metadata.dimension_names[:2] == ("x1", "x2")
            np.testing.assert_array_equal(array[...], store[name][...])


def test_xarray_reads_it(spatial, dense):
    with xarray.open_zarr(spatial.path, chunks=None) as found:
        assert list(found) == ["kernel"]
        assert found["kernel"].dims == ("x1", "x2", "kernel_0", "kernel_1", "kernel_2", "kernel_3")
        np.testing.assert_array_equal(found["kernel"].values, dense)


def test_xarray_reads_several(small):
    store = small.write(two, x2=small.x2)
    with xarray.open_zarr(small.path) as found:
        assert dict(found.sizes) == {"x1": 10, "x2": 7}
        np.testing.assert_array_equal(found["block.conv"].values, store["block/conv"][...])
        np.testing.assert_array_equal(found["head"].values, store["head"][...])


# what opening must not do


class Bomb:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return open, (str(self._path), "w")


def test_nothing_is_unpickled(written, tmp_path):
    import pickle

    bomb, marker = pickle.dumps(Bomb(tmp_path / "exploded")), tmp_path / "exploded"
    pickle.loads(bomb).close()
    assert marker.exists()  # it would
    marker.unlink()
    array, job = written.path / "kernel/zarr.json", json.loads(written.job.read_text())
    about = json.loads(array.read_text())
    job["arrays"][0]["dtype"] = about["data_type"] = "object"
    about["codecs"] = [{"name": "pickle"}]
    written.job.write_text(json.dumps(job))
    array.write_text(json.dumps(about))
    for chunk in written.tile().rglob("*/*"):
        chunk.write_bytes(bomb)
    with pytest.raises(ValueError, match=r"damaged|object"):
        written.open()[...]
    for name in "job.json", "ledger.jsonl", "zarr.json", "kernel/zarr.json":
        (written.path / name).write_bytes(bomb + b"\n")
        with contextlib.suppress(ValueError):
            written.open().verify()
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"arrays": 1}', b'{"arrays": []}', b"\xff\xfe"], ids=repr
)
def test_a_damaged_job(written, content):
    written.job.write_bytes(content)
    for use in (written.open, written.write):
        with pytest.raises(ValueError, match=re.escape(f"{written.job} is damaged: ")):
            use()
    assert written.job.read_bytes() == content
