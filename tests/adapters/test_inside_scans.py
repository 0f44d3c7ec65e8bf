"""A scan over blocks gives the layers that the same blocks give in a loop: values, kernels, Grams and snapshots."""

import jax
import numpy as np
import pytest
from helpers.arrays import gram, normal
from helpers.jaxprs import equations

import nngp_plugins as nngp

from .models.blocks import DEPTH, TWINS, sequences

X = sequences()
N = len(X)


@pytest.fixture(scope="module", params=TWINS)
def twins(request):
    return TWINS[request.param]()


@pytest.fixture(scope="module")
def layers(twins):
    return jax.jit(twins.layers)(twins.params, X)


@pytest.fixture(scope="module")
def own(twins, layers):
    """What the framework itself computes in a loop over the blocks, by the name of the layer in the scan."""
    arrays = jax.jit(twins.own)(X)
    others = twins.layers.summary(twins.params, X).others
    names = {layer: [layer, *others.get(layer, ())] for layer in layers}
    names = {layer: [twins.renamed(other) for other in names[layer]] for layer in names}
    return {layer: next(arrays[other] for other in names[layer] if other in arrays) for layer in layers}


def assert_equal(actual, expected, rtol=1e-5):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.every(3)
def test_names_and_order_are_those_of_the_loop(twins, layers):
    unrolled = twins.unrolled.layers("!*dropout").summary(twins.same, X)
    assert [twins.renamed(layer) for layer in layers] == list(unrolled.shapes)
    summary = twins.layers.summary(twins.params, X)
    renamed = {twins.renamed(a): tuple(map(twins.renamed, b)) for a, b in summary.others.items()}
    assert renamed == unrolled.others
    assert summary.unseen == unrolled.unseen == {}
    # The modules of a block are norm, query, key, value, out, up and down. The stacked parameters of each count once.
    assert summary.modules == 7 + 2
    assert len(layers) == DEPTH * (7 + 1) + 2


@pytest.mark.every(3)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_values_are_the_frameworks_own_in_a_loop(twins, layers, own, transform):
    # Two runs of a compiled function would be the same; the fixture has compiled it already.
    found = layers if transform is jax.jit else twins.layers(twins.params, X)
    assert list(found) == list(own)
    for layer, y in found.items():
        assert y.shape == own[layer].shape
        assert_equal(y, own[layer])
    for i in range(DEPTH):
        blocks = [y for layer, y in found.items() if f"blocks/{i}" in layer]
        assert len({np.asarray(y).tobytes() for y in blocks}) == len(blocks) >= 8


def test_kernels_are_those_of_the_values(twins, own):
    kernel_fn = nngp.empirical_nngp_fn(twins.layers, trace_axes=nngp.all_but_batch)
    kernels = jax.jit(kernel_fn)(X, None, twins.params)
    assert list(kernels) == list(own)
    for layer, kernel in kernels.items():
        assert_equal(kernel, gram(own[layer]))


@pytest.mark.every(3)
def test_kernels_of_some_axes(twins, own):
    """What keeps the axis of the sequence is computed inside the scan as well."""
    f = twins.scanned.layers("*up", "*down")
    kernels = jax.jit(nngp.empirical_nngp_fn(f, trace_axes=-1, diagonal_axes=1))(X, None, twins.params)
    assert [layer for layer in own if layer.endswith(("up", "down"))] == list(kernels)
    for layer, kernel in kernels.items():
        y = np.asarray(own[layer], np.float64)
        assert_equal(kernel, np.einsum("atd,btd->abt", y, y) / y.shape[-1])


@pytest.mark.every(3)
def test_grams_are_those_of_the_values(twins, own):
    grams = nngp.gram(twins.layers, X, twins.params)
    assert list(grams) == list(own)
    centre = np.eye(N) - 1 / N
    for layer, one in grams.items():
        kernel = gram(own[layer])
        dense = one.by_entries() if isinstance(one, nngp.metrics.FeatureGram) else one
        assert_equal(dense.matrix, kernel)
        np.testing.assert_allclose(dense.centered, centre @ kernel @ centre, rtol=0, atol=1e-5 * np.abs(kernel).max())


@pytest.mark.every(3)
def test_a_snapshot_holds_the_kernels_of_the_values(twins, own, tmp_path):
    metrics = {"scale": lambda gram, reference: nngp.metrics.scale(gram)}
    f, options = twins.layers, {"metrics": metrics, "keep_kernels": True, "run": tmp_path / "run"}
    with nngp.KernelTracker(f, X, **options) as tracker:
        tracker(0, twins.params)
    assert tracker.history.layers == list(own)
    for i, (layer, y) in enumerate(own.items()):
        assert_equal(tracker.history.kernel(layer, 0), gram(y))
        assert_equal(tracker.history.metric("scale")[0, i], np.trace(gram(y)) / N)


def test_chosen_layers_are_those_of_all(twins, layers):
    pattern = next(layer for layer in layers if layer.endswith("1/up") or layer.endswith("1/block/up"))
    f = twins.scanned.layers(pattern, "head")
    assert list(f.layer_shapes(twins.params, X)) == [pattern, "head"]
    chosen = f(twins.params, X)
    assert_equal(chosen[pattern], layers[pattern])


def test_what_leaves_the_scan_is_kernels(twins):
    """No array in the program holds a layer of all blocks, and the blocks are still a scan."""
    kernel_fn = nngp.empirical_nngp_fn(twins.scanned.layers("*up"), trace_axes=nngp.all_but_batch)
    jaxpr = jax.make_jaxpr(kernel_fn)(X, None, twins.params)
    (scan,) = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan"]
    assert scan.params["length"] == DEPTH
    # nnx.scan also returns the parameters, of which none has an axis of this size.
    stacked = [v.aval.shape for v in scan.outvars if v.aval.shape[:1] == (DEPTH,) and N in v.aval.shape]
    assert stacked == [(DEPTH, N, N)]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_steps_of_very_different_sizes(size):
    """Signals that grow over time: each step has a product of its own size, and the mean over the steps is right."""
    x, powers = normal(0, 6, 8), size * 10.0 ** np.arange(-6, 7, 3)

    def f(w, x):
        def step(carry, power):
            return carry, nngp.tag("h", jax.nn.relu(x @ w) * power)

        return jax.lax.scan(step, None, powers.astype(np.float32))[1].mean()

    layers, w = nngp.from_callable(f).layers("h"), normal(1, 8, 8)
    y = np.maximum(x.astype(float) @ w, 0)
    expected = sum(power**2 * y @ y.T for power in powers) / 8 / len(powers)

    def assert_expected(gram):
        kernel = np.asarray(nngp.metrics.undivided(np.asarray(gram.matrix), gram.exponent))
        np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    assert_expected(nngp.gram(layers, x, w)["h"])
    with nngp.KernelTracker(layers, x) as tracker:
        tracker(0, w)
    assert tracker.history.layers == ["h"]
    ratio = np.trace(expected) ** 2 / np.sum(expected**2)
    assert tracker.history.metric("participation_ratio")[0, 0] == pytest.approx(ratio, rel=1e-4)
    assert tracker.history.metric("scale")[0, 0] == pytest.approx(np.trace(expected) / 6, rel=1e-4)
