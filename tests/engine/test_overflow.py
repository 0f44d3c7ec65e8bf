"""Finite outputs whose products leave the range of the kernel's dtype: an error that names the output and examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, normal

import nngp_plugins as nngp

X, W = normal(0, 11, 4), normal(1, 4, 3)
FIRST = 6  # the only example whose outputs are large
# Its kernel with itself is then 1.6e38, before it is divided by the width; that of float32 is 3.4e38 at most.
FITS = np.sqrt(1.6e38 / np.sum((X[FIRST].astype(float) @ W) ** 2))
WAYS = {
    "in one piece": {},
    "in host memory": {"store_on_device": False},
    "in tiles": {"store_on_device": False, "tile_size": 3},
    "in blocks": {"memory_budget": 600, "tile_size": 3},
    "in blocks, in host memory": {"memory_budget": 600, "tile_size": 3, "store_on_device": False},
}


def f(params, x):
    """The size of the large outputs is a parameter, so that all tests of one way share their programs."""
    w, size = params
    y = jnp.matmul(x, w, precision="highest")
    is_large = jnp.isclose(x[:, :1], X[FIRST, 0])
    return {"small": y, "large": jnp.where(is_large, size, 1.0) * y}


def large_outputs(size):
    y = X @ W
    y[FIRST] *= np.float32(size)
    return y


def of_size(size):
    return W, np.float32(size)


def batched(trace_axes=(-1,), cross_terms=False, **options):
    return nngp.batch(nngp.empirical_nngp_fn(f, trace_axes, cross_terms=cross_terms), 4, check=False, **options)


@pytest.mark.every(2)
@pytest.mark.parametrize("way", WAYS)
class TestBatch:
    def test_of_an_example_with_itself(self, way):
        told = (
            f"the kernel of output 'large' overflows float32 at x1 example {FIRST}, x2 example {FIRST}, although its "
            "outputs are finite: their products are too large. Divide the outputs by a number"
        )
        with pytest.raises(ValueError, match=told):
            batched(**WAYS[way])(X, None, of_size(1e22))

    def test_of_an_example_of_one_side(self, way):
        kernel_fn, params = batched(**WAYS[way]), of_size(1e22)
        with pytest.raises(ValueError, match=f"overflows float32 at x1 example {FIRST}, x2 example 1, although"):
            kernel_fn(X, X[FIRST - 1 : FIRST + 5], params)
        # Products with small outputs of the other side fit.
        y = large_outputs(1e22)
        assert_close(np.asarray(kernel_fn(X, X[:FIRST], params)["large"]), gram(y, y[:FIRST]))

    def test_large_outputs_whose_products_fit(self, way):
        """The bound of the products is passed, and no product is."""
        y = large_outputs(FITS).astype(float)
        assert 2 * 3 * np.abs(y).max() ** 2 > 3.4e38 > 2 * np.max(np.sum(y**2, axis=1))
        assert_close(jax.device_get(batched(**WAYS[way])(X, None, of_size(FITS)))["large"], gram(y))

    def test_outputs_that_are_not_finite_are_no_overflow(self, way):
        for bad in (np.nan, np.inf):
            kernel = np.asarray(batched(**WAYS[way])(X, None, of_size(bad))["large"])
            assert not np.isfinite(kernel[FIRST]).any()
            assert np.isfinite(np.delete(np.delete(kernel, FIRST, 0), FIRST, 1)).all()


@pytest.mark.every(3)
@pytest.mark.parametrize("way", WAYS)
def test_cross_terms(way):
    with pytest.raises(
        ValueError, match=rf"the kernel of .*'large'.* overflows float32 at x1 example {FIRST}, x2 example"
    ):
        batched(cross_terms=True, **WAYS[way])(X, None, of_size(1e22))


def test_untraced_axes():
    with pytest.raises(ValueError, match=f"overflows float32 at x1 example {FIRST}, x2 example {FIRST}, although"):
        batched(trace_axes=())(X, None, of_size(1e22))


@pytest.mark.parametrize("dtype", [np.int32, np.float16, "bfloat16"], ids=str)
def test_narrow_dtypes_do_not_overflow(dtype):
    """Their kernels are in float32, which holds their products."""
    largest = {np.int32: 2**30, np.float16: 60_000, "bfloat16": 2.0**60}[dtype]
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: (x * largest).astype(dtype)), 2)
    x = np.array([[1, -1], [1, 1], [-1, 1]])
    assert_close(np.asarray(kernel_fn(x, None, 0)), gram(x) * float(largest) ** 2, 1e-3)


class TestStore:
    @pytest.mark.parametrize("tile_size", [None, 3])
    def test_the_job_stops(self, tmp_path, tile_size):
        pytest.importorskip("tensorstore")
        kernel_fn, path = nngp.empirical_nngp_fn(f), tmp_path / "k.zarr"
        options = {"batch_size": 4, "tile_size": tile_size, "progress": False}
        told = f"the kernel of output 'large' overflows float32 at x1 example {FIRST}, x2 example {FIRST}, although"
        for _ in range(2):  # The second time, the job goes on where the first one stopped.
            with pytest.raises(ValueError, match=told):
                nngp.write_kernel(kernel_fn, X, None, of_size(1e22), path, **options)
            store = nngp.open_kernel(path)
            assert not store.complete
            with pytest.raises(ValueError, match=r"%"):
                store["large"][:]

    def test_large_products_that_fit_are_stored(self, tmp_path):
        pytest.importorskip("tensorstore")
        options = {"batch_size": 4, "tile_size": 3, "progress": False}
        store = nngp.write_kernel(nngp.empirical_nngp_fn(f), X, None, of_size(FITS), tmp_path / "k.zarr", **options)
        assert_close(store["large"][:], gram(large_outputs(FITS)))
        store.verify()


def test_grams_of_such_outputs_are_right():
    grams = nngp.gram(f, X, of_size(1e22))
    phi = large_outputs(1e22).astype(float)
    kernel = phi @ phi.T
    expected = np.trace(kernel) ** 2 / np.sum(kernel**2)
    assert float(nngp.metrics.participation_ratio(grams["large"])) == pytest.approx(expected, rel=1e-4)
