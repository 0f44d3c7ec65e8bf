"""Kernels in batches are the kernels themselves, wherever outputs and kernels are kept."""

import itertools
from collections import OrderedDict
from functools import partial

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import assert_close, normal

import nngp_plugins as nngp
from zoo.models.linen.cnn import CNN

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
STORES = {"device": True, "host": False}
# a budget too small for the outputs makes blocks of one tile; None holds all of them
PLACES = [
    {"store_on_device": store, "memory_budget": budget} for store, budget in itertools.product((True, False), (None, 1))
]
both_stores = pytest.mark.parametrize("store_on_device", STORES.values(), ids=STORES)
with_and_without_x2 = pytest.mark.parametrize("other", [False, True], ids=["x2=None", "x2"])


# With tiles of the fastest size every kernel here would be one tile; with these it is many, and the last are ragged.
batch = partial(nngp.batch, tile_size=3)


# sizes


def scaled(params, x):
    return params * x


SIZES = [  # n1, n2, batch_size, store_on_device: examples that fill batches or not, fewer than one, and one
    (17, 9, 5, True),
    (9, None, 5, True),
    (9, 17, 5, False),
    (3, 5, 5, True),
    (4, None, 4, False),
    (8, 4, 4, True),
    (1, None, 4, True),
    (1, 9, 4, False),
    (9, 1, 4, True),
    (7, 3, 1, False),
    (5, None, 1, True),
    (11, 7, 0, True),
    (11, None, 0, False),
    (1, 1, 0, True),
]


@pytest.mark.every(3)
@pytest.mark.parametrize(("n1", "n2", "batch_size", "store_on_device"), SIZES)
def test_any_number_of_examples_with_any_batch_size(n1, n2, batch_size, store_on_device):
    x1, x2 = normal(0, n1, 6), None if n2 is None else normal(1, n2, 6)
    kernel_fn = batch(nngp.empirical_nngp_fn(scaled), batch_size, store_on_device=store_on_device, check=False)
    y1, y2 = (2 * np.asarray(x, np.float64) for x in (x1, x1 if n2 is None else x2))
    assert_close(kernel_fn(x1, x2, 2.0), np.einsum("nc,mc->nm", y1, y2) / 6)


# axes, from the definition

ROWS = {"n": 8, "m": 5}
AXES = {
    "default": ({}, "nhwc,mHWc->nmhHwW"),
    "all but the batch": ({"trace_axes": nngp.all_but_batch}, "nhwc,mhwc->nm"),
    "int": ({"trace_axes": 2}, "nhwc,mHwC->nmhHcC"),
    "negative": ({"trace_axes": (-1, -3)}, "nhwc,mhWc->nmwW"),
    "nothing": ({"trace_axes": ()}, "nhwc,mHWC->nmhHwWcC"),
    "diagonal": ({"diagonal_axes": (1, 2)}, "nhwc,mhwc->nmhw"),
    "diagonal, unsorted": ({"trace_axes": (), "diagonal_axes": (3, 1)}, "nhwc,mhWc->nmhwWc"),
    "functions": ({"trace_axes": lambda y: y.ndim - 1, "diagonal_axes": lambda y: [1]}, "nhwc,mhWc->nmhwW"),
    "batch diagonal": ({"diagonal_axes": 0}, "nhwc,nHWc->nhHwW"),
    "batch diagonal, negative": ({"trace_axes": -2, "diagonal_axes": (-3, -4)}, "nhwc,nhwC->nhcC"),
    "all diagonal": ({"trace_axes": (), "diagonal_axes": (0, 1, 2, 3)}, "nhwc,nhwc->nhwc"),
    "batch traced": ({"trace_axes": 0}, "nhwc,nHWC->hHwWcC"),
    "batch traced, negative": ({"trace_axes": (-4, -1), "diagonal_axes": 1}, "nhwc,nhWc->hwW"),
    "all traced": ({"trace_axes": (0, 1, 2, 3)}, "nhwc,nhwc->"),
}


def from_definition(formula, y1, y2):
    """The kernel by ``np.einsum``; the axes that both outputs have and the result has not are averaged."""
    traced = set(formula.split(",")[0]) & set(formula.split(",")[1]) - set(formula.split("->")[1])
    terms = np.prod([size for letter, size in zip("nhwc", y1.shape, strict=True) if letter in traced])
    return np.einsum(formula, y1, y2) / terms


# float64 shows the least mistake; without x2, tiles have mirror images, which differ by the axes
CHECKED = [(name, "float64", False) for name in AXES] + [(name, "float64", True) for name in list(AXES)[::2]]
CHECKED += [("default", "float32", True), ("diagonal", "float32", False), ("batch traced", "float32", True)]


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("name", "dtype", "other", "place"),
    [(*axes, PLACES[(i + i // 4) % 4]) for i, axes in enumerate(CHECKED)],  # each with the next place
)
def test_all_axes_agree_with_einsum(name, dtype, other, place):
    axes, formula = AXES[name]
    rows2 = ROWS[formula.split(",")[1][0]]
    with jax.enable_x64(dtype == "float64"):
        x1, x2 = normal(0, 8, 2, 3, 4, dtype=dtype), normal(1, rows2, 2, 3, 4, dtype=dtype) if other else None
        y1, y2 = (1.5 * np.asarray(x, np.float64) for x in (x1, x2 if other else x1))
        expected = from_definition(formula, y1, y2)
        kernel = batch(nngp.empirical_nngp_fn(scaled, **axes), 3, check=False, **place)(x1, x2, 1.5)
        assert kernel.dtype == dtype
        assert_close(kernel, expected, TOLERANCE[dtype])


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("diagonal_axes", "other", "place"),
    [(axes, other, PLACES[2 * i + other]) for i, axes in enumerate([(), 0]) for other in (False, True)],
)
def test_all_pairs_of_outputs_agree_with_einsum(diagonal_axes, other, place):
    # the axes of the first output keep their order, each followed by its partner; what the second has more comes last
    formulas = {"a": ("t", "", ""), "b": ("ht", "h", "H"), "c": ("hwt", "hw", "HW")}
    shapes = {"a": (4,), "b": (3, 4), "c": (2, 5, 4)}
    second = "n" if diagonal_axes == 0 else "m"
    x1 = {name: normal(i, 8, *shape) for i, (name, shape) in enumerate(shapes.items())}
    x2 = {name: normal(9 + i, ROWS[second], *shape) for i, (name, shape) in enumerate(shapes.items())}
    x2 = x2 if other else None
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x, diagonal_axes=diagonal_axes, cross_terms=True)
    kernel = batch(kernel_fn, 3, check=False, **place)(x1, x2, None)
    for one, two in itertools.product(shapes, repeat=2):
        (axes1, free1, _), (axes2, _, free2) = formulas[one], formulas[two]
        free = "".join(a + b for a, b in itertools.zip_longest(free1, free2, fillvalue=""))
        result = ("n" if diagonal_axes == 0 else "nm") + free
        formula = f"n{axes1},{second}{axes2.upper().replace('T', 't')}->{result}"
        expected = np.einsum(formula, x1[one], (x2 or x1)[two], dtype=np.float64) / 4
        assert_close(kernel[one][two], expected)


# models


class BatchNormNNX(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm.mean[...] += 0.3

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.hidden(x))))


def vectors(seed, n):
    return normal(seed, n, 4)


def linen_layers():
    f = nngp.from_linen(CNN(2, 1, "relu", 2)).layers()
    params, _ = jax.jit(f.init)(jax.random.key(0), normal(0, 1, 4, 4, 1))
    return f, params, lambda seed, n: normal(seed, n, 4, 4, 1), {}


def linen_unhashable():
    # a module that holds a list has no hash
    f = nngp.from_linen(nn.Sequential([nn.Dense(5), nn.relu]))
    return f, jax.jit(f.init)(jax.random.key(0), vectors(0, 1))[0], vectors, {}


def nnx_state():
    model = BatchNormNNX(nnx.Rngs(0))
    model.eval()
    f = nngp.from_nnx(model)
    params, state = f.split(model)
    return f, params, vectors, {"state": state}


def nnx_live_model():
    model = BatchNormNNX(nnx.Rngs(1))
    model.eval()
    return nngp.from_nnx(model), model, vectors, {}


def haiku_state():
    def net(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(6)(x), is_training)
        return x, hk.Linear(2)(x)

    f = nngp.from_haiku(hk.transform_with_state(net))
    params, state = jax.jit(partial(f.init, is_training=True))(jax.random.key(0), vectors(0, 8))
    return f, params, vectors, {"state": state, "is_training": False}


def tokens():
    def f(params, x):
        return jnp.tanh(params[x]).mean(axis=1)

    return f, normal(0, 20, 6), lambda seed, n: np.random.default_rng(seed).integers(0, 20, (n, 5), np.int32), {}


def dict_inputs():
    def f(params, x):
        return {"b": params * x["u"], "none": None, "a": (x["v"][0][:, None] * x["u"], x["v"][0])}

    return f, 2.0, lambda seed, n: {"u": normal(seed, n, 4), "v": [normal(seed + 1, n), None]}, {}


def ordered_outputs():
    # in forward order, which a plain dict would lose under jit
    return lambda params, x: OrderedDict(z=x, a=2 * x, m=3 * x), None, vectors, {}


def output_dtypes():
    def f(params, x):
        y = 20 * x
        return {t: y.astype(t) for t in ("bfloat16", "float16", "int8", "bool")} | {"complex": x + 1j * y[:, ::-1]}

    return f, None, vectors, {}


MODELS = [linen_layers, linen_unhashable, nnx_state, nnx_live_model, haiku_state, tokens, dict_inputs]


# Half of the models without x2 and in blocks on the host, and the others with x2 and on the device.
@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("model", "n2", "place"),
    [
        (model, *((None, PLACES[3]) if i // 2 % 2 else (5, PLACES[0])))
        for i, model in enumerate([*MODELS, ordered_outputs, output_dtypes])
    ],
)
def test_all_models_agree_with_the_unbatched_kernel(model, n2, place):
    f, params, make, kwargs = model()
    kernel_fn = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch)
    x1, x2 = make(0, 7), None if n2 is None else make(2, n2)
    expected = jax.jit(partial(kernel_fn, x1, x2, **kwargs))(params=params)
    kernel = batch(kernel_fn, 3, **place)(x1, x2, params, **kwargs)
    assert_close(kernel, expected)
    for a, b in zip(jax.tree.leaves(kernel), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
    if isinstance(expected, dict):
        assert list(kernel) == list(expected)


# where the result is


@pytest.mark.parametrize("name", ["default", "batch diagonal", "batch traced"])
@both_stores
def test_kernels_are_jax_arrays_on_the_device_or_numpy_arrays(name, store_on_device):
    kernel_fn = nngp.empirical_nngp_fn(scaled, **AXES[name][0])
    for batch_size, x2 in [(3, None), (0, normal(1, 8, 2, 3, 4))]:
        kernel = batch(kernel_fn, batch_size, store_on_device=store_on_device, check=False)(
            normal(0, 8, 2, 3, 4), x2, 1.5
        )
        assert isinstance(kernel, jax.Array if store_on_device else np.ndarray)


# outputs of two shapes


@pytest.mark.parametrize(
    ("axes", "shape1", "shape2", "formula", "terms", "place"),
    [
        ({}, (2, 4), (5, 4), "nhc,mHc->nmhH", 4, PLACES[0]),
        ({"diagonal_axes": 1}, (4, 2, 3), (4, 6, 3), "nhwc,mhWc->nmhwW", 3, PLACES[1]),
        ({"trace_axes": 1}, (4, 5), (4,), "ncd,mc->nmd", 4, PLACES[2]),
        ({"trace_axes": 1}, (4,), (4, 5), "nc,mcd->nmd", 4, PLACES[3]),
    ],
    ids=["widths", "widths of images", "one has more axes", "the other has more axes"],
)
def test_untraced_axes_may_differ_between_x1_and_x2(axes, shape1, shape2, formula, terms, place):
    x1, x2 = normal(0, 8, *shape1), normal(1, 5, *shape2)
    kernel = batch(nngp.empirical_nngp_fn(scaled, **axes), 3, check=False, **place)(x1, x2, 1.5)
    assert_close(kernel, 1.5**2 * np.einsum(formula, x1, x2, dtype=np.float64) / terms)


# outputs that are already there


@pytest.mark.every(3)
@with_and_without_x2
def test_the_kernel_of_outputs_that_are_already_there(other):
    y1 = {"a": normal(0, 11, 4), "b": normal(1, 11, 2, 4)}
    y2 = {"a": normal(2, 7, 4), "b": normal(3, 7, 2, 4)} if other else None
    kernel_fn = nngp.empirical_nngp_fn(scaled, diagonal_axes=nngp.all_but_batch, trace_axes=())
    expected = jax.tree.map(partial(np.einsum, "n...,m...->nm...", dtype=np.float64), y1, y2 if other else y1)
    for place in PLACES:
        assert_close(batch(kernel_fn, **place).contract(y1, y2), expected)
    nones = {"a": None, "b": None}
    assert_close(batch(kernel_fn).contract(y1, y2 if other else nones), expected)


def test_outputs_of_other_lengths_have_no_kernel_in_batches():
    # the tiles of the first would leave zeros in the kernel of the second
    y = {"a": normal(0, 7, 4), "b": normal(1, 11, 4)}
    with pytest.raises(ValueError, match=r"output 'b'"):
        batch(nngp.empirical_nngp_fn(scaled)).contract(y)
