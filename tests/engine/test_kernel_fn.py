import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, jax_normal as normal

import nngp_plugins as nngp


def mlp(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["head"]


def mlp_params(seed=0):
    return {"hidden": normal(seed, 3, 6), "head": normal(seed + 1, 6, 4)}


def test_a_kernel_fn_is_frozen():
    kernel_fn = nngp.empirical_nngp_fn(mlp)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'trace_axes'"):
        kernel_fn.trace_axes = (0,)


def test_kernel_fns_of_equal_parts_are_equal():
    one = nngp.empirical_nngp_fn(mlp, [-1], diagonal_axes=[1], cross_terms=True, precision="high")
    two = nngp.empirical_nngp_fn(mlp, (np.int64(-1),), diagonal_axes=range(1, 2), cross_terms=True, precision="high")
    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize(
    "change", [{"f": jnp.add}, {"trace_axes": ()}, {"diagonal_axes": 0}, {"cross_terms": True}, {"precision": None}]
)
def test_kernel_fns_that_differ_in_one_part_differ(change):
    kernel_fn = nngp.empirical_nngp_fn(mlp)
    assert dataclasses.replace(kernel_fn, **change) != kernel_fn


def test_a_kernel_fn_is_a_static_argument_of_jit():
    traces = []

    def run(kernel_fn, x, params):
        traces.append(kernel_fn)
        return kernel_fn(x, None, params)

    run = jax.jit(run, static_argnums=0)
    x, params = normal(0, 5, 3), mlp_params()
    for _ in range(2):
        assert_close(run(nngp.empirical_nngp_fn(mlp, [-1]), x, params), gram(mlp(params, x)))
    assert len(traces) == 1
    y = np.asarray(mlp(params, x), np.float64)
    assert_close(run(nngp.empirical_nngp_fn(mlp, 0), x, params), y.T @ y / 5)
    assert len(traces) == 2


def test_keyword_arguments_of_f_may_be_static():
    def f(params, x, train):
        return params * x if train else x  # a tracer has no truth value

    x = normal(0, 5, 3)
    kernel_fn = jax.jit(nngp.empirical_nngp_fn(f), static_argnames="train")
    assert_close(kernel_fn(x, None, 2.0, train=True), 4 * gram(x))
    assert_close(kernel_fn(x, None, 2.0, train=False), gram(x))


def test_a_jitted_kernel_fn_compiles_once():
    traces = []

    def f(params, x):
        traces.append(x.shape)
        return mlp(params, x)

    kernel_fn = jax.jit(nngp.empirical_nngp_fn(f))
    for seed in (10, 20):
        x1, x2, params = normal(seed, 5, 3), normal(seed + 1, 4, 3), mlp_params(seed)
        assert_close(kernel_fn(x1, x2, params), gram(mlp(params, x1), mlp(params, x2)))
    assert traces == [(5, 3), (4, 3)]  # two forward passes in one trace
