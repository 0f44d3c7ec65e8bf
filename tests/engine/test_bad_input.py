import re
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp


def identity(params, x):
    return x


def kernel(x1, x2=None, f=identity, **options):
    return nngp.empirical_nngp_fn(f, **options)(x1, x2, None)


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


both_arguments = pytest.mark.parametrize("argument", ["trace_axes", "diagonal_axes"])


@both_arguments
@pytest.mark.parametrize(("axes", "axis"), [(2, 2), (-3, -3), ((0, 5), 5), ((np.int64(7),), 7)], ids=str)
def test_axes_out_of_range(argument, axes, axis):
    message = f"{argument}={axes!r} names axis {axis} of the output with shape (2, 3), which has axes -2 to 1."
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel(ones(2, 3), **{"trace_axes": (), argument: axes})


def test_axes_named_twice():
    with pytest.raises(
        ValueError,
        match=re.escape(
            "trace_axes=(-1, 1) names axis 1 of output 'logits' with shape (8, 10) twice; name each axis once."
        ),
    ):
        kernel({"logits": ones(8, 10)}, trace_axes=(-1, 1))
    with pytest.raises(ValueError, match=r"^diagonal_axes=\(0, -2\) names axis 0 of the output .* twice"):
        kernel(ones(8, 10), diagonal_axes=(0, -2))


@pytest.mark.parametrize(
    ("trace", "diagonal"), [(-2, 1), ((1, 2), (0, -2)), (nngp.all_but_batch, 1)], ids=["int", "tuple", "function"]
)
def test_overlapping_axes(trace, diagonal):
    with pytest.raises(
        ValueError, match=r"trace_axes=.* and diagonal_axes=.* both name axis 1 of the output .* one of them"
    ):
        kernel(ones(4, 3, 2), trace_axes=trace, diagonal_axes=diagonal)


def test_a_function_of_axes_is_named_with_what_it_gave():
    def too_many(output):
        return (1, 2)

    with pytest.raises(ValueError, match=r"^trace_axes=too_many, which gave \(1, 2\), names axis 2"):
        kernel(ones(2, 3), trace_axes=too_many)


def test_the_message_names_the_output_by_its_path():
    with pytest.raises(ValueError, match=r"names axis 3 of output 'heads/1' with shape \(2, 3\)"):
        kernel({"heads": [ones(2, 3, 4, 5), ones(2, 3)]}, trace_axes=3)


NOT_AXES = {"None": None, "float": 1.0, "str": "1", "empty str": "", "set": {1}, "floats": (1.0,), "nested": ((0, 1),)}


@pytest.mark.parametrize("axes", NOT_AXES.values(), ids=NOT_AXES)
@both_arguments
def test_axes_of_a_wrong_type(argument, axes):
    message = f"{argument}={axes!r} must be an int, a sequence of ints, or a function that returns one."
    with pytest.raises(TypeError, match=re.escape(message)):
        kernel(ones(2, 3), **{argument: axes})


@pytest.mark.parametrize("axes", NOT_AXES.values(), ids=NOT_AXES)
@both_arguments
def test_a_function_of_axes_that_returns_nonsense(argument, axes):
    def nonsense(output):
        return axes

    message = f"{argument}=nonsense, which gave {axes!r}, must be an int, a sequence of ints, or a function"
    with pytest.raises(TypeError, match=re.escape(message)):
        kernel(ones(2, 3), **{argument: nonsense})


def test_outputs_that_differ_on_a_traced_axis():
    with pytest.raises(
        ValueError,
        match=r"^trace_axes=\(-1,\) pairs axis 1 of the output with shape \(2, 3\) with axis 1 of the output "
        r"with shape \(2, 4\), whose sizes 3 and 4 differ",
    ):
        kernel(ones(2, 3), ones(2, 4))


def test_outputs_that_differ_on_a_diagonal_axis():
    with pytest.raises(
        ValueError,
        match=r"^diagonal_axes=0 pairs axis 0 of output 'y' with shape \(2, 3\) with axis 0 of output 'y' "
        r"with shape \(5, 3\), whose sizes 2 and 5 differ",
    ):
        kernel({"y": ones(2, 3)}, {"y": ones(5, 3)}, diagonal_axes=0)


def test_a_size_of_one_is_not_broadcast():
    with pytest.raises(ValueError, match="sizes 1 and 3 differ"):
        kernel(ones(2, 1), ones(2, 3))


@pytest.mark.parametrize(("argument", "other"), [("trace_axes", "diagonal_axes"), ("diagonal_axes", "trace_axes")])
def test_cross_terms_with_different_numbers_of_axes(argument, other):
    outputs = {"a": ones(2, 3), "b": ones(2, 3, 3)}
    with pytest.raises(
        ValueError,
        match=rf"^{argument}=all_but_batch names 1 axes of output 'a' with shape \(2, 3\) but 2 of output 'b' "
        r"with shape \(2, 3, 3\)",
    ):
        kernel(outputs, **{argument: nngp.all_but_batch, other: ()}, cross_terms=True)


def test_cross_terms_of_different_widths():
    with pytest.raises(
        ValueError,
        match=r"pairs axis 1 of output 'a' with shape \(2, 3\) with axis 1 of output 'b' .* sizes 3 and 4 differ",
    ):
        kernel({"a": ones(2, 3), "b": ones(2, 4)}, cross_terms=True)


def test_a_scalar_output():
    with pytest.raises(
        ValueError,
        match=r"trace_axes=\(-1,\) names axis -1 of the output with shape \(\), which has no axes \(return a batch",
    ):
        kernel(ones(2, 3), f=lambda params, x: jnp.mean(x))
    with pytest.raises(ValueError, match=r"output 'loss' with shape \(\), which has no axes"):
        kernel(ones(2, 3), f=lambda params, x: {"logits": x, "loss": 0.5})


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("logits", "str"),
        (np.array(["a", "b"]), "<U1"),
        (jax.random.key(0), "key<fry>"),
        (jax.random.split(jax.random.key(0), 2), "key<fry>"),
        (object(), "object"),
        (len, "builtin_function_or_method"),
        (np.zeros(2, "datetime64[s]"), "datetime64"),
    ],
    ids=["str", "array of str", "key", "keys", "object", "function", "dates"],
)
def test_outputs_that_are_not_numeric(output, found):
    with pytest.raises(TypeError, match=rf"^the output of f is {found}.*, not numeric"):
        kernel(ones(2, 3), f=lambda params, x: output)
    with pytest.raises(TypeError, match=rf"^output 'a/0' of f is {found}.*, not numeric"):
        kernel(ones(2, 3), f=lambda params, x: {"a": [output], "b": x})


def unreachable(params, x):
    raise AssertionError("f ran before its inputs were checked")


@pytest.mark.parametrize(
    ("x1", "x2", "where"),
    [
        (ones(0, 3), None, r"x1 with shape \(0, 3\)"),
        (ones(2, 3), np.ones((0, 3)), r"x2 with shape \(0, 3\)"),
        ({"u": ones(2, 3), "v": ones(0)}, None, r"x1\['v'\] with shape \(0,\)"),
        ((ones(2, 3),), (ones(0, 3),), r"x2\[0\] with shape \(0, 3\)"),
    ],
    ids=["x1", "x2", "dict", "tuple"],
)
def test_an_empty_batch(x1, x2, where):
    with pytest.raises(ValueError, match=rf"^{where} is an empty batch; pass at least one example"):
        kernel(x1, x2, f=unreachable)


def test_an_empty_output():
    with pytest.raises(ValueError, match=r"^output 'a' of f is empty, with shape \(2, 0\)"):
        kernel(ones(2, 3), f=lambda params, x: {"a": x[:, :0]})


@pytest.mark.parametrize("f", [None, 3, {"params": 1}], ids=["None", "int", "dict"])
def test_f_that_is_not_callable(f):
    with pytest.raises(TypeError, match=rf"^f={re.escape(repr(f))} is not callable; .* nngp\.from_linen\(module\)"):
        nngp.empirical_nngp_fn(f)


@pytest.mark.parametrize(
    "f",
    [
        lambda params, x: [x] * len(x),
        lambda params, x: {str(len(x)): x},
        lambda params, x: {"a": x, "b": None if len(x) == 2 else x},
        lambda params, x: {"a": x} if len(x) == 2 else OrderedDict(a=x),
    ],
    ids=["number", "names", "None", "type"],
)
def test_outputs_of_two_structures(f):
    with pytest.raises(
        ValueError, match=r"^f returned PyTreeDef\(.*\) for x1 but PyTreeDef\(.*\) for x2; .* one structure"
    ):
        kernel(ones(2, 3), ones(4, 3), f=f)


def test_the_errors_are_the_same_under_jit():
    kernel_fn = jax.jit(nngp.empirical_nngp_fn(identity, trace_axes=(-1, 1)))
    with pytest.raises(ValueError, match=r"names axis 1 of the output with shape \(2, 3\) twice"):
        kernel_fn(ones(2, 3), None, None)
    with pytest.raises(ValueError, match=r"x1 with shape .* is an empty batch"):
        kernel_fn(ones(0, 3), None, None)
