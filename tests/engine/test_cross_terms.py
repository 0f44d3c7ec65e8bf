import jax
import numpy as np
import pytest
from helpers.arrays import assert_close, jax_normal as normal

import nngp_plugins as nngp

pytestmark = pytest.mark.once


def f(params, x):
    """Outputs with one traced axis of 4, and untraced axes that differ in size and number."""
    return {
        "a": x["a"],  # (N, 4)
        "b": x["b"],  # (N, 3, 4)
        "c": x["c"],  # (N, 2, 5, 4)
    }


def inputs(seed, n):
    return {"a": normal(seed, n, 4), "b": normal(seed + 1, n, 3, 4), "c": normal(seed + 2, n, 2, 5, 4)}


# the axes of the first output keep their order, each followed by its partner; what the second has more comes last
TRACE_LAST = {
    ("a", "a"): "nt,mt->nm",
    ("a", "b"): "nt,mHt->nmH",
    ("a", "c"): "nt,mHWt->nmHW",
    ("b", "a"): "nht,mt->nmh",
    ("b", "b"): "nht,mHt->nmhH",
    ("b", "c"): "nht,mHWt->nmhHW",
    ("c", "a"): "nhwt,mt->nmhw",
    ("c", "b"): "nhwt,mHt->nmhHw",
    ("c", "c"): "nhwt,mHWt->nmhHwW",
}
DIAGONAL_BATCH = {
    ("a", "b"): "nt,nHt->nH",
    ("b", "a"): "nht,nt->nh",
    ("b", "c"): "nht,nHWt->nhHW",
    ("c", "b"): "nhwt,nHt->nhHw",
}


@pytest.mark.parametrize("other", [False, True], ids=["x2=None", "x2"])
def test_every_pair_of_outputs_agrees_with_einsum(other):
    x1, x2 = inputs(0, 5), inputs(10, 6) if other else None
    kernel = jax.jit(nngp.empirical_nngp_fn(f, cross_terms=True))(x1, x2, None)
    assert {(one, two) for one in kernel for two in kernel[one]} == set(TRACE_LAST)
    y1, y2 = f(None, x1), f(None, x2 if other else x1)
    for (one, two), formula in TRACE_LAST.items():
        assert_close(kernel[one][two], np.einsum(formula, y1[one], y2[two], dtype=np.float64) / 4)


def test_every_pair_with_the_diagonal_of_the_batch():
    x1, x2 = inputs(0, 5), inputs(10, 5)
    kernel = nngp.empirical_nngp_fn(f, diagonal_axes=0, cross_terms=True)(x1, x2, None)
    y1, y2 = f(None, x1), f(None, x2)
    for (one, two), formula in DIAGONAL_BATCH.items():
        assert_close(kernel[one][two], np.einsum(formula, y1[one], y2[two], dtype=np.float64) / 4)


def test_the_blocks_are_the_kernel_of_all_examples_stacked():
    x = inputs(0, 5)
    kernel = nngp.empirical_nngp_fn(lambda params, x: {"a": x["a"], "b": x["b"][:, 0]}, cross_terms=True)(x, None, None)
    stacked = np.concatenate([x["a"], x["b"][:, 0]]).astype(np.float64)
    assert_close(np.block([[kernel[i][j] for j in "ab"] for i in "ab"]), stacked @ stacked.T / 4)


def test_the_result_nests_outputs_in_outputs():
    def nested(params, x):
        return {"a": (x, 2 * x), "b": 3 * x, "none": None}

    x = normal(0, 3, 4)
    kernel = nngp.empirical_nngp_fn(nested, cross_terms=True)(x, None, None)
    scales = {"a": (1, 2), "b": 3, "none": None}
    expected = jax.tree.map(lambda one: jax.tree.map(lambda two: one * two, scales), scales)
    gram = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T / 4
    assert jax.tree.structure(kernel) == jax.tree.structure(expected)
    for actual, scale in zip(jax.tree.leaves(kernel), jax.tree.leaves(expected), strict=True):
        assert_close(actual, scale * gram)


def test_the_diagonal_blocks_are_the_kernels_without_cross_terms():
    x1, x2 = inputs(0, 5), inputs(10, 6)
    plain = nngp.empirical_nngp_fn(f)(x1, x2, None)
    crossed = jax.jit(nngp.empirical_nngp_fn(f, cross_terms=True))(x1, x2, None)
    for name in plain:
        assert_close(crossed[name][name], plain[name])


def test_one_output_has_one_kernel():
    x = normal(0, 3, 4)
    kernel = nngp.empirical_nngp_fn(lambda params, x: x, cross_terms=True)(x, None, None)
    assert_close(kernel, np.asarray(x, np.float64) @ np.asarray(x, np.float64).T / 4)
