"""What a batched kernel function takes: inputs of all kinds, keyword arguments, keys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, normal
from jax.sharding import AxisType, PartitionSpec

import nngp_plugins as nngp

N, M, BATCH = 11, 7, 4

# Every kernel is many small tiles. Blocks hold 3 rows and batches 4, so batches are cut and run again.
batch = partial(nngp.batch, tile_size=3)

X1, X2 = normal(0, N, 6), normal(1, M, 6)


def kernel(f, x1, x2=None, params=2.0, batch_size=BATCH, memory_budget=None, check=False, **kwargs):
    options = {"memory_budget": memory_budget, "check": check}
    return batch(nngp.empirical_nngp_fn(f), batch_size, **options)(x1, x2, params, **kwargs)


# inputs


@pytest.mark.parametrize("size", [0, 128])
def test_arrays_of_numpy_that_are_written_to_after_the_call(size):
    """JAX reads them where they lie, so that the call returns when they have been read."""
    x, w = normal(0, 384, 384), normal(1, 384, 384)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda w, x: jnp.tanh(x @ w / 20) @ w), size)
    y = np.tanh(x.astype(np.float64) @ w / 20) @ w
    given, params = np.array(x), np.array(w)
    kernel = kernel_fn(given, None, params)
    given[:], params[:] = 0, 0
    np.testing.assert_allclose(np.asarray(kernel), y @ y.T / 384, rtol=1e-3, atol=1e-2)
    outputs = y.astype(np.float32)
    kernel = kernel_fn.contract(outputs)
    outputs[:] = 0
    np.testing.assert_allclose(np.asarray(kernel), y @ y.T / 384, rtol=1e-3, atol=1e-2)


class Sliced:
    """An array on a disk, say: only slices of it can be had."""

    def __init__(self, array):
        self.shape, self.dtype, self._array, self.read = array.shape, array.dtype, array, []

    def __getitem__(self, rows):
        self.read.append((rows.start, rows.stop))
        return self._array[rows]


def scaled(params, x):
    return params * x


def memmap(array, path):
    array.tofile(path)
    return np.memmap(path, array.dtype, "r", shape=array.shape)


INPUTS = {
    "numpy": lambda x, path: x,
    "jax": lambda x, path: jnp.asarray(x),
    "float64 without x64": lambda x, path: x.astype(np.float64),
    "memmap": memmap,
    "slices": lambda x, path: Sliced(x),
    "not contiguous": lambda x, path: np.repeat(x, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_are_anything_to_slice(kind, tmp_path):
    x1, x2 = INPUTS[kind](X1, tmp_path / "x1"), INPUTS[kind](X2, tmp_path / "x2")
    assert_close(kernel(scaled, x1, memory_budget=1), 4 * gram(X1))
    assert_close(kernel(scaled, x1, x2), 4 * gram(X1, X2))


def test_inputs_are_read_a_batch_at_a_time_and_once():
    x = Sliced(X1)
    batch(nngp.empirical_nngp_fn(scaled), BATCH, check=False)(x, None, 2.0)
    assert x.read == [(0, 4), (4, 8), (8, 11)]


def test_inputs_of_several_kinds_in_one_pytree(tmp_path):
    def f(params, x):
        (u, v), w = x["uv"], x["w"]
        return params * u + v - w[:, None]

    w = np.arange(N, dtype=np.int64)
    x = {"uv": (jnp.asarray(X1), memmap(X1[:, ::-1].copy(), tmp_path / "v")), "w": w, "none": None}
    assert_close(kernel(f, x), gram(2 * X1 + X1[:, ::-1] - w[:, None]))


def test_params_and_inputs_by_keyword():
    kernel_fn = batch(nngp.empirical_nngp_fn(scaled), BATCH)
    assert_close(kernel_fn(X1, X2, params=2.0), 4 * gram(X1, X2))
    assert_close(kernel_fn(params={"w": jnp.float32(2)}["w"], x2=None, x1=X1), 4 * gram(X1))


# keyword arguments


def masked(params, x, mask, more, np=jnp):
    return np.concatenate([params * x * mask, more["weight"][:, None]], axis=1)


@pytest.mark.parametrize(
    ("kind", "memory_budget"), [("numpy", None), ("jax", 1), ("memmap", None), ("slices", 1)], ids=str
)
def test_arrays_with_a_row_for_each_example_are_cut_like_the_inputs(kind, memory_budget, tmp_path):
    mask1, mask2 = (INPUTS[kind](normal(2 + i, n, 6), tmp_path / f"m{i}") for i, n in enumerate((N, M)))
    more1, more2 = {"weight": normal(4, N)}, {"weight": normal(5, M)}
    y1, y2 = masked(2.0, X1, mask1[:N], more1, np), masked(2.0, X2, mask2[:M], more2, np)
    options = {"memory_budget": memory_budget, "check": True}
    assert_close(kernel(masked, X1, X2, mask=(mask1, mask2), more=(more1, more2), **options), gram(y1, y2))
    assert_close(kernel(masked, X1, mask=mask1, more=more1, **options), gram(y1))


def test_the_row_of_a_single_example_meets_many_of_the_others():
    def f(params, x, more, np=jnp):
        return np.concatenate([params * x, more], axis=1)

    more1, more2 = normal(2, 1, 3), normal(3, M, 3)
    y1, y2 = f(2.0, X1[:1], more1, np), f(2.0, X2, more2, np)
    assert_close(kernel(f, X1[:1], more=more1), gram(y1))
    assert_close(kernel(f, X1[:1], X2, more=(more1, more2)), gram(y1, y2))
    assert_close(kernel(f, X2, X1[:1], more=(more2, more1)), gram(y2, y1))


@pytest.mark.parametrize("name", ["state", "Shared"])
def test_what_all_examples_share_is_not_cut(name):
    # even where it happens to have as many rows as there are examples
    def f(params, x, state=None, table=None):
        return params * x @ (state["table"] if table is None else table)

    table = normal(2, 6, 6)
    kwargs = {"state": {"table": table}} if name == "state" else {"table": nngp.Shared(table)}
    assert_close(kernel(f, X1[:6], **kwargs), gram(2 * X1[:6] @ table))
    assert_close(kernel(f, X1[:6], X2, **kwargs), gram(2 * X1[:6] @ table, 2 * X2 @ table))


@pytest.mark.parametrize(
    ("value", "rows"), [(np.float32(3), ()), (jnp.asarray(3.0), ()), (normal(2, 6), (6,)), (normal(2, 1, 6), (1, 6))]
)
def test_arrays_with_another_number_of_rows_are_not_cut(value, rows):
    def f(params, x, shift):
        assert shift.shape == rows
        return params * x + shift

    assert_close(kernel(f, X1, X2, shift=value), gram(2 * X1 + value, 2 * X2 + value))


def test_what_is_no_array_reaches_f_as_it_is():
    def f(params, x, mode, train, rate, window, options, nothing):
        assert (mode, train, nothing) == ("mean", False, None)
        assert options == {"names": [{"a"}]}  # a set is not hashable
        return params * rate * x[:, window[0] : window[1]]

    kwargs = {"mode": "mean", "train": False, "options": {"names": [{"a"}]}, "nothing": None}
    expected = gram(4 * X1[:, 1:5], 6 * X2[:, 1:5])
    assert_close(kernel(f, X1, X2, rate=(2.0, 3.0), window=nngp.Shared((1, 5)), **kwargs), expected)


# keys


def noisy(params, x, rng):
    return params * x + jax.random.normal(rng, x.shape, jnp.float32)


NOISY = jax.jit(noisy)


def by_hand(key, x, params=2.0, rows=BATCH):
    """Batch ``i`` with its own key; the last one is full, and cut after."""
    outputs = []
    for i in range(-(-len(x) // rows)):
        batch = x[i * rows : (i + 1) * rows]
        full = np.pad(batch, ((0, rows - len(batch)), (0, 0)))
        outputs.append(np.asarray(NOISY(params, full, jax.random.fold_in(key, i)))[: len(batch)])
    return np.concatenate(outputs)


KEYS = {
    "typed": jax.random.key,
    "uint32": jax.random.PRNGKey,
    "numpy": lambda seed: np.asarray(jax.random.PRNGKey(seed)),
    "rbg": lambda seed: jax.random.key(seed, impl="rbg"),
}


@pytest.mark.parametrize(("kind", "memory_budget"), [*zip(KEYS, (1, None, None, 1), strict=True)])
def test_each_batch_has_a_key_of_its_own(kind, memory_budget):
    key = KEYS[kind](3)
    options = {"rng": key, "memory_budget": memory_budget, "check": True}
    y1, y2 = by_hand(key, X1), by_hand(jax.random.fold_in(key, 1), X2)
    assert_close(kernel(noisy, X1, **options), gram(y1))
    assert_close(kernel(noisy, X1, X2, **options), gram(y1, y2))
    # equal inputs have the same noise, and others of the same shape another
    assert_close(kernel(noisy, X1, X1.copy(), **options), gram(y1))
    other = normal(9, N, 6)
    assert_close(kernel(noisy, X1, other, **options), gram(y1, by_hand(jax.random.fold_in(key, 1), other)))


def test_keys_for_x1_and_x2_and_keys_they_share():
    keys = jax.random.key(3), jax.random.key(4)
    expected = gram(by_hand(keys[0], X1), by_hand(keys[1], X2))
    assert_close(kernel(noisy, X1, X2, rng=keys), expected)
    assert_close(kernel(noisy, X1, X2, rng=nngp.Shared(keys[0])), gram(by_hand(keys[0], X1), by_hand(keys[0], X2)))


def test_each_of_rngs_is_folded():
    def f(params, x, rngs):
        return noisy(params, x, rngs["dropout"]) + jax.random.normal(rngs["noise"], x.shape)

    def expected(fold, x):
        return by_hand(fold(keys["dropout"]), x) + by_hand(fold(keys["noise"]), 0 * x)

    keys = {"dropout": jax.random.key(3), "noise": jax.random.PRNGKey(4)}
    y1, y2 = expected(lambda key: key, X1), expected(lambda key: jax.random.fold_in(key, 1), X2)
    assert_close(kernel(f, X1, X2, rngs=keys), gram(y1, y2))


def test_one_batch_of_all_is_the_unbatched_kernel():
    key = jax.random.key(3)
    expected = nngp.empirical_nngp_fn(noisy)(X1, None, 2.0, rng=key)
    assert_close(kernel(noisy, X1, batch_size=0, rng=key), np.asarray(expected))
    # with a batch_size, the noise does not depend on whether there are more examples than fit
    assert_close(kernel(noisy, X1, batch_size=N, rng=key), gram(by_hand(key, X1, rows=N)))


@pytest.mark.parametrize("kind", ["memmap", "slices"])
def test_keys_and_inputs_to_slice(kind, tmp_path):
    key = jax.random.key(3)
    x1, x2 = (INPUTS[kind](x, tmp_path / name) for x, name in [(X1, "x1"), (X1, "x2")])
    assert_close(kernel(noisy, x1, x2, rng=key), gram(by_hand(key, X1)))


def test_equal_inputs_of_two_dtypes_are_compared_in_parts():
    # These are too large to be compared at once, and parts of equal bytes would not have equal rows.
    def first_columns(params, x, rng):
        return noisy(params, x[:, :6], rng)

    key, wide = jax.random.key(3), np.zeros((N, 2**19), np.float32)
    wide[:, :6] = X1
    assert_close(kernel(first_columns, wide, wide.astype(np.float64), rng=key), gram(by_hand(key, X1)))
    other = wide.astype(np.float64)
    other[-1, -1] = 1
    folded = by_hand(jax.random.fold_in(key, 1), X1)
    assert_close(kernel(first_columns, wide, other, rng=key), gram(by_hand(key, X1), folded))


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_noise_is_the_same_wherever_an_example_meets_itself(batch_size):
    # so the kernel is symmetric and positive semidefinite
    def dropped(params, x, rng):
        return x * jax.random.bernoulli(rng, 0.5, x.shape)

    x = normal(0, 12, 8)
    for memory_budget in (None, 1):
        options = {"batch_size": batch_size, "rng": jax.random.key(3), "memory_budget": memory_budget}
        k = kernel(dropped, x, **options)
        np.testing.assert_array_equal(k, k.T)
        eigenvalues = np.linalg.eigvalsh(np.asarray(k, np.float64))
        assert eigenvalues[0] > -1e-6 * eigenvalues[-1]
        # of rank 8, as noise of each meeting would not leave it
        assert np.sum(eigenvalues > 1e-5 * eigenvalues[-1]) == 8


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_of_one_device_may_be_set(kind):
    placed = jax.sharding.reshard if kind == AxisType.Explicit else jax.lax.with_sharding_constraint
    x = normal(0, 7, 3)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        # Without the mesh, JAX does not know its axis.
        kernel_fn = nngp.empirical_nngp_fn(lambda params, x: params * placed(jnp.asarray(x), PartitionSpec("data")))
        for batched in (nngp.batch(kernel_fn, 2), nngp.batch(kernel_fn), nngp.batch(kernel_fn, 3, memory_budget=99)):
            assert_close(batched(x, None, 2.0), 4 * gram(x))
        assert nngp.plan(kernel_fn, x, None, 2.0).forward_rows == 7
        assert_close(nngp.batch(kernel_fn).contract(x), gram(x))
        assert jax.sharding.get_mesh() == mesh
