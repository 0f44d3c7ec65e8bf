"""What a batched kernel function refuses before it starts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

X1, X2 = normal(0, 11, 6), normal(1, 7, 6)


def scaled(params, x):
    return params * x


def batched(f=scaled, batch_size=4, **options):
    axes = {name: options.pop(name) for name in ("trace_axes", "diagonal_axes", "cross_terms") if name in options}
    return nngp.batch(nngp.empirical_nngp_fn(f, **axes), batch_size, **options)


def unreachable(params, x):
    raise AssertionError("f ran before its inputs were checked")


# the arguments of batch


NOT_KERNELS = {"f": scaled, "None": None, "batched": batched(), "a kernel": np.eye(2)}


@pytest.mark.parametrize("kernel_fn", NOT_KERNELS.values(), ids=NOT_KERNELS)
def test_what_is_no_kernel_function(kernel_fn):
    message = f"kernel_fn={kernel_fn!r} is not a kernel function; pass what nngp.empirical_nngp_fn(f) returns"
    with pytest.raises(TypeError, match=re.escape(message)):
        nngp.batch(kernel_fn, 4)


@pytest.mark.parametrize("batch_size", [-1, 2.5, 4.0, "4", None, (4,)], ids=repr)
def test_a_batch_size_that_is_no_number_of_examples(batch_size):
    message = f"batch_size={batch_size!r} must be a number of examples, or 0 for all at once"
    with pytest.raises(ValueError, match=re.escape(message)):
        batched(batch_size=batch_size)


@pytest.mark.parametrize("device_count", [0, -2, 10_000, 1.0, "all", None], ids=repr)
def test_a_device_count_that_is_no_number_of_devices(device_count):
    message = f"device_count={device_count!r} must be -1 for all devices of this process or 1 to "
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        batched(device_count=device_count)


@pytest.mark.parametrize("memory_budget", [0, -1, "8GB", (1,)], ids=repr)
def test_a_memory_budget_that_is_no_number_of_bytes(memory_budget):
    message = f"memory_budget={memory_budget!r} must be a positive number of bytes, or None"
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        batched(memory_budget=memory_budget)


@pytest.mark.parametrize(
    "numbers",
    [{"batch_size": np.int64(4)}, {"device_count": np.int32(1)}, {"memory_budget": 1e2}, {"memory_budget": 1e12}],
    ids=str,
)
def test_numbers_of_other_types(numbers):
    # as len(x) // 4 on a NumPy shape, or 8e9 bytes
    expected = X1.astype(np.float64) @ X1.T / 6
    np.testing.assert_allclose(batched(**numbers)(X1, None, 1.0), expected, rtol=0, atol=1e-5)


def test_it_is_frozen_and_hashable():
    kernel_fn = nngp.empirical_nngp_fn(scaled)
    assert nngp.batch(kernel_fn, 4) == nngp.batch(kernel_fn, 4) != nngp.batch(kernel_fn, 5)
    assert len({nngp.batch(kernel_fn, 4), nngp.batch(kernel_fn, 4), nngp.batch(kernel_fn, 4, check=False)}) == 2
    with pytest.raises(AttributeError, match="cannot assign to field 'batch_size'"):
        nngp.batch(kernel_fn, 4).batch_size = 5


# inputs


@pytest.mark.parametrize(
    ("x1", "x2", "message"),
    [
        (1.0, None, "x1 is float without a batch axis; inputs are cut along axis 0"),
        (X1, np.float32(1), "x2 is float32 without a batch axis"),
        ({"u": X1, "rate": 0.5}, None, "x1['rate'] is float without a batch axis"),
        ((X1, jnp.ones(())), None, "x1[1] is ArrayImpl without a batch axis"),
        ([[1.0, 2.0]], None, "x1[0][0] is float without a batch axis"),
        ({"u": X1}, {"u": "text"}, "x2['u'] is str, and JAX takes numbers alone"),
    ],
    ids=["float", "x2", "dict", "0-d array", "lists", "str"],
)
def test_inputs_without_a_batch_axis(x1, x2, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        batched(unreachable)(x1, x2, None)


@pytest.mark.parametrize(
    ("x1", "x2", "message"),
    [
        ({"u": X1, "v": X2}, None, r"^x1 must hold examples along axis 0 .*\['u'\]\": 11, .*\['v'\]\": 7"),
        (X1, (X2, X1), r"^x2 must hold examples along axis 0 .*\[0\]': 7, .*\[1\]': 11"),
        (None, X2, r"^x1 must hold examples along axis 0"),
        (X1[:0], None, r"^x1 with shape \(0, 6\) is an empty batch"),
        (X1, {"u": X2[:0]}, r"^x2\['u'\] with shape \(0, 6\) is an empty batch"),
    ],
    ids=["lengths", "lengths of x2", "None", "empty", "empty x2"],
)
def test_inputs_with_the_wrong_number_of_examples(x1, x2, message):
    with pytest.raises(ValueError, match=message):
        batched(unreachable)(x1, x2, None)


TRANSFORMED = {
    "jit": lambda call: jax.jit(call)(2.0),
    "grad": lambda call: jax.grad(lambda params: call(params).sum())(2.0),
    "vmap": lambda call: jax.vmap(call)(jnp.ones(3)),
    "eval_shape": lambda call: jax.eval_shape(call, 2.0),
}
CALLS = {
    "params": lambda p: batched()(X1, None, p),
    "x1": lambda p: batched()(p * X1, None, 2.0),
    "x2": lambda p: batched()(X1, {"u": p * X2}, 2.0),
    "kwargs": lambda p: batched(lambda params, x, scale: scale * x)(X1, None, None, scale=p),
    "closure": lambda p: batched(lambda params, x: p * x)(X1, None, None),
    "plan": lambda p: nngp.plan(nngp.empirical_nngp_fn(scaled), X1, None, p).n1,
}
MESSAGE = "a batched kernel function was called inside jit, grad or vmap; .* use the unbatched kernel function inside"


@pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=TRANSFORMED)
def test_inside_transformations(transform):
    with pytest.raises(TypeError, match=MESSAGE):
        transform(CALLS["params"])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whatever_is_traced(call):
    with pytest.raises(TypeError, match=MESSAGE):
        jax.jit(call)(2.0)


# outputs and axes


NO_BATCH_AXIS = {
    "scalar": (lambda params, x: jnp.mean(x), r"^the output of f has shape \(\) for a batch of 4 examples of x1; .*"),
    "in a dict": (lambda params, x: {"y": x, "l": jnp.sum(x)}, r"^output 'l' of f has shape \(\) for a batch of 4"),
    "first row": (lambda params, x: x[:1], r"^the output of f has shape \(1, 6\) for a batch of 4 examples of x1"),
    "features first": (lambda params, x: x.T, r"^the output of f has shape \(6, 4\) for a batch of 4 examples"),
    "params": (lambda params, x: [x, params], r"^output '1' of f has shape \(5, 6\) for a batch of 4 examples"),
}


@pytest.mark.parametrize("name", NO_BATCH_AXIS)
def test_outputs_without_a_batch_axis(name):
    f, message = NO_BATCH_AXIS[name]
    with pytest.raises(ValueError, match=message):
        batched(f, trace_axes=nngp.all_but_batch)(X1, None, normal(2, 5, 6))


def test_outputs_with_as_many_rows_as_a_batch_by_chance():
    with pytest.raises(ValueError, match=r"output 'w' of f .* batch"):
        batched(lambda params, x: {"y": x, "w": params})(X1, None, normal(2, 4, 6))


def test_outputs_that_are_no_numbers():
    with pytest.raises(TypeError, match=r"^output 'name' of f is str, not numeric"):
        batched(lambda params, x: {"y": x, "name": "y"})(X1, None, None)
    with pytest.raises(ValueError, match=r"^the output of f is empty"):
        batched(lambda params, x: x[:, :0])(X1, None, None)


def test_axes_that_pair_the_batch_axis_with_another():
    def f(params, x):
        return {"a": x[:, :2], "b": jnp.tile(x[:, :1], (1, 11))}

    def axes(y):
        return 0 if y.shape[1] == 2 else 1

    message = r"^trace_axes and diagonal_axes pair batch axis 0 with another axis for output 'a' with output 'b', with"
    for option in ("trace_axes", "diagonal_axes"):
        options = {"trace_axes": (), option: axes}
        with pytest.raises(ValueError, match=message):
            batched(f, cross_terms=True, **options)(X1, None, None)


BAD_AXES = {
    "twice": ({"trace_axes": (-1, 1)}, {}),
    "out of range": ({"trace_axes": 2}, {}),
    "overlap": ({"trace_axes": 1, "diagonal_axes": -1}, {}),
    "a str": ({"diagonal_axes": "1"}, {}),
    "x2 of other features": ({}, {"x2": normal(1, 7, 5)}),
    "x2 of other rows": ({"diagonal_axes": 0}, {"x2": X2}),
    "x2 of other axes": ({"trace_axes": (1, 0)}, {"x2": normal(1, 11, 6, 2)[0]}),
    "x2 of another structure": ({}, {"x2": normal(1, 7, 3), "f": lambda params, x: [x] * x.shape[1]}),
}


@pytest.mark.parametrize("name", BAD_AXES)
def test_the_errors_of_the_unbatched_kernel_function(name):
    axes, others = BAD_AXES[name]
    f, x2 = others.get("f", scaled), others.get("x2")
    with pytest.raises((TypeError, ValueError), match=r"trace_axes|diagonal_axes|returned") as expected:
        nngp.empirical_nngp_fn(f, **axes)(X1, x2, 2.0)
    with pytest.raises(expected.type, match=f"^{re.escape(str(expected.value))}$"):
        batched(f, **axes)(X1, x2, 2.0)
