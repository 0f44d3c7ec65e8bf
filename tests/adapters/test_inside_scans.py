"""A scan over blocks gives the layers that the same blocks give in a loop: values, kernels, Grams and snapshots."""

from functools import cache

import jax
import numpy as np
import pytest
from helpers.arrays import gram, normal
from helpers.jaxprs import equations

import nngp_plugins as nngp

from .models.blocks import DEPTH, TWINS, sequences

X = sequences()
N = len(X)
of_every_framework = pytest.mark.parametrize("name", TWINS)
# Grams and snapshots are made of what the kernels are made of; Equinox, too, as its batch is that of a vmap.
of_two = pytest.mark.parametrize("name", ["linen", pytest.param("equinox", marks=pytest.mark.exhaustive)])


@cache
def twins_of(name):
    return TWINS[name]()


def a_layer_inside(twins):
    return "blocks/1/block/up" if "blocks/1/block/up" in twins.layers.layer_shapes(twins.params, X) else "blocks/1/up"


def some_of(name):
    """A few layers inside the scan, and one outside."""
    return twins_of(name).scanned.layers("*up", "*down", "head")


@cache
def computed(name):
    """The layers, those of a pattern, all kernels, and what the framework itself returns in a loop over the blocks."""
    twins = twins_of(name)
    kernel_fn = nngp.empirical_nngp_fn(twins.layers, trace_axes=nngp.all_but_batch)
    chosen = twins.scanned.layers(a_layer_inside(twins), "head")

    @jax.jit
    def run(params, x):
        return twins.layers(params, x), chosen(params, x), kernel_fn(x, None, params), twins.own(x)

    return run(twins.params, X)


@cache
def own_of(name):
    """What the framework itself computes in a loop over the blocks, by the name of the layer in the scan."""
    twins, (layers, _, _, arrays) = twins_of(name), computed(name)
    others = twins.layers.summary(twins.params, X).others
    names = {layer: [layer, *others.get(layer, ())] for layer in layers}
    names = {layer: [twins.renamed(other) for other in names[layer]] for layer in names}
    return {layer: next(arrays[other] for other in names[layer] if other in arrays) for layer in layers}


def assert_equal(actual, expected, rtol=1e-5):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.every(3)
@of_every_framework
def test_names_and_order_are_those_of_the_loop(name):
    twins = twins_of(name)
    unrolled = twins.unrolled.layers("!*dropout").summary(twins.same, X)
    summary = twins.layers.summary(twins.params, X)
    assert [twins.renamed(layer) for layer in summary.shapes] == list(unrolled.shapes)
    renamed = {twins.renamed(a): tuple(map(twins.renamed, b)) for a, b in summary.others.items()}
    assert renamed == unrolled.others
    assert summary.unseen == unrolled.unseen == {}
    # The modules of a block are norm, query, key, value, out, up and down. The stacked parameters of each count once.
    assert summary.modules == 7 + 2
    assert len(summary.shapes) == DEPTH * (7 + 1) + 2


@of_every_framework
def test_values_are_the_frameworks_own_in_a_loop(name):
    layers, own = computed(name)[0], own_of(name)
    assert list(layers) == list(own)
    for layer, y in layers.items():
        assert y.shape == own[layer].shape
        assert_equal(y, own[layer])
    for i in range(DEPTH):
        blocks = [y for layer, y in layers.items() if f"blocks/{i}" in layer]
        assert len({np.asarray(y).tobytes() for y in blocks}) == len(blocks) >= 8


@of_every_framework
def test_kernels_are_those_of_the_values(name):
    kernels, own = computed(name)[2], own_of(name)
    assert list(kernels) == list(own)
    for layer, kernel in kernels.items():
        assert_equal(kernel, gram(own[layer]))


@of_every_framework
def test_chosen_layers_are_those_of_all(name):
    layers, chosen, _, _ = computed(name)
    pattern = a_layer_inside(twins_of(name))
    assert list(chosen) == [pattern, "head"]
    assert_equal(chosen[pattern], layers[pattern])


@of_two
def test_kernels_of_some_axes(name):
    """What keeps the axis of the sequence is computed inside the scan as well."""
    twins, own = twins_of(name), own_of(name)
    f = twins.scanned.layers("*up", "*down")
    kernels = jax.jit(nngp.empirical_nngp_fn(f, trace_axes=-1, diagonal_axes=1))(X, None, twins.params)
    assert [layer for layer in own if layer.endswith(("up", "down"))] == list(kernels)
    for layer, kernel in kernels.items():
        y = np.asarray(own[layer], np.float64)
        assert_equal(kernel, np.einsum("atd,btd->abt", y, y) / y.shape[-1])


@of_two
def test_grams_are_those_of_the_values(name):
    own = own_of(name)
    grams = nngp.gram(some_of(name), X, twins_of(name).params)
    assert list(grams) == [layer for layer in own if layer.endswith(("up", "down", "head"))]
    centre = np.eye(N) - 1 / N
    for layer, one in grams.items():
        kernel = gram(own[layer])
        dense = one.by_entries() if isinstance(one, nngp.metrics.FeatureGram) else one
        assert_equal(dense.matrix, kernel)
        np.testing.assert_allclose(dense.centered, centre @ kernel @ centre, rtol=0, atol=1e-5 * np.abs(kernel).max())


@of_two
def test_a_snapshot_holds_the_kernels_of_the_values(name, tmp_path):
    metrics, own = {"scale": lambda gram, reference: nngp.metrics.scale(gram)}, own_of(name)
    options = {"metrics": metrics, "keep_kernels": True, "run": tmp_path / "run"}
    with nngp.KernelTracker(some_of(name), X, **options) as tracker:
        tracker(0, twins_of(name).params)
    assert tracker.history.layers == [layer for layer in own if layer.endswith(("up", "down", "head"))]
    for i, layer in enumerate(tracker.history.layers):
        kernel = gram(own[layer])
        assert_equal(tracker.history.kernel(layer, 0), kernel)
        assert_equal(tracker.history.metric("scale")[0, i], np.trace(kernel) / N)


@of_every_framework
def test_what_leaves_the_scan_is_kernels(name):
    """No array in the program holds a layer of all blocks, and the blocks are still a scan."""
    twins = twins_of(name)
    kernel_fn = nngp.empirical_nngp_fn(twins.scanned.layers("*up"), trace_axes=nngp.all_but_batch)
    jaxpr = jax.make_jaxpr(kernel_fn)(X, None, twins.params)
    (scan,) = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan"]
    assert scan.params["length"] == DEPTH
    # nnx.scan also returns the parameters, of which none has an axis of this size.
    stacked = [v.aval.shape for v in scan.outvars if v.aval.shape[:1] == (DEPTH,) and N in v.aval.shape]
    assert stacked == [(DEPTH, N, N)]


POWERS = 10.0 ** np.arange(-6, 7, 3)


def growing(w, x):
    def step(carry, power):
        return carry, nngp.tag("h", jax.nn.relu(x @ w) * power)

    return jax.lax.scan(step, None, POWERS.astype(np.float32))[1].mean()


GROWING = nngp.from_callable(growing).layers("h")
OF_GRAMS = {name: nngp.metrics.default_metrics()[name] for name in ("scale", "participation_ratio")}


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_steps_of_very_different_sizes(size):
    """Signals that grow over time: each step has a product of its own size, and the mean over the steps is right."""
    x, w = normal(0, 6, 8), (size * normal(1, 8, 8)).astype(np.float32)
    y = np.maximum(x.astype(float) @ w, 0)
    expected = sum(power**2 * y @ y.T for power in POWERS) / 8 / len(POWERS)
    gram = nngp.gram(GROWING, x, w)["h"]
    kernel = np.asarray(nngp.metrics.undivided(np.asarray(gram.matrix), gram.exponent))
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with nngp.KernelTracker(GROWING, x, metrics=OF_GRAMS) as tracker:
        tracker(0, w)
    assert tracker.history.layers == ["h"]
    ratio = np.trace(expected) ** 2 / np.sum(expected**2)
    assert tracker.history.metric("participation_ratio")[0, 0] == pytest.approx(ratio, rel=1e-4)
    assert tracker.history.metric("scale")[0, 0] == pytest.approx(np.trace(expected) / 6, rel=1e-4)
