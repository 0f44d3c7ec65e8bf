from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import gram, normal

import nngp_plugins as nngp


class Pair(NamedTuple):
    low: Any
    high: Any


def received(x2, **kwargs):
    """What the apply function got with ``x1``, and with ``x2``."""
    calls = []

    def f(params, x, **kwargs):
        calls.append(kwargs)
        return x

    nngp.empirical_nngp_fn(f)(np.ones((2, 3), np.float32), x2, None, **kwargs)
    return calls


X2 = np.ones((4, 3), np.float32)


def test_a_2_tuple_gives_its_first_to_x1_and_its_second_to_x2():
    assert received(X2, rate=(0.1, 0.2), train=(True, False)) == [
        {"rate": 0.1, "train": True},
        {"rate": 0.2, "train": False},
    ]


def test_without_x2_only_the_first_of_a_2_tuple_is_used():
    assert received(None, rate=(0.1, 0.2)) == [{"rate": 0.1}]


def test_shared_passes_a_tuple_whole():
    assert received(X2, window=nngp.Shared((1, 2)), name=nngp.Shared("a")) == [{"window": (1, 2), "name": "a"}] * 2


@pytest.mark.parametrize(
    "value",
    [0.1, None, "ab", True, [1, 2], (1, 2, 3), (1,), (), {"a": 1, "b": 2}, np.arange(2), Pair(1, 2), ((1, 2), 3, 4)],
    ids=repr,
)
def test_all_else_goes_to_both(value):
    first, second = received(X2, value=value)
    assert first["value"] is value
    assert second["value"] is value


def test_kwargs_work_under_jit():
    def f(params, x, scale, window):
        return params * x * scale + window[0] * window[1]

    x1, x2 = normal(0, 5, 3), normal(1, 4, 3)
    kernel_fn = jax.jit(nngp.empirical_nngp_fn(f))
    kernel = kernel_fn(x1, x2, 2.0, scale=(2.0, 3.0), window=nngp.Shared((0.5, 3.0)))
    np.testing.assert_allclose(kernel, gram(4 * x1 + 1.5, 6 * x2 + 1.5), rtol=1e-5)


# the rng rule: the same key for the same examples, another for others


def noisy(params, x, rng):
    features = sum(jax.tree.leaves(x))
    return params * features + jax.random.normal(rng, features.shape, jnp.float32)


NOISY = jax.jit(noisy)
KEYS = {
    "typed": jax.random.key,
    "uint32": jax.random.PRNGKey,
    "numpy": lambda seed: np.asarray(jax.random.PRNGKey(seed)),
}
INPUTS = {"array": lambda u, v: u, "dict": lambda u, v: {"u": u, "v": [v, None]}}
RUN = {"eager": lambda kernel_fn: kernel_fn, "jit": jax.jit}
eager_and_jit = pytest.mark.parametrize("run", RUN)
# Each kind of key with both ways to run, and both kinds of inputs.
ways = pytest.mark.parametrize(
    ("key", "make", "run"),
    [
        ("typed", "dict", "eager"),
        ("typed", "array", "jit"),
        ("uint32", "array", "eager"),
        ("uint32", "dict", "jit"),
        ("numpy", "dict", "eager"),
        ("numpy", "array", "jit"),
    ],
)


def assert_noise(f, x1, x2, key2, *, run, rng_name="rng", key):
    """The noise of ``x1`` is drawn from ``key``, and that of ``x2`` from ``key2``."""
    kernel = RUN[run](nngp.empirical_nngp_fn(f))(x1, x2, 0.5, **{rng_name: key})
    y1 = NOISY(0.5, x1, key["dropout"] if rng_name == "rngs" else key)
    y2 = NOISY(0.5, x1 if x2 is None else x2, key2)
    np.testing.assert_allclose(kernel, gram(y1, y2), rtol=1e-4, atol=1e-5)


@pytest.mark.every(2)
@ways
def test_no_x2_the_same_key(key, make, run):
    key = KEYS[key](3)
    assert_noise(noisy, INPUTS[make](normal(0, 4, 3), normal(1, 4, 3)), None, key, run=run, key=key)


@pytest.mark.every(2)
@ways
def test_equal_x2_the_same_key(key, make, run):
    key = KEYS[key](3)
    x1, x2 = (INPUTS[make](normal(0, 4, 3), normal(1, 4, 3)) for _ in range(2))
    assert_noise(noisy, x1, x2, key, run=run, key=key)
    assert_noise(noisy, x1, x1, key, run=run, key=key)


@pytest.mark.every(2)
@ways
def test_other_x2_a_folded_key(key, make, run):
    key = KEYS[key](3)
    u, v = normal(0, 4, 3), normal(1, 4, 3)
    x1 = INPUTS[make](u, v)
    # one entry of one leaf differs, a shorter batch, a longer one
    changed = u.copy()
    changed[3, 2] += 1
    others = [INPUTS[make](changed, v), INPUTS[make](u[:3], v[:3]), INPUTS[make](normal(2, 6, 3), 1.0)]
    for x2 in others:
        assert_noise(noisy, x1, x2, jax.random.fold_in(key, 1), run=run, key=key)


@eager_and_jit
def test_one_leaf_of_a_dict_decides(run):
    key = jax.random.key(3)
    u, v = normal(0, 4, 3), normal(1, 4, 3)
    x1, x2 = {"u": u, "v": v}, {"u": u, "v": v + 1}
    assert_noise(noisy, x1, x2, jax.random.fold_in(key, 1), run=run, key=key)


@eager_and_jit
def test_other_structure_is_other_examples(run):
    key = jax.random.key(3)
    x = normal(0, 4, 3)
    assert_noise(noisy, {"u": x}, {"v": x}, jax.random.fold_in(key, 1), run=run, key=key)


@eager_and_jit
def test_nan_in_the_same_place_is_the_same_example(run):
    def imputing(params, x, rng):
        return noisy(params, jnp.nan_to_num(x), rng)

    key = jax.random.key(3)
    x = normal(0, 4, 3)
    x[1, 2] = np.nan
    kernel_fn = RUN[run](nngp.empirical_nngp_fn(imputing))
    y, folded = (NOISY(0.5, np.nan_to_num(x), k) for k in (key, jax.random.fold_in(key, 1)))
    np.testing.assert_allclose(kernel_fn(x, x + 0, 0.5, rng=key), gram(y, y), rtol=1e-4, atol=1e-5)
    elsewhere = np.roll(x, 1, axis=1)
    y2 = NOISY(0.5, np.nan_to_num(elsewhere), jax.random.fold_in(key, 1))
    np.testing.assert_allclose(kernel_fn(x, elsewhere, 0.5, rng=key), gram(y, y2), rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(gram(y, y) - gram(y, folded))) > 0.1


@pytest.mark.parametrize(("key", "run"), [("typed", "jit"), ("uint32", "eager")])
def test_rngs_are_folded_each(key, run):
    def f(params, x, rngs):
        return noisy(params, x, rngs["dropout"]) + 0 * jax.random.normal(rngs["noise"])

    key = KEYS[key](3)
    rngs = {"dropout": key, "noise": KEYS["typed"](4)}
    x1, x2 = normal(0, 4, 3), normal(1, 5, 3)
    assert_noise(f, x1, x2, jax.random.fold_in(key, 1), run=run, rng_name="rngs", key=rngs)
    assert_noise(f, x1, x1 + 0, key, run=run, rng_name="rngs", key=rngs)


def test_every_key_of_rngs_is_folded():
    keys = {"dropout": jax.random.key(3), "noise": jax.random.key(4)}
    first, second = received(X2, rngs=keys)
    assert first["rngs"] == keys
    assert second["rngs"] == {name: jax.random.fold_in(key, 1) for name, key in keys.items()}


@pytest.mark.parametrize(
    ("rng", "second"),
    [
        (None, None),
        ((jax.random.key(3), jax.random.key(9)), jax.random.key(9)),
        (nngp.Shared(jax.random.key(3)), jax.random.key(3)),
    ],
    ids=["None", "a pair of keys", "Shared"],
)
def test_what_the_rng_rule_leaves_alone(rng, second):
    assert received(X2, rng=rng)[1]["rng"] == second


def test_the_rng_rule_under_vmap_over_keys():
    keys = jax.random.split(jax.random.key(3), 3)
    x1, x2 = normal(0, 4, 3), normal(1, 5, 3)
    kernel_fn = nngp.empirical_nngp_fn(noisy)
    kernels = jax.vmap(lambda key: kernel_fn(x1, x2, 0.5, rng=key))(keys)
    expected = [gram(noisy(0.5, x1, key), noisy(0.5, x2, jax.random.fold_in(key, 1))) for key in keys]
    np.testing.assert_allclose(kernels, expected, rtol=1e-4, atol=1e-5)
