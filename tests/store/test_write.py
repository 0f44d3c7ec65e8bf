"""What write_kernel writes, against sums in float64."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import gram, normal

import nngp_plugins as nngp

IMAGES, OTHERS = normal(3, 5, 3, 2, 4), normal(4, 4, 3, 2, 4)
FILTERS = normal(5, 4, 3)


def hidden(params, x):
    return np.tanh(np.asarray(x, np.float64) @ params)


def conv(params, x):
    return jnp.tanh(x @ params)


def layers(params, x):
    y = jnp.tanh(x @ params)
    return {"block": {"conv": y, "dense": y[:, :4] * 2}, "head": y[:, :1]}


def assert_close(actual, expected, dtype=np.float32, tolerance=1e-6):
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


@pytest.mark.every(3)
@pytest.mark.parametrize(("tile_size", "batch_size"), [(1, 64), (4, 3), (5, 0), (9, 1), (11, 3), (None, 3)])
def test_symmetric(small, tile_size, batch_size):
    store = small.write(tile_size=tile_size, batch_size=batch_size)
    assert_close(store, gram(hidden(small.params, small.x1)))
    assert store.complete
    assert store.fraction == 1
    store.verify()
    np.testing.assert_array_equal(store[...], np.asarray(store).T)


@pytest.mark.every(2)
@pytest.mark.parametrize(("tile_size", "batch_size"), [(4, 3), (7, 0), (None, 3)])
def test_another_x2(small, tile_size, batch_size):
    store = small.write(x2=small.x2, tile_size=tile_size, batch_size=batch_size)
    assert_close(store, gram(hidden(small.params, small.x1), hidden(small.params, small.x2)))
    store.verify()


def test_it_returns_what_open_kernel_opens(small):
    store, opened = small.write(), small.open()
    assert type(store) is type(opened)
    assert repr(store) == repr(opened) == f"KernelStore({str(small.path)!r}, 100% written, kernel: float32[10, 10])"
    np.testing.assert_array_equal(store[...], opened[...])


def test_several_outputs(small):
    store = small.write(layers, x2=small.x2)
    y1, y2 = (hidden(small.params, x) for x in (small.x1, small.x2))
    assert list(store.arrays) == ["block/conv", "block/dense", "head"]
    assert_close(store["block/conv"], gram(y1, y2))
    assert_close(store["block/dense"], gram(2 * y1[:, :4], 2 * y2[:, :4]))
    assert_close(store["head"], gram(y1[:, :1], y2[:, :1]))
    assert {p.name for p in small.path.iterdir() if p.is_dir()} == {"block.conv", "block.dense", "head"}


def shifted(params, x):
    y = jnp.tanh(x @ params)
    return {"a": y, "b": jnp.roll(y, 1, axis=1)}


def test_cross_terms(small):
    store = small.write(kernel_fn=nngp.empirical_nngp_fn(shifted, cross_terms=True))
    a = hidden(small.params, small.x1)
    y = {"a": a, "b": np.roll(a, 1, 1)}
    assert list(store.arrays) == ["a--a", "a--b", "b--a", "b--b"]
    for name, kernel in store.arrays.items():
        first, second = name.split("--")
        assert_close(kernel, gram(y[first], y[second]))
    np.testing.assert_array_equal(store["a--b"][...], store["b--a"][...].T)
    np.testing.assert_array_equal(store["b--b"][...], store["b--b"][...].T)
    store.verify()


@pytest.mark.every(2)
@pytest.mark.parametrize(("x2", "tile_size"), [(OTHERS, None), (None, 2)], ids=["x2", "symmetric"])
def test_places_that_are_not_traced(small, x2, tile_size):
    store = small.write(conv, IMAGES, x2, FILTERS, tile_size=tile_size)
    y1, y2 = hidden(FILTERS, IMAGES), hidden(FILTERS, IMAGES if x2 is None else x2)
    assert_close(store, np.einsum("nhwc,mijc->nmhiwj", y1, y2) / 3)
    if x2 is None:
        np.testing.assert_array_equal(store[...], store[...].transpose(1, 0, 3, 2, 5, 4))


def test_a_diagonal_axis(small):
    store = small.write(conv, IMAGES, OTHERS, FILTERS, kernel_fn=nngp.empirical_nngp_fn(conv, -1, (1, 2)), tile_size=2)
    assert_close(store, np.einsum("nhwc,mhwc->nmhw", hidden(FILTERS, IMAGES), hidden(FILTERS, OTHERS)) / 3)


@pytest.mark.parametrize("tile_size", [4, None])
def test_variances(small, tile_size):
    store = small.write(kernel_fn=nngp.empirical_nngp_fn(conv, diagonal_axes=0), tile_size=tile_size)
    assert_close(store, np.mean(hidden(small.params, small.x1) ** 2, axis=1))


def test_float64(small):
    with jax.enable_x64(True):
        store = small.write(lambda params, x: jnp.tanh(jnp.asarray(x, float) @ params))
    assert_close(store, gram(hidden(small.params, small.x1)), np.float64, 1e-15)


def test_bfloat16_is_stored_as_float32(small):
    store = small.write(lambda params, x: jnp.tanh(x @ params).astype(jnp.bfloat16))
    rounded = jax.jit(lambda: jnp.tanh(small.x1 @ small.params).astype(jnp.bfloat16))()
    assert_close(store, gram(np.asarray(rounded, np.float64)))


def test_integers_are_stored_as_float32(small):
    store = small.write(lambda params, x: jnp.round(3 * x).astype(jnp.int32))
    assert_close(store, gram(np.round(3 * small.x1)), tolerance=1e-5)


def test_complex(small):
    store = small.write(lambda params, x: jnp.exp(1j * (x @ params)))
    expected = gram(np.exp(1j * (small.x1.astype(np.float64) @ small.params)))
    assert_close(store, expected, np.complex64)
    np.testing.assert_array_equal(store[...], store[...].conj().T)


def test_a_memory_budget_changes_no_byte(small, finished):
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(small.network), memory_budget=150)
    assert nngp.plan(kernel_fn, small.x1, None, small.params, batch_size=3).forward_rows > 10  # in blocks
    small.write(kernel_fn=kernel_fn)
    assert small.is_like(finished)


class Sliced:
    """Nothing but a shape, a dtype and slicing."""

    def __init__(self, array):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key):
        assert isinstance(key, slice)
        return self._array[key]


def memmap(array, path):
    np.save(path / "x.npy", array)
    return np.load(path / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("kind", ["memmap", "sliced", "jax"])
def test_inputs_of_any_kind_give_the_same_bytes(small, finished, tmp_path, kind):
    x1 = {"memmap": lambda x: memmap(x, tmp_path), "sliced": Sliced, "jax": jnp.asarray}[kind](small.x1)
    small.write(x1=x1)
    assert small.is_like(finished)


def test_a_kernel_function_in_batches_gives_its_other_options(small, finished):
    small.write(kernel_fn=nngp.batch(nngp.empirical_nngp_fn(small.network), 7, store_on_device=False))
    assert small.is_like(finished)  # the batches are those of write_kernel


def test_two_runs_write_the_same_bytes(small, finished):
    small.write()
    assert small.files() == finished


def test_there_is_a_file_for_each_tile(written, finished):
    assert sum(name.startswith("kernel/c/") for name in finished) == written.tiles
    assert {len(numbers) for name, numbers in finished.items() if name.startswith("kernel/c/")} == {4 * 4 * 4 + 4}


def test_the_folder_may_be_there_and_empty_or_in_folders_that_are_not(small, finished):
    small.path.mkdir()
    small.write()
    assert small.is_like(finished)
    deep = small.path.with_name("not") / "yet" / "there.zarr"
    assert small.write(path=str(deep)).complete


def test_progress_is_shown_on_stderr_only(small, capfd):
    small.write(progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tiles of the kernel" in err
    assert "6/6" in err
    small.write(path=small.path.with_name("quiet.zarr"), progress=False)
    assert capfd.readouterr() == ("", "")
    assert inspect.signature(nngp.write_kernel).parameters["progress"].default is True
