"""Outputs that depend on the other examples in the batch: batches of them are refused, not silently wrong."""

from functools import partial

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import assert_close, gram, normal

import nngp_plugins as nngp

X1, X2 = normal(0, 12, 6), normal(1, 7, 6)
REFUSED = r"of f depends on the other examples in the batch: .* check=False to take batches as they are"
KEY = jax.random.key(3)


def kernel(f, x1=X1, x2=None, params=None, batch_size=4, check=True, **kwargs):
    return nngp.batch(nngp.empirical_nngp_fn(f), batch_size, check=check)(x1, x2, params, **kwargs)


# BatchNorm and Dropout in each framework, as (f in training mode, f in evaluation mode, params, kwargs)


class Linen(nn.Module):
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(nn.Dense(8, name="hidden")(x))
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.hidden(x))


def linen():
    variables = jax.jit(partial(Linen().init, train=False))(jax.random.key(0), X1)
    train = nngp.from_linen(Linen(), mutable=["batch_stats"], train=True)
    return train, nngp.from_linen(Linen(), train=False), variables, {"rng": KEY}


def haiku():
    def net(x, is_training):
        return hk.BatchNorm(True, True, 0.9, name="norm")(hk.Linear(8, name="hidden")(x), is_training)

    f = nngp.from_haiku(hk.transform_with_state(net), is_training=True)
    params, state = jax.jit(f.init)(jax.random.key(0), X1)
    return f, nngp.from_haiku(hk.transform_with_state(net), is_training=False), params, {"state": state}


def nnx_model():
    model = NNX(nnx.Rngs(0))
    train = nngp.from_nnx(model)
    model.eval()
    return train, nngp.from_nnx(model), model, {}


frameworks = pytest.mark.parametrize("make", [linen, haiku, nnx_model])


@frameworks
def test_batch_norm_in_training_mode_is_refused(make):
    train, _, params, kwargs = make()
    with pytest.raises(ValueError, match=f"^the output {REFUSED}"):
        kernel(train, X1, None, params, **kwargs)
    # what comes before it does not depend on the others
    with pytest.raises(ValueError, match=f"^output 'norm' {REFUSED}"):
        kernel(train.layers("hidden", "norm"), X1, X2, params, **kwargs)
    kernel(train.layers("hidden"), X1, None, params, **kwargs)


@pytest.mark.usefixtures("full_precision")
def test_evaluation_mode_passes():
    """With a key for the noise, which is off; test_batch.py has networks with BatchNorm of the other frameworks."""
    _, evaluate, params, kwargs = linen()
    expected = jax.jit(nngp.empirical_nngp_fn(evaluate))(X1, X2, params, **kwargs)
    assert_close(kernel(evaluate, X1, X2, params, **kwargs), np.asarray(expected))


def normalised(params, x, rng=None, eps=1e-5):
    y = (x - x.mean(axis=0)) / (x.std(axis=0) + eps)
    return y if rng is None else y + 0.1 * jax.random.normal(rng, y.shape)


def divided(params, x, rng=None):
    return x / x.shape[0]


def ranked(params, x, rng=None):
    return jnp.argsort(jnp.argsort(x, axis=0), axis=0)


def softmax_over_examples(params, x, rng=None):
    return {"fine": x, "mixed": jax.nn.softmax(x, axis=0)}


def complex_mean(params, x, rng=None):
    return x + 1j * x.mean(axis=0)


def barely_mixed(params, x, rng=None):
    return x + 1e-3 * x.mean(axis=0)


def mixed_in_large_batches(params, x, rng=None):
    # as experts with a capacity: no example of a small batch is over it
    return x + 0.02 * (x.mean(axis=0) if len(x) > 2 else 0)


MIXED = [normalised, ranked, softmax_over_examples, complex_mean, barely_mixed]


@pytest.mark.parametrize(("f", "batch_size"), [*zip(MIXED, (1, 2, 3, 12, 1), strict=True), (barely_mixed, 12)])
def test_all_that_depends_on_the_batch_is_refused(f, batch_size):
    x = np.concatenate([X1, X1 + 1])
    with pytest.raises(ValueError, match=REFUSED):
        kernel(f, x, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [3, 12])
def test_what_depends_on_the_others_only_in_large_batches_is_refused(batch_size):
    with pytest.raises(ValueError, match=REFUSED):
        kernel(mixed_in_large_batches, np.concatenate([X1, X1 + 1]), batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 12])
def test_what_depends_on_the_size_of_the_batch_is_refused(batch_size):
    x = np.concatenate([X1, X1 + 1])
    with pytest.raises(
        ValueError, match=r"the output of f depends on the size of the batch: it differs by \d+% between"
    ):
        kernel(divided, x, batch_size=batch_size)


@pytest.mark.parametrize("f", MIXED)  # noise may depend on the size of the batch, so that may vary
def test_all_that_depends_on_the_batch_is_refused_with_a_key(f):
    with pytest.raises(ValueError, match=REFUSED):
        kernel(f, rng=KEY)


def test_one_that_depends_on_the_batch_only_with_a_key():
    def f(params, x, rng=None):
        return x if rng is None else x - x.mean(axis=0) * jax.random.uniform(rng)

    kernel(f)
    with pytest.raises(ValueError, match=REFUSED):
        kernel(f, rng=KEY)
    # padding often makes the first and the last example the same
    x = np.concatenate([X1, X1[:1]])
    with pytest.raises(ValueError, match=REFUSED):
        kernel(f, x, rng=KEY)


@pytest.mark.parametrize(("batch_size", "kwargs"), [(2, {}), (3, {"rng": KEY})], ids=["no key", "key"])
def test_a_standard_deviation_of_one_example_is_no_excuse(batch_size, kwargs):
    # 0/0 in the batch it is compared with
    with pytest.raises(ValueError, match=REFUSED):
        kernel(lambda params, x, rng=None: normalised(params, x, rng, eps=0.0), batch_size=batch_size, **kwargs)


@pytest.mark.parametrize(("dtype", "batch_size"), [("bfloat16", 4), ("float16", 12)])
def test_half_precision_is_no_excuse(dtype, batch_size):
    def f(params, x):
        x = x.astype(dtype)
        return x + 0.5 * jax.nn.relu(x - x.mean(axis=0)) / (x.std(axis=0) + 0.01)

    x = normal(0, 24, 20)
    # by how much batches would be wrong
    assert np.abs(np.asarray(kernel(f, x, batch_size=batch_size, check=False)) / gram(f(None, x)) - 1).max() > 0.05
    with pytest.raises(ValueError, match=REFUSED):
        kernel(f, x, batch_size=batch_size)


def test_both_sides_are_checked():
    def f(params, x, mixed):
        return x - mixed * x.mean(axis=0)

    assert_close(kernel(f, X1, X2, mixed=(0.0, 0.0)), gram(X1, X2))
    for mixed in [(1.0, 0.0), (0.0, 1.0)]:
        with pytest.raises(ValueError, match=REFUSED):
            kernel(f, X1, X2, mixed=mixed)


def test_without_the_check_batches_are_taken_as_they_are():
    outputs = np.concatenate([divided(None, X1[i : i + 4]) - X1[i : i + 4].mean(axis=0) for i in (0, 4, 8)])
    assert_close(kernel(lambda params, x: divided(params, x) - x.mean(axis=0), check=False), gram(outputs))


@pytest.mark.parametrize(("n2", "batch_size"), [(None, 12), (12, 50), (None, 0), (7, 0)])
def test_a_single_batch_is_the_whole(n2, batch_size):
    x2 = None if n2 is None else normal(1, n2, 6)
    y2 = None if n2 is None else normalised(None, x2)
    # All at once, x2 is a batch of 7, and not one filled up to the 12 of x1.
    assert_close(kernel(normalised, X1, x2, batch_size=batch_size), gram(normalised(None, X1), y2))


def outputs_that_pass(params, x, rng=None):
    """A refusal of one of them would be one of all, by its name."""
    return {
        "zeros": 0 * x,
        "NaN": jnp.sqrt(x),
        "all NaN": x * jnp.nan,
        "infinite": jnp.where(x > 0, jnp.inf, -jnp.inf),
        "some infinite": jnp.where(x > 0, jnp.inf, x),
        "integers": jnp.argsort(x, axis=1),
        "half precision": (x.astype("bfloat16") @ jnp.ones((6, 9), "bfloat16")) ** 2,
        "large": 1e18 * x,
    }


@pytest.mark.parametrize("kwargs", [{}, {"rng": KEY}], ids=["no key", "key"])
def test_what_does_not_depend_on_the_batch_passes(kwargs):
    for batch_size in (1, 2, 5):
        options = {"batch_size": batch_size, **kwargs}
        checked, unchecked = (kernel(outputs_that_pass, check=check, **options) for check in (True, False))
        for name in unchecked:
            np.testing.assert_array_equal(checked[name], unchecked[name], err_msg=name)


def test_dropout_passes_although_its_noise_depends_on_the_size_of_the_batch():
    def dropout(params, x, rng):
        return x * jax.random.bernoulli(rng, 0.5, x.shape) + jax.random.normal(rng, x.shape[::-1]).T

    for batch_size in (1, 5):
        kernel(dropout, X1, X2, batch_size=batch_size, rng=KEY)


def test_a_layer_that_is_as_long_as_the_batch_by_chance():
    class Positions(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(x + nn.Embed(4, 6, name="position")(jnp.arange(4)).mean(axis=0))

    f = nngp.from_linen(Positions())
    params, _ = jax.jit(f.init)(jax.random.key(0), X1)
    for batch_size in (4, 5):
        assert set(kernel(f.layers(), params=params, batch_size=batch_size)) == {"head"}


def ill_conditioned(large):
    """A function of each example alone whose large terms cancel, and are added up in another order in small batches."""

    def f(params, x, rng=None):
        terms = [large * x[:, i] for i in range(6)]
        total = sum(terms if len(x) > 2 else terms[::-1])
        return x + (total - sum(terms[2:] + terms[:2]))[:, None]

    return f


def test_rounding_that_a_model_makes_larger_is_no_dependence_on_others():
    x, f = np.concatenate([X1, X1 + 1]), ill_conditioned(5e5)
    with pytest.warns(UserWarning, match=r"the output of f is ill-conditioned: rounding alone changes it by [1-9]"):
        found = kernel(f, x, batch_size=12)
    assert_close(found, gram(np.concatenate([jax.jit(f)(None, x[i : i + 12]) for i in (0, 12)])))
    # what was found is remembered, and said once
    np.testing.assert_array_equal(kernel(f, x, batch_size=12), found)


def test_rounding_that_leaves_nothing_of_the_outputs_is_refused():
    with pytest.raises(ValueError, match=r"of f depends on the size of the batch: .* batches of 12 and 2, so batches"):
        kernel(ill_conditioned(1e8), np.concatenate([X1, X1 + 1]), batch_size=12)


def test_outputs_of_some_sizes_of_the_batch_only():
    def f(params, x):
        return {"head": x, "only": x} if len(x) == 4 else {"head": x}

    with pytest.raises(ValueError, match=r"^f returns 'only' only for batches of 4 or .*; return the same outputs"):
        kernel(f)
