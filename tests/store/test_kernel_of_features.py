"""Kernels of stored features, against sums in float64 of what the stores hold."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

X1, X2, PARAMS = normal(0, 11, 5), normal(1, 7, 5), normal(2, 5, 6)


def network(params, x):
    return {"wide": jnp.tanh(x @ params), "narrow": x[:, :1]}


def features(path, x=X1, f=network, **options):
    """Blocks of four examples."""
    options = {"batch_size": 2, "block_size": 4, "progress": False, **options}
    return nngp.write_features(f, x, PARAMS, path, **options)


def kernel(store, path, **options):
    return nngp.write_kernel(store, path=path, **{"tile_size": 3, "progress": False, **options})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Of 11 and of 7 examples."""
    path = tmp_path_factory.mktemp("stores")
    return features(path / "1"), features(path / "2", X2)


def assert_close(found, phi, psi):
    expected = np.asarray(phi, float) @ np.asarray(psi, float).T
    np.testing.assert_allclose(found[...], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("tile_size", [3, None])
def test_of_one_store_and_of_two(stores, tmp_path, tile_size):
    for second in (None, stores[1]):
        store = kernel(stores[0], tmp_path / f"k{second is None}", x2=second, tile_size=tile_size)
        assert list(store.arrays) == ["narrow", "wide"]
        assert store["wide"].dtype == np.float32
        for name, found in store.arrays.items():
            assert_close(found, stores[0][name][:], (second or stores[0])[name][:])
        store.verify()
    whole = nngp.empirical_nngp_fn(network)(X1, X2, PARAMS)["wide"]
    np.testing.assert_allclose(store["wide"][...], whole, rtol=0, atol=1e-6)


def test_bfloat16_loses_no_more_digits(tmp_path):
    store = features(tmp_path / "phi", dtype=jnp.bfloat16)
    assert_close(kernel(store, tmp_path / "k")["wide"], store["wide"][:], store["wide"][:])


def test_features_of_something_else_are_refused(stores, tmp_path):
    path = tmp_path / "k"
    kernel(stores[0], path, x2=stores[1])
    assert kernel(stores[0], path, x2=stores[1]).complete
    # f counts by the checksums of its numbers.
    other = features(tmp_path / "other", f=lambda params, x: {"wide": jnp.sin(x @ params), "narrow": x[:, :1]})
    for options, said in (
        ({"store": other, "x2": stores[1]}, "x1;"),
        ({"store": stores[0], "x2": other}, "x2;"),
        ({"store": stores[0], "x2": stores[1], "tile_size": 4}, "tile_size (stored 3, asked 4)"),
    ):
        with pytest.raises(ValueError, match=rf"holds a kernel of other {re.escape(said)}"):
            kernel(path=path, **options)


def test_who_wrote_the_features_does_not_matter(stores, tmp_path):
    for index in (1, 0):
        store = features(tmp_path / "parts", part=(index, 2))
    kernel(stores[0], tmp_path / "k")
    assert kernel(store, tmp_path / "k").complete


def test_damaged_features_are_refused_by_name(tmp_path):
    store = features(tmp_path / "phi")
    file = tmp_path / "phi" / "wide" / "c" / "1" / "0"
    file.write_bytes((tmp_path / "phi" / "wide" / "c" / "0" / "0").read_bytes())
    with pytest.raises(ValueError, match=rf"features 'wide' of .* are damaged: {file} is not the block that was writ"):
        kernel(store, tmp_path / "k")
    assert nngp.open_kernel(tmp_path / "k").fraction == 0


def test_bad_input_is_refused_before_the_folder_is_made(stores, tmp_path):
    path = tmp_path / "k"
    alone = r"are there already; pass nngp\.write_kernel\(store, path=\.\.\.\)"
    for bad in ({"x2": X2}, {"x1": X1}, {"params": PARAMS}, {"batch_size": 3}, {"rng": 1}):
        with pytest.raises(TypeError, match=alone):
            kernel(stores[0], path, **bad)
    with pytest.raises(TypeError, match="path=None; pass the folder to write"):
        nngp.write_kernel(stores[0])
    with pytest.raises(ValueError, match="batch_size=None must be a number of examples"):
        nngp.write_kernel(nngp.empirical_nngp_fn(network), X1, None, PARAMS, path)
    unfinished = features(tmp_path / "phi", part=(0, 2))
    with pytest.raises(ValueError, match=r"is unfinished, 33% of its blocks are written"):
        kernel(unfinished, path)
    assert not path.exists()
