"""What neural-tangents gets wrong without a word, or stumbles over: the unbatched part of the list."""

from functools import partial

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, normal

import nngp_plugins as nngp

pytestmark = pytest.mark.once

X1, X2 = normal(0, 6, 3), normal(1, 4, 3)


def test_duplicate_axes_divide_twice_silently():
    # the kernel would come out 3 times too small
    with pytest.raises(ValueError, match=r"trace_axes=\(-1, 1\) names axis 1 of the output with shape \(6, 3\) twice"):
        nngp.empirical_nngp_fn(lambda params, x: x, trace_axes=(-1, 1))(X1, None, None)


def test_trace_axes_as_an_int_is_a_type_error():
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x, trace_axes=-1)
    assert_close(kernel_fn(X1, X2, None), gram(X1, X2))


def test_a_bf16_kernel_is_computed_in_bf16():
    x = (1 + normal(2, 4, 500)).astype(jnp.bfloat16)
    kernel = nngp.empirical_nngp_fn(lambda params, x: x)(x, None, None)
    assert kernel.dtype == jnp.float32
    assert_close(kernel, gram(x, x))


def test_dict_x_with_rng():
    def f(params, x, rng):
        return x["u"] + jax.random.normal(rng, x["u"].shape, jnp.float32)

    key = jax.random.key(3)
    x1, x2 = {"u": X1}, {"u": X2}
    kernel_fn = nngp.empirical_nngp_fn(f)
    y1, y2 = f(None, x1, key), f(None, x2, jax.random.fold_in(key, 1))
    assert_close(kernel_fn(x1, x2, None, rng=key), gram(y1, y2))
    assert_close(kernel_fn(x1, {"u": X1 + 0}, None, rng=key), gram(y1, y1))


# `rngs` gave x1 and x2 the same dropout mask


class Dropout(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(64)(x))


SAME_SHAPE = normal(5, 6, 3)  # on inputs of two shapes the masks would differ anyway


@pytest.fixture(scope="module")
def dropout_params():
    return jax.jit(Dropout().init)({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X1)["params"]


def test_flax_rngs_same_key_for_different_x_in_a_plain_apply(dropout_params):
    def f(params, x, rngs):
        return Dropout().apply({"params": params}, x, rngs=rngs)

    key = jax.random.key(3)
    kernel_fn = nngp.empirical_nngp_fn(f)
    y1, same, folded = (
        jax.jit(f)(dropout_params, x, {"dropout": k})
        for x, k in [(X1, key), (SAME_SHAPE, key), (SAME_SHAPE, jax.random.fold_in(key, 1))]
    )
    kernel = kernel_fn(X1, SAME_SHAPE, dropout_params, rngs={"dropout": key})
    assert_close(kernel, gram(y1, folded))
    assert np.abs(gram(y1, same) - gram(y1, folded)).max() > 0.1
    assert_close(kernel_fn(X1, X1 + 0, dropout_params, rngs={"dropout": key}), gram(y1, y1))


def test_flax_rngs_same_key_for_different_x_through_from_linen(dropout_params):
    f = nngp.from_linen(Dropout())
    key = jax.random.key(3)
    kernel_fn = nngp.empirical_nngp_fn(f)
    run = jax.jit(lambda params, x, key: f(params, x, rng=key))
    y1, same, folded = (
        run(dropout_params, x, k) for x, k in [(X1, key), (SAME_SHAPE, key), (SAME_SHAPE, jax.random.fold_in(key, 1))]
    )
    kernel = kernel_fn(X1, SAME_SHAPE, dropout_params, rng=key)
    assert_close(kernel, gram(y1, folded))
    assert np.abs(gram(y1, same) - gram(y1, folded)).max() > 0.1
    assert_close(kernel_fn(X1, None, dropout_params, rng=key), gram(y1, y1))


# an `f` that returns (out, state) had its state made into a kernel


class BatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_f_returning_out_and_state_kernelises_the_state_linen(train):
    module = BatchNorm()
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), X1)
    variables["batch_stats"]["BatchNorm_0"]["mean"] += 0.3
    f = nngp.from_linen(module, mutable=["batch_stats"] if train else [], train=train)
    state = {"batch_stats": variables["batch_stats"]}
    kernel = jax.jit(nngp.empirical_nngp_fn(f))(X1, X2, variables["params"], state=state)
    apply = jax.jit(partial(module.apply, train=train, mutable=["batch_stats"]))
    y1, y2 = (apply(variables, x)[0] for x in (X1, X2))
    assert isinstance(kernel, jax.Array)
    assert_close(kernel, gram(y1, y2))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_f_returning_out_and_state_kernelises_the_state_haiku(train):
    def forward(x, is_training):
        y = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(hk.Linear(8)(x), is_training)
        return jax.nn.relu(y)

    transformed = hk.transform_with_state(forward)
    params, state = jax.jit(partial(transformed.init, is_training=True))(jax.random.key(0), SAME_SHAPE)
    f = nngp.from_haiku(transformed, is_training=train)
    kernel = jax.jit(nngp.empirical_nngp_fn(f))(X1, X2, params, state=state)
    apply = jax.jit(partial(transformed.apply, is_training=train))
    y1, y2 = (apply(params, state, None, x)[0] for x in (X1, X2))
    assert isinstance(kernel, jax.Array)
    assert_close(kernel, gram(y1, y2))


@pytest.mark.parametrize(
    ("name", "told"),
    [("stax", "nngp.closed_form.dense"), ("predict", "nngp.gp.fit"), ("empirical_ntk_fn", "nngp.empirical_nngp_fn")],
)
def test_names_that_are_not_here_say_where_to_go(name, told):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}': .*{told}"):
        getattr(nngp, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'stacks'$"):
        nngp.stacks  # noqa: B018
