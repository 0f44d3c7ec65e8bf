from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, jax_normal as normal

import nngp_plugins as nngp


class Heads(NamedTuple):
    logits: Any
    value: Any


def mlp(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["head"]


def mlp_params(seed=0, dtype="float32"):
    return {"hidden": normal(seed, 3, 6, dtype=dtype), "head": normal(seed + 1, 6, 4, dtype=dtype)}


class Counted:
    """An apply function that counts its forward passes."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, params, x):
        self.calls += 1
        return self.f(params, x)


OUTPUTS = {
    "array": lambda a, b: a,
    "dict": lambda a, b: {"a": a, "b": b},
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [b],
    "namedtuple": lambda a, b: Heads(a, b),
    "nested": lambda a, b: {"z": (a, {"b": b}), "a": [b, a]},
    "none leaves": lambda a, b: {"a": a, "left out": None, "b": (None, b)},
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_kernel_has_the_structure_of_the_outputs(name):
    def f(params, x):
        return OUTPUTS[name](params * x, jnp.sin(x[:, :2]))

    x1, x2 = normal(0, 5, 4), normal(1, 3, 4)
    y1, y2 = f(2.0, x1), f(2.0, x2)
    kernel_fn = nngp.empirical_nngp_fn(f)
    assert_close(kernel_fn(x1, None, 2.0), jax.tree.map(gram, y1))
    assert_close(kernel_fn(x1, x2, 2.0), jax.tree.map(gram, y1, y2))


def test_none_leaves_survive():
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: {"a": x, "b": None, "c": (None,)})
    kernel = kernel_fn(normal(0, 3, 2), None, None)
    assert kernel["b"] is None
    assert kernel["c"] == (None,)


@pytest.mark.parametrize("transform", [lambda kernel_fn: kernel_fn, jax.jit], ids=["eager", "jit"])
def test_an_ordered_dict_keeps_its_order(transform):
    # a plain dict comes out of jit sorted, and layers in forward order would be lost
    def f(params, x):
        return OrderedDict([("z", x), ("a", 2 * x), ("m", 3 * x)])

    x = normal(0, 3, 2)
    kernel = transform(nngp.empirical_nngp_fn(f))(x, None, 1.0)
    assert type(kernel) is OrderedDict
    assert list(kernel) == ["z", "a", "m"]
    assert_close(list(kernel.values()), [gram(x), 4 * gram(x), 9 * gram(x)])


@pytest.mark.parametrize("kind", ["dict", "tuple", "nested"])
def test_inputs_may_be_a_pytree(kind):
    make = {
        "dict": lambda u, v: {"u": u, "v": v},
        "tuple": lambda u, v: (u, v),
        "nested": lambda u, v: {"both": [u, (v, None)]},
    }[kind]

    def f(params, x):
        u, v = jax.tree.leaves(x)
        return params * u[:, :2] - v

    u1, v1, u2, v2 = normal(0, 5, 3), normal(1, 5, 2), normal(2, 4, 3), normal(3, 4, 2)
    kernel_fn = nngp.empirical_nngp_fn(f)
    assert_close(kernel_fn(make(u1, v1), None, 2.0), gram(2 * u1[:, :2] - v1))
    assert_close(kernel_fn(make(u1, v1), make(u2, v2), 2.0), gram(2 * u1[:, :2] - v1, 2 * u2[:, :2] - v2))


def test_numpy_inputs_and_outputs():
    x1, x2 = np.asarray(normal(0, 5, 3)), np.asarray(normal(1, 4, 3))
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: params * x)
    assert_close(kernel_fn(x1, x2, np.float32(2)), 4 * gram(x1, x2))


@pytest.mark.parametrize(
    "axes",
    [(1, 3), [1, 3], (-3, -1), (3, 1), range(1, 4, 2), (np.int64(1), np.int32(-1)), lambda y: (1, y.ndim - 1)],
    ids=["tuple", "list", "negative", "unsorted", "range", "numpy ints", "function"],
)
def test_several_axes_in_every_form(axes):
    x = normal(0, 2, 3, 4, 5)
    y = np.asarray(x, np.float64)
    traced = nngp.empirical_nngp_fn(lambda params, x: x, trace_axes=axes)
    diagonal = nngp.empirical_nngp_fn(lambda params, x: x, trace_axes=(), diagonal_axes=axes)
    assert_close(traced(x, None, None), np.einsum("nhwc,mhvc->nmwv", y, y) / 15)
    assert_close(diagonal(x, None, None), np.einsum("nhwc,mhvc->nmhwvc", y, y))


@pytest.mark.parametrize(
    "axis", [2, -1, np.int64(2), np.array(2), lambda y: 2], ids=["int", "negative", "numpy int", "0-d", "function"]
)
def test_one_axis_in_every_form(axis):
    x = normal(0, 2, 3, 4)
    y = np.asarray(x, np.float64)
    traced = nngp.empirical_nngp_fn(lambda params, x: x, trace_axes=axis)
    diagonal = nngp.empirical_nngp_fn(lambda params, x: x, trace_axes=1, diagonal_axes=axis)
    assert_close(traced(x, None, None), np.einsum("nhc,mgc->nmhg", y, y) / 4)
    assert_close(diagonal(x, None, None), np.einsum("nhc,mhc->nmc", y, y) / 3)


def test_a_function_of_axes_sees_shape_and_dtype_of_each_output():
    seen = []

    def axes(output):
        seen.append(output)
        return 1 if output.dtype == jnp.float32 else ()

    def f(params, x):
        return {"a": x, "b": x[:, 0].astype(jnp.float16)}

    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]], jnp.float32)
    kernel = nngp.empirical_nngp_fn(f, trace_axes=axes)(x, None, None)
    assert_close(kernel, {"a": gram(x), "b": np.outer(x[:, 0], x[:, 0])})
    assert set(seen) == {jax.ShapeDtypeStruct((2, 2), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float16)}


def test_all_but_batch_makes_every_kernel_a_mean_over_features():
    def f(params, x):
        return {"image": x, "rows": x.mean(axis=(2, 3)), "scalar": x.mean(axis=(1, 2, 3))}

    x1, x2 = normal(0, 5, 2, 3, 4), normal(1, 3, 2, 3, 4)
    kernel = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch)(x1, x2, None)
    assert_close(kernel, jax.tree.map(gram, f(None, x1), f(None, x2)))


@pytest.mark.parametrize("nones", [None, {"u": None, "v": [None, None]}], ids=["None", "PyTree of Nones"])
def test_without_x2_there_is_one_forward_pass(nones):
    f = Counted(lambda params, x: x["u"] * params)
    x = {"u": normal(0, 4, 3), "v": [normal(1, 4), normal(2, 4)]}
    kernel = nngp.empirical_nngp_fn(f)(x, nones, 2.0)
    assert f.calls == 1
    assert_close(kernel, 4 * gram(x["u"]))


def test_with_x2_there_are_two_forward_passes():
    f = Counted(lambda params, x: x * params)
    nngp.empirical_nngp_fn(f)(normal(0, 4, 3), normal(1, 2, 3), 2.0)
    assert f.calls == 2


def test_arguments_by_keyword():
    x1, x2, params = normal(0, 5, 3), normal(1, 4, 3), mlp_params()
    kernel_fn = nngp.empirical_nngp_fn(mlp)
    expected = gram(mlp(params, x1), mlp(params, x2))
    assert_close(kernel_fn(x1, x2, params=params), expected)
    assert_close(kernel_fn(params=params, x2=x2, x1=x1), expected)


def test_the_kernel_of_outputs_that_are_already_there():
    x1, x2, params = normal(0, 5, 3), normal(1, 4, 3), mlp_params()
    kernel_fn = nngp.empirical_nngp_fn(mlp)
    np.testing.assert_array_equal(
        kernel_fn.contract(mlp(params, x1), mlp(params, x2)), kernel_fn(x1, x2, params), strict=True
    )


def test_a_trace_may_have_more_terms_than_an_int32_counts():
    x = jax.ShapeDtypeStruct((2, 2**31), jnp.float32)
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x)
    assert jax.eval_shape(kernel_fn, x, None, None).shape == (2, 2)


# transformations


@pytest.mark.parametrize("other", [False, True], ids=["x2=None", "x2"])
def test_jit_and_vmap_over_params_give_the_same(other):
    kernel_fn = nngp.empirical_nngp_fn(mlp)
    x1, x2 = normal(0, 5, 3), normal(1, 4, 3) if other else None
    models = [mlp_params(seed) for seed in (10, 20, 30)]
    expected = np.stack([gram(mlp(params, x1), mlp(params, x2) if other else None) for params in models])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    over_params = jax.vmap(kernel_fn, in_axes=(None, None, 0))
    assert_close(jax.jit(kernel_fn)(x1, x2, models[0]), expected[0])
    assert_close(over_params(x1, x2, stacked), expected)
    assert_close(jax.jit(over_params)(x1, x2, stacked), expected)


@pytest.mark.every(2)
@pytest.mark.parametrize("other", [False, True], ids=["x2=None", "x2"])
def test_gradients_agree_with_finite_differences(other):
    with jax.enable_x64(True):
        x1, x2 = normal(0, 5, 3, dtype="float64"), normal(1, 4, 3, dtype="float64") if other else None
        kernel_fn = nngp.empirical_nngp_fn(mlp)
        # one number with a gradient of its own for every entry, symmetric or not
        weights = normal(2, 5, 4 if other else 5, dtype="float64")

        def loss(params, x1):
            return jnp.vdot(weights, kernel_fn(x1, x2, params))

        jax.test_util.check_grads(jax.jit(loss), (mlp_params(dtype="float64"), x1), order=2, rtol=1e-6, atol=1e-6)


def test_the_gradient_passes_through_bfloat16_outputs():
    x = normal(0, 4, 3).astype(jnp.bfloat16).astype(jnp.float32)
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: (params * x).astype(jnp.bfloat16))
    gradient = jax.grad(lambda params: jnp.trace(kernel_fn(x, None, params)))(jnp.float32(2.0))
    np.testing.assert_allclose(gradient, 2 * 2.0 * np.trace(gram(x)), rtol=1e-2)
