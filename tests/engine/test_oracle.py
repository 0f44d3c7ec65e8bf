"""The contraction against ``np.einsum`` written from the definition, on every disjoint pair of axes sets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
SIZES1, SIZES2 = (3, 2, 4, 5, 2), (4, 5, 2, 3, 3)  # different on every axis, and along the axes


def f(params, x):
    return params * x


def oracle(y1, y2, trace, diagonal):
    """``K[.., i, I, .., d, ..] = mean over t of y1[.., i, .., d, .., t, ..] y2[.., I, .., d, .., t, ..]``."""
    letters1, letters2, result = "", "", ""
    for axis in range(y1.ndim):
        first = "abcde"[axis]
        second = first if axis in trace or axis in diagonal else first.upper()
        letters1, letters2 = letters1 + first, letters2 + second
        if axis in diagonal:
            result += first
        elif axis not in trace:
            result += first + second
    terms = np.prod([y1.shape[axis] for axis in trace])
    return np.einsum(f"{letters1},{letters2}->{result}", y1, y2) / terms


def disjoint_pairs(ndim):
    for role in itertools.product(("free", "trace", "diagonal"), repeat=ndim):
        yield tuple(tuple(i for i in range(ndim) if role[i] == name) for name in ("trace", "diagonal"))


def second_sizes(ndim, trace, diagonal):
    return [(SIZES1 if axis in {*trace, *diagonal} else SIZES2)[axis] for axis in range(ndim)]


def check(kernel, y1, y2, trace, diagonal, dtype):
    y1, y2 = np.asarray(y1, np.float64), np.asarray(y2, np.float64)
    expected, scale = oracle(y1, y2, trace, diagonal), oracle(abs(y1), abs(y2), trace, diagonal)
    assert kernel.dtype == dtype
    assert kernel.shape == expected.shape, (trace, diagonal)
    # relative to the sum of |terms|: entries in which the terms cancel have no more digits than that
    assert np.all(abs(np.asarray(kernel, np.float64) - expected) <= TOLERANCE[dtype] * scale), (trace, diagonal)


# float64 shows the least mistake.
LARGE = pytest.param(5, "float32", marks=pytest.mark.exhaustive)
CASES = [(2, "float32"), *((ndim, "float64") for ndim in (1, 2, 4)), LARGE]


@pytest.mark.parametrize(("ndim", "dtype"), CASES)
def test_every_disjoint_pair_of_axes_sets_agrees_with_einsum(ndim, dtype):
    random = np.random.default_rng(ndim)
    pairs = list(disjoint_pairs(ndim))
    assert len(pairs) == 3**ndim

    def kernels(params, x1, x2s):
        for (trace, diagonal), x2 in zip(pairs, x2s, strict=True):
            from_end = [[axis - ndim for axis in reversed(axes)] for axes in (trace, diagonal)]
            yield (
                nngp.empirical_nngp_fn(f, trace, diagonal)(x1, None, params),
                nngp.empirical_nngp_fn(f, *from_end)(x1, x2, params),
            )

    with jax.enable_x64(dtype == "float64"):
        params = jnp.asarray(1.5, dtype)
        x1, *x2s = (
            jnp.asarray(random.standard_normal(sizes), dtype)
            for sizes in [SIZES1[:ndim], *(second_sizes(ndim, *pair) for pair in pairs)]
        )
        # one program for all, and little optimisation: compiling each by itself takes minutes
        options = {"xla_backend_optimization_level": 0}
        results = jax.jit(lambda *args: list(kernels(*args)), compiler_options=options)(params, x1, x2s)
        for (trace, diagonal), x2, (alone, both) in zip(pairs, x2s, results, strict=True):
            check(alone, f(params, x1), f(params, x1), trace, diagonal, dtype)
            check(both, f(params, x1), f(params, x2), trace, diagonal, dtype)
