"""What holds for every model: one that is registered in ``models/`` inherits all of this."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nngp_plugins as nngp

from .models import page
from .models.table import MODELS, WHICH, load

load()
# `make packages` runs all tests of a model in one process, because they share what is compiled for it.
every_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in MODELS]
)


def on_some(nth):
    """The first model of each framework, and each nth other one in the sweep; all where ``NNGP_MODELS`` asks for them.

    For the tests that take longest, of which most depends on the framework rather than on the model.
    """
    params = []
    for i, name in enumerate(MODELS):
        first = next(other for other in MODELS if other.split("/")[0] == name.split("/")[0])
        mark = pytest.mark.once if name == first or page.SECTION == "packages" else pytest.mark.exhaustive
        if name == first or WHICH or i % nth == 0:
            params.append(pytest.param(name, marks=[pytest.mark.xdist_group(name), mark]))
    return pytest.mark.parametrize("name", params)


WRITE = f"NNGP_MODELS={page.SECTION} PYTHONPATH=tests/adapters:. python -m models.page writes it"


@cache
def built(name):
    return MODELS[name]()


@cache
def outputs_of(name):
    """What the model returns, its layers and their kernels, of one compiled function."""
    model = built(name)
    f, layers = (partial(f, **model.kwargs) for f in (model.f, model.f.layers()))
    kernel_fn = nngp.empirical_nngp_fn(model.f.layers(), trace_axes=nngp.all_but_batch)

    @jax.jit
    def run(params, x):
        return f(params, x), layers(params, x), kernel_fn(x, None, params, **model.kwargs)

    return run(model.params, model.x)


def flags_of(model):
    """The keyword arguments that are no arrays, and those that are."""
    flags = {name: value for name, value in model.kwargs.items() if isinstance(value, bool | str)}
    return flags, {name: value for name, value in model.kwargs.items() if name not in flags}


def assert_close(actual, expected, single=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    tolerance = 0.03 if any(leaf.dtype == jnp.bfloat16 for leaf in leaves[1]) else single
    for a, b in zip(*leaves, strict=True):
        assert a.shape == b.shape
        a, b = (np.asarray(c, np.complex128 if np.iscomplexobj(c) else np.float64) for c in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))


def numbers(leaf):
    return np.array(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def held_by(model):
    """All numbers of a model and of its call, to see whether they stay as they are."""
    live = None if model.live is None else model.f.split(model.live)
    return jax.tree.map(numbers, [model.params, model.x, flags_of(model)[1], live])


@on_some(1)
def test_nothing_leaks_or_changes(name):
    model = built(name)
    before = held_by(model)
    with jax.checking_leaks():
        jax.eval_shape(lambda params, x: model.f.layers()(params, x, **model.kwargs), model.params, model.x)
    jax.tree.map(np.testing.assert_array_equal, held_by(model), before)


@on_some(3)
def test_without_jit_it_is_the_same_and_nothing_changes(name):
    model, (_, layers, _) = built(name), outputs_of(name)
    before = held_by(model)
    eager = model.f.layers()(model.params, model.x, **model.kwargs)
    assert_close({layer: eager[layer] for layer in layers}, dict(layers), 1e-4)
    jax.tree.map(np.testing.assert_array_equal, held_by(model), before)


@pytest.mark.every(3)
@every_model
def test_layers(name):
    model, (y, layers, kernels) = built(name), outputs_of(name)
    summary = model.f.summary(model.params, model.x, **model.kwargs)
    assert [(layer, s.shape, s.dtype) for layer, s in summary.shapes.items()] == [
        (layer, a.shape, a.dtype) for layer, a in layers.items()
    ]
    rows = next(iter(layers.values())).shape[0]
    assert {a.shape[0] for a in layers.values()} == {rows}
    own = [leaf for leaf in jax.tree.leaves(y) if leaf.shape[:1] == (rows,)]
    assert own
    # A scan that returns layers is another program, which XLA may round in another way.
    like = [np.asarray(a, np.result_type(a.dtype, np.float32)) for a in layers.values()]
    assert all(any(a.shape == b.shape and np.allclose(a, b, 1e-5, 1e-6, True) for a in like) for b in own)
    assert str(summary).count("\n") >= len(layers) + 4
    for layer, a in layers.items():
        a = np.asarray(a, np.complex128 if np.iscomplexobj(a) else np.float64).reshape(rows, -1)
        expected = a @ a.T.conj() / a.shape[1]
        np.testing.assert_allclose(kernels[layer], expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        eigenvalues = np.linalg.eigvalsh(np.asarray(kernels[layer], expected.dtype))
        assert eigenvalues[0] >= -1e-5 * eigenvalues[-1]


@on_some(3)
def test_in_batches_it_is_the_same(name):
    model, (_, _, kernels) = built(name), outputs_of(name)
    if model.mixes:
        return
    kernel_fn = nngp.empirical_nngp_fn(model.f.layers(), trace_axes=nngp.all_but_batch)
    assert_close(nngp.batch(kernel_fn, 3, check=False)(model.x, None, model.params, **model.kwargs), kernels, 1e-4)


@on_some(2)
def test_gradients(name):
    """Of a loss, also of several parameters at once: they agree with differences, and optax takes them."""
    model, (y, _, _) = built(name), outputs_of(name)
    leaves, structure = jax.tree.flatten(model.params)
    floats = [leaf for leaf in leaves if is_float(leaf)]

    def with_floats(floats):
        rest = iter(floats)
        return structure.unflatten([next(rest) if is_float(leaf) else leaf for leaf in leaves])

    def loss(floats):
        y = model.f(with_floats(floats), model.x, **model.kwargs)
        return sum(jnp.sum(jnp.abs(leaf).astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(y) if is_float(leaf))

    @jax.jit
    @jax.vmap
    def run(floats):
        value, gradient = jax.value_and_grad(loss)(floats)
        optimiser = optax.adam(0.1)
        updates, _ = optimiser.update(gradient, optimiser.init(floats), floats)
        return value, gradient, optax.apply_updates(floats, updates)

    floats = [np.asarray(leaf) for leaf in floats]
    values, gradients, trained = run([np.stack([leaf] * 3) for leaf in floats])
    first = sum(np.sum(np.abs(np.asarray(leaf, complex)) ** 2) for leaf in jax.tree.leaves(y) if is_float(leaf))
    np.testing.assert_allclose(values, first, rtol=0.02 if "bfloat16" in name else 1e-4)
    gradient, trained = ([np.asarray(leaf)[0] for leaf in leaves] for leaves in (gradients, trained))
    size = np.sqrt(sum(np.sum(np.abs(g.astype(np.result_type(g, np.float32))) ** 2) for g in gradient))
    assert 0 < size < np.inf
    steps = [(1e-2 * g.conj() / size).astype(g.dtype) for g in gradient]
    moved = zip(floats, steps, trained, strict=True)
    values, _, _ = run([np.stack([leaf + step, leaf - step, other]) for leaf, step, other in moved])
    assert values[2] != first
    if model.smooth and "bfloat16" not in name:
        np.testing.assert_allclose((values[0] - values[1]) / 2e-2, size, rtol=0.05)


@pytest.mark.every(4)
@every_model
def test_float64(name):
    model = built(name)
    if not model.doubles:
        return
    with jax.enable_x64(True):

        def double(tree):
            return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) if is_float(leaf) else leaf, tree)

        flags, arrays = flags_of(model)
        y = jax.eval_shape(partial(model.f, **flags, **double(arrays)), double(model.params), double(model.x))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(y) if is_float(leaf)}
    assert dtypes
    assert dtypes <= {np.dtype(np.float64), np.dtype(np.complex128)}


@pytest.mark.every(4)
@every_model
def test_one_is_traced_once(name):
    model, traces = built(name), []
    flags, arrays = flags_of(model)

    def call(f, params, x, kwargs):
        traces.append(f)
        return f(params, x, **flags, **kwargs)

    call = jax.jit(call, static_argnums=0)
    for f in (model.f, nngp.ModelFn(model.f.adapter), model.f):
        call.eval_shape(f, model.params, model.x, arrays)
    assert len(traces) == 1
    assert model.f.layers("*") == model.f.layers() != model.f


if page.SECTION == "packages":

    @every_model
    def test_docs_have_its_row(name):
        assert page.row(name, built(name)) in page.lines(), WRITE


def test_docs_have_no_others():
    if page.SECTION == "packages":
        rows = [line.split(" | ") for line in page.lines()[len(page.HEAD) :]]
        assert [f"{package.split()[1]}/{what}" for package, _, what, *_ in rows] == list(MODELS), WRITE
    else:
        assert page.lines() == page.frameworks(), WRITE
