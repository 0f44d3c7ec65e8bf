import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

HALF = ["float16", "bfloat16"]


def outputs_as(dtype):
    return lambda params, x: x.astype(jnp.dtype(dtype))


def exact(y1, y2=None):
    """The kernel of outputs that are already rounded, in float64."""
    y1 = np.asarray(y1, np.float64)
    y2 = y1 if y2 is None else np.asarray(y2, np.float64)
    return y1 @ y2.T / y1.shape[1]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("other", [False, True], ids=["x2=None", "x2"])
def test_half_precision_outputs_give_a_float32_kernel(dtype, other):
    f = outputs_as(dtype)
    x1, x2 = 1 + normal(0, 5, 1000), 1 + normal(1, 4, 1000) if other else None
    kernel = nngp.empirical_nngp_fn(f)(x1, x2, None)
    expected = exact(f(None, x1), f(None, x2) if other else None)
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, expected, rtol=5e-6)
    # a tolerance that the right answer itself fails, rounded to the dtype of the outputs
    rounded = expected.astype(jnp.dtype(dtype)).astype(np.float64)
    assert np.max(np.abs(rounded / expected - 1)) > 1e-4


def test_float16_outputs_do_not_overflow():
    # 300² = 90000 > 65504, the largest float16
    x = np.full((2, 8), 300.0, np.float32)
    f = outputs_as("float16")
    np.testing.assert_array_equal(nngp.empirical_nngp_fn(f)(x, None, None), np.full((2, 2), 9e4))
    products = nngp.empirical_nngp_fn(f, trace_axes=(), diagonal_axes=(0, 1))
    np.testing.assert_array_equal(products(x, None, None), np.full((2, 8), 9e4))


def test_bfloat16_outputs_do_not_stall():
    # in bfloat16 the sum 1 + 1 + … stops at 256, and 1001 is not a number
    x = np.concatenate([np.ones((1, 1001)), np.zeros((1, 1047))], axis=1)
    kernel = nngp.empirical_nngp_fn(outputs_as("bfloat16"))(x, None, None)
    np.testing.assert_array_equal(kernel, [[1001 / 2048]])


def test_outputs_of_two_dtypes():
    def f(params, x):
        return x  # x1 and x2 may well be of two dtypes

    x1, x2 = normal(0, 5, 1000).astype(jnp.bfloat16), normal(1, 4, 1000)
    kernel_fn = nngp.empirical_nngp_fn(f)
    for first, second in [(x1, x2), (x2, x1), (x1, x2.astype(np.float16))]:
        kernel = kernel_fn(first, second, None)
        assert kernel.dtype == jnp.float32
        np.testing.assert_allclose(kernel, exact(first, second), atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_integer_outputs_are_promoted(dtype):
    # products overflow 8 bits, and the mean is no integer
    y = np.asarray([[100, 101, 3], [120, 7, 90]], dtype)
    kernel = nngp.empirical_nngp_fn(outputs_as(dtype))(jnp.asarray(y), None, None)
    assert kernel.dtype == jnp.result_type(float)
    np.testing.assert_allclose(kernel, exact(y), rtol=1e-6)


def test_boolean_outputs_give_the_share_of_units_on_in_both():
    y = np.asarray([[True, True, False, True], [False, True, False, True], [False, False, False, False]])
    kernel = nngp.empirical_nngp_fn(lambda params, x: x)(jnp.asarray(y), None, None)
    assert kernel.dtype == jnp.result_type(float)
    np.testing.assert_array_equal(kernel, [[0.75, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]])


def test_float64_follows_jax():
    for enabled, dtype in [(True, "float64"), (False, "float32")]:
        with jax.enable_x64(enabled):
            kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x)
            assert kernel_fn(jnp.ones((2, 3)), None, None).dtype == dtype
            assert kernel_fn(jnp.ones((2, 3), int), None, None).dtype == dtype


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_outputs_conjugate_the_second_factor(dtype):
    random = np.random.default_rng(0)
    y1, y2 = ((random.standard_normal((n, 3)) + 1j * random.standard_normal((n, 3))).astype(dtype) for n in (5, 4))
    with jax.enable_x64(dtype == "complex128"):
        kernel_fn = nngp.empirical_nngp_fn(lambda params, x: params * x)
        kernel, other = kernel_fn(y1, None, 1j), kernel_fn(y1, y2, 1j)
    tolerance = 1e-6 if dtype == "complex64" else 1e-14
    assert kernel.dtype == other.dtype == dtype
    np.testing.assert_allclose(other, y1 @ y2.conj().T / 3, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(kernel, kernel.conj().T, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.diag(kernel), np.mean(np.abs(y1) ** 2, axis=1), rtol=tolerance, atol=tolerance)
    assert np.abs(kernel.imag).max() > 0.1


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ({}, "[HIGHEST, HIGHEST]"),
        ({"precision": "high"}, "[HIGH, HIGH]"),
        ({"precision": jax.lax.Precision.HIGH}, "[HIGH, HIGH]"),
        ({"precision": "default"}, "[DEFAULT, DEFAULT]"),
        ({"precision": ("highest", "default")}, "[HIGHEST, DEFAULT]"),
    ],
    ids=["default", "str", "enum", "lowest", "pair"],
)
def test_precision_reaches_the_contraction(precision, expected):
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x, **precision)
    lowered = jax.jit(kernel_fn).lower(jnp.ones((2, 3), jnp.float32), None, None).as_text()
    assert [line.split("precision = ")[1].split(" :")[0] for line in lowered.splitlines() if "dot_general" in line] == [
        expected
    ]


NARROW = ["bool", "int2", "uint4", "int8", "uint8", "int32", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"]


@pytest.mark.parametrize("rng", [None, jax.random.key(3)], ids=["no key", "key"])
def test_outputs_of_few_bits_are_computed_in_float32_everywhere(rng, tmp_path):
    dtypes = [dtype for dtype in NARROW if hasattr(jnp, dtype) or dtype == "bool"]  # of this version of JAX

    def f(params, x, rng=None):
        y, size = params * x, params * jnp.abs(x)  # what a negative number is without a sign is not defined
        return {dtype: (size if dtype.startswith("u") else y).astype(dtype) for dtype in dtypes}

    x, params = np.clip(np.round(2 * normal(0, 6, 4)), -2, 2), np.float32(0.5)
    outputs = jax.jit(lambda: {dtype: y.astype(jnp.float32) for dtype, y in f(params, jnp.asarray(x)).items()})()
    kernel_fn, given = nngp.empirical_nngp_fn(f), {} if rng is None else {"rng": rng}
    store = nngp.write_kernel(kernel_fn, x, None, params, tmp_path / "k", batch_size=4, progress=False, **given)
    kernels = [kernel_fn(x, None, params, **given), nngp.batch(kernel_fn, 4)(x, None, params, **given), store.arrays]
    grams = [nngp.gram(f, x, params, batch_size=batch_size, **given) for batch_size in (0, 4)]
    with nngp.KernelTracker(f, x, rng=rng, metrics={"scale": lambda k, _: nngp.metrics.scale(k)}) as tracker:
        tracker(0, params)
    scales = dict(zip(tracker.history.layers, tracker.history.metric("scale")[0], strict=True))
    assert len(dtypes) == len(scales) > 4
    for dtype, y in outputs.items():
        expected = exact(y)
        for found in [*(kernel[dtype][:] for kernel in kernels), *(gram[dtype].dense() for gram in grams)]:
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=dtype)
        np.testing.assert_allclose(scales[dtype], np.trace(expected) / 6, rtol=1e-6, err_msg=dtype)


def test_outputs_of_few_bits_meet_others_in_cross_terms():
    x = np.round(normal(0, 6, 4))

    def f(params, x):
        return {"narrow": x.astype("float8_e4m3fn"), "wide": x}

    kernel = nngp.empirical_nngp_fn(f, cross_terms=True)(x, None, None)["narrow"]["wide"]
    np.testing.assert_allclose(kernel, exact(x), rtol=1e-6)
