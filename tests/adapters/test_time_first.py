"""``batch_axis=1``: models that take ``(T, N, D)``, in every room that takes a model."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, normal
from helpers.parameters import drawn

import nngp_plugins as nngp

T = N = 6  # as many steps as examples, so that no length tells which is which
X = normal(0, T, N, 4)


def net(x):
    core = hk.VanillaRNN(7)
    y, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
    return hk.Linear(3, name="head")(y)


MODEL = hk.without_apply_rng(hk.transform(net))
PARAMS = drawn(nngp.from_haiku(MODEL), X)
OUTPUTS = np.asarray(jax.jit(MODEL.apply)(PARAMS, X), np.float64).swapaxes(0, 1)
KERNEL = np.einsum("ntd,mtd->nm", OUTPUTS, OUTPUTS) / OUTPUTS[0].size
F = nngp.from_haiku(MODEL, batch_axis=1)


def head(tree):
    return tree["head"] if isinstance(tree, dict) else tree


def test_the_batch_comes_first_in_outputs_and_layers():
    outputs, layers = jax.jit(lambda params, x: (F(params, x), F.layers()(params, x)))(PARAMS, X)
    assert_close(outputs, OUTPUTS)
    assert_close(layers["head"], OUTPUTS)
    assert {name: y.shape[:2] for name, y in layers.items()} == dict.fromkeys(layers, (N, T))
    assert [s.shape for s in F.layer_shapes(PARAMS, X).values()] == [y.shape for y in layers.values()]


def test_without_it_time_is_taken_for_the_batch():
    K = jax.jit(nngp.empirical_nngp_fn(nngp.from_haiku(MODEL), trace_axes=nngp.all_but_batch))(X, None, PARAMS)
    assert not np.allclose(K, KERNEL, rtol=0.1)


@pytest.mark.parametrize("f", [F, F.layers("head")], ids=["outputs", "layers"])
class TestEveryRoom:
    def test_kernels(self, f):
        kernel_fn = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch)
        one, two = jax.jit(lambda x: (kernel_fn(x, None, PARAMS), kernel_fn(x, x[:, :4], PARAMS)))(X)
        assert_close(head(one), KERNEL)
        assert_close(head(two), KERNEL[:, :4])
        assert_close(head(nngp.batch(kernel_fn, 4)(X, X[:, :4], PARAMS)), KERNEL[:, :4])

    def test_gram(self, f):
        assert_close(head(nngp.gram(f, X, PARAMS, batch_size=2 if f.patterns else 0)).dense(), KERNEL)

    def test_tracker(self, f):
        batch_size = None if f.patterns else 2
        metrics = {"scale": lambda gram, reference: nngp.metrics.scale(gram)}
        with nngp.KernelTracker(f, X, batch_size=batch_size, metrics=metrics) as tracker:
            tracker(0, PARAMS)
        np.testing.assert_allclose(tracker.history.metric("scale"), [[np.trace(KERNEL) / N]], rtol=1e-5)

    def test_store(self, f, tmp_path):
        kernel_fn = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch)
        nngp.write_kernel(kernel_fn, X, None, PARAMS, tmp_path / "k", batch_size=2, progress=False)
        store = nngp.open_kernel(tmp_path / "k")
        assert_close((store["head"] if f.patterns else store)[:, :], KERNEL)


def test_an_output_without_time_keeps_its_axes():
    """The last state ``(N, D)``, with as many features as examples: only the way of the batch tells its axes."""
    w = normal(1, 4, N)
    f = nngp.from_callable(lambda w, x: {"states": x @ w, "last": (x @ w)[-1]}, batch_axis=1)
    y = f(w, X)
    assert_close(y["last"], X[-1] @ np.asarray(w, np.float64))
    assert_close(y["states"], (X @ np.asarray(w, np.float64)).swapaxes(0, 1))


def test_an_input_without_time_has_the_batch_in_front():
    f = nngp.from_callable(lambda w, x: x["steps"] * x["scale"][:, None], batch_axis=1)
    x = {"steps": X, "scale": normal(1, N)}
    expected = (X * x["scale"][:, None]).swapaxes(0, 1)
    assert_close(f(None, x), expected)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch), 4)
    assert_close(kernel_fn(x, None, jnp.zeros(())), np.einsum("ntd,mtd->nm", expected, expected) / expected[0].size)


@pytest.mark.parametrize("axis", [-1, 1.0, None])
def test_what_is_no_axis(axis):
    with pytest.raises(ValueError, match=r"^batch_axis=.* must be an axis, such as 1 for \(T, N, D\), time first"):
        nngp.from_haiku(MODEL, batch_axis=axis)


def test_a_model_of_one_example():
    with pytest.raises(ValueError, match=r"^batch_axis=1 is the axis of the batch .*; pass batched=True as well"):
        nngp.from_equinox(eqx.nn.Linear(4, 3, key=jax.random.key(0)), batch_axis=1)
