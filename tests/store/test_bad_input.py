"""Arguments that write_kernel refuses before it touches the disk, and outputs it refuses on the way."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp


def conv(params, x):
    return jnp.tanh(x @ params)


@pytest.mark.parametrize("tile_size", [0, -1, 2.5, 4.0, "4", (4,)], ids=repr)
def test_a_tile_size_that_is_no_number_of_examples(small, tile_size):
    message = f"tile_size={tile_size!r} must be a positive number of examples, or None"
    with pytest.raises(ValueError, match=re.escape(message)):
        small.write(tile_size=tile_size)
    assert not small.path.exists()


def test_a_tile_size_of_numpy(small, finished):
    small.write(tile_size=np.int64(4))
    assert small.is_like(finished)


@pytest.mark.parametrize("batch_size", [-1, 2.5, "4", None], ids=repr)
def test_a_batch_size_that_is_no_number_of_examples(small, batch_size):
    with pytest.raises(ValueError, match=re.escape(f"batch_size={batch_size!r} must be a number of examples")):
        small.write(batch_size=batch_size)
    assert not small.path.exists()


@pytest.mark.parametrize("kernel_fn", [conv, "f", 1], ids=["f", "str", "int"])
def test_what_is_no_kernel_function(small, kernel_fn):
    with pytest.raises(TypeError, match=r"is not a kernel function; pass what nngp\.empirical_nngp_fn\(f\) returns"):
        small.write(kernel_fn=kernel_fn)
    assert not small.path.exists()


@pytest.mark.parametrize("trace_axes", [(0,), (0, -1)], ids=str)
def test_a_traced_batch_axis(small, trace_axes):
    message = r"^trace_axes average the output over batch axis 0, so its kernel is no larger than an output; compute it"
    with pytest.raises(ValueError, match=message):
        small.write(kernel_fn=nngp.empirical_nngp_fn(conv, trace_axes))
    assert not small.path.exists()


@pytest.mark.parametrize(
    ("x1", "x2", "message"),
    [
        (np.ones((0, 5), np.float32), None, r"^x1 with shape \(0, 5\) is an empty batch"),
        (np.ones((4, 5), np.float32), np.ones((0, 5), np.float32), r"^x2 with shape \(0, 5\) is an empty batch"),
    ],
    ids=["x1", "x2"],
)
def test_no_examples(small, x1, x2, message):
    with pytest.raises(ValueError, match=message):
        small.write(x1=x1, x2=x2)
    assert not small.path.exists()


def test_inside_jit(small):
    with pytest.raises(TypeError, match=r"jit"):
        jax.jit(lambda x: small.write(x1=x)[...])(small.x1)
    assert not small.path.exists()


def test_outputs_of_one_name(small):
    def f(params, x):
        y = jnp.tanh(x @ params)
        return {"a": {"b": y}, "a/b": -y[:, :1]}

    with pytest.raises(ValueError, match=r"two outputs of f are called 'a/b'; give each a name of its own"):
        small.write(f)
    assert not small.path.exists()


# NaN and infinity


def layers(params, x):
    return {"one": x @ params, "two": {"logs": jnp.log(x[:, :1] + 100)}}


def spoil(x, value, *examples):
    x = x.copy()
    x[list(examples), 0] = value
    return x


@pytest.mark.parametrize(("example", "value"), [(0, np.nan), (4, -np.inf), (9, np.inf)])
def test_one_example_of_x1_that_is_not_finite(small, example, value):
    with pytest.raises(ValueError, match=rf"^output 'one' of f is NaN or infinite for x1 examples {example}\.$"):
        small.write(layers, spoil(small.x1, value, example))
    store = small.open()
    assert not store.complete
    store.verify()


def test_the_layer_that_is_not_finite_is_named(small):
    with pytest.raises(ValueError, match=r"^output 'two/logs' of f is NaN or infinite for x1 examples 8\.$"):
        small.write(layers, spoil(small.x1, -101, 8))


def test_one_example_of_x2_that_is_not_finite(small):
    example = 6
    with pytest.raises(ValueError, match=rf"^output 'one' of f is NaN or infinite for x2 examples {example}\.$"):
        small.write(layers, x2=spoil(small.x2, np.nan, example))
    assert not small.open().complete


def test_an_output_without_a_name_and_an_imaginary_part(small):
    with pytest.raises(ValueError, match=r"^the output of f is NaN or infinite for x1 examples 2, 3\.$"):
        small.write(lambda params, x: x + 1j * jnp.where(x[:, :1] == 7, jnp.inf, 0), spoil(small.x1, 7, 2, 3))


def test_many_examples_that_are_not_finite_are_counted(small):
    x1 = np.full((12, 5), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"for x1 examples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more\.$"):
        small.write(x1=x1, tile_size=12)


def test_blocks_before_the_one_that_is_not_finite_are_kept(small, finished):
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(small.network), memory_budget=150)  # blocks of 4 rows
    with pytest.raises(ValueError, match=r"^the output of f is NaN or infinite for x1 examples 8\.$"):
        small.write(x1=spoil(small.x1, np.nan, 8), kernel_fn=kernel_fn)
    store, files = small.open(), small.files()
    assert 0 < store.fraction < 1
    store.verify()
    assert files["kernel/c/0/0"] == finished["kernel/c/0/0"]
    with pytest.raises(ValueError, match=r"holds a kernel of other x1; pass what it was begun with"):
        small.write(kernel_fn=kernel_fn)
