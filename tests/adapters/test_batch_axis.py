"""Which axis is the batch, and which scan runs over layers: told by what depends on what, and never by a length."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import gram, normal
from helpers.parameters import drawn

import nngp_plugins as nngp

N = 3
"""The number of examples, and the length of every other axis here."""

W, X, XS = normal(0, N, N, N), normal(1, N, N), normal(2, N, N, N)


def found(apply, params, x, *patterns):
    """The layers of a function, compiled; their kernels and Grams are checked on the way."""
    f = nngp.from_callable(apply).layers(*patterns)
    kernel_fn = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch)
    layers, kernels = jax.jit(lambda params, x: (f(params, x), kernel_fn(x, None, params)))(params, x)
    shapes = {name: y.shape for name, y in f.layer_shapes(params, x).items()}
    assert shapes == {name: y.shape for name, y in layers.items()}
    for name, y in layers.items():
        np.testing.assert_allclose(kernels[name], gram(y), rtol=1e-4, atol=1e-5)
    return layers


def no_layer(apply, params, x, name):
    """Why an array is no layer."""
    with pytest.raises(ValueError, match=rf"^layers\('{name}'\) matches '{name}', which is no layer: ") as error:
        nngp.from_callable(apply).layers(name).layer_shapes(params, x)
    return str(error.value).partition("no layer: ")[2]


def equal(layers, expected):
    assert list(layers) == list(expected)
    for name, y in expected.items():
        assert layers[name].shape == np.shape(y), name
        np.testing.assert_allclose(layers[name], y, rtol=1e-5, atol=1e-5, err_msg=name)


def stack(params, x, **options):
    return jax.lax.scan(lambda h, w: (nngp.tag("block", jnp.tanh(h @ w)), None), x, params, **options)[0].sum(1)


class TestDepth:
    @pytest.mark.parametrize("unroll", [1, 2, N])
    def test_as_many_layers_as_examples(self, unroll):
        h, expected = X, {}
        for i in range(N):
            expected[f"block/{i}"] = h = np.tanh(h @ W[i])
        equal(found(lambda params, x: stack(params, x, unroll=unroll), W, X), expected | {"output": h.sum(1)})

    def test_reverse(self):
        """The index of a layer is that of its parameters, and the order is that in which the layers run."""
        h, expected = X, {}
        for i in reversed(range(N)):
            expected[f"block/{i}"] = h = np.tanh(h @ W[i])
        equal(found(lambda params, x: stack(params, x, reverse=True), W, X), expected | {"output": h.sum(1)})

    def test_depth_in_depth(self):
        def apply(params, x):
            def stage(h, ws):
                h, _ = jax.lax.scan(lambda h, w: (nngp.tag("stage/block", jnp.tanh(h @ w)), None), h, ws)
                return nngp.tag("stage", 2 * h), None

            return jax.lax.scan(stage, x, params, reverse=True)[0].sum(1)

        params, h, expected = normal(4, 2, N, N, N), X, {}
        for i in (1, 0):
            for j in range(N):
                expected[f"stage/{i}/block/{j}"] = h = np.tanh(h @ params[i, j])
            expected[f"stage/{i}"] = h = 2 * h
        equal(found(apply, params, X), expected | {"output": h.sum(1)})

    def test_what_a_scan_returns_for_each_layer(self):
        """The stacked results of a scan over layers are a layer if they are the output, with the batch first."""

        def apply(params, x):
            return jax.lax.scan(lambda h, w: ((h := jnp.tanh(h @ w)), h), x, params)[1]

        h, expected = X, np.zeros((N, N, N))
        for i, w in enumerate(W):
            expected[:, i] = h = np.tanh(h @ w)
        equal(found(apply, W, X), {"output": expected})


def recurrent(w, xs, **options):
    """Time comes first in ``xs``."""

    def step(h, x):
        h = nngp.tag("cell", jnp.tanh(h @ w + x))
        return h, h

    return jax.lax.scan(step, jnp.zeros(xs.shape[1:]), xs, **options)[1]


def recurrent_by_hand(w, xs):
    """The same; here the batch comes first."""
    h, hs = np.zeros(w.shape[0]), np.zeros((*xs.shape[:2], w.shape[1]))
    for t in range(xs.shape[1]):
        hs[:, t] = h = np.tanh(h @ w + xs[:, t])
    return hs


class TestTime:
    @pytest.mark.parametrize("unroll", [1, 2])
    def test_as_many_steps_as_examples(self, unroll):
        def apply(w, x):
            return recurrent(w, x.swapaxes(0, 1), unroll=unroll)[-1]

        cell = recurrent_by_hand(W[0], XS)
        equal(found(apply, W[0], XS), {"cell": cell, "output": cell[:, -1]})

    def test_reverse(self):
        """Each step stays at its time."""
        cell = recurrent_by_hand(W[0], XS[:, ::-1])[:, ::-1]
        equal(found(lambda w, x: recurrent(w, x.swapaxes(0, 1), reverse=True)[0], W[0], XS, "cell"), {"cell": cell})

    def test_time_in_depth(self):
        """A stack of recurrent layers, which hand all steps to the next."""

        def apply(params, x):
            def layer(h, w):
                return nngp.tag("layer", recurrent(w, h)), None

            return jax.lax.scan(layer, x.swapaxes(0, 1), params)[0][-1]

        h, expected = XS, {}
        for i, w in enumerate(W):
            expected[f"cell/{i}"] = h = recurrent_by_hand(w, h)
        # What a layer returns are the steps of its cell, so both are one layer.
        equal(found(apply, W, XS, "cell*", "layer*"), expected)

    def test_depth_in_time(self):
        """At each step, all layers of a stack."""

        def apply(params, x):
            def step(h, x):
                h, _ = jax.lax.scan(lambda h, w: (nngp.tag("block", jnp.tanh(h @ w + x)), None), h, params)
                return h, None

            return jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[0].sum(1)

        h, blocks = np.zeros((N, N)), np.zeros((N, N, N, N))
        for t in range(N):
            for i, w in enumerate(W):
                blocks[i, :, t] = h = np.tanh(h @ w + XS[:, t])
        expected = {f"block/{i}": blocks[i] for i in range(N)}
        equal(found(apply, W, XS), expected | {"output": h.sum(1)})

    def test_time_in_time(self):
        def apply(w, x):
            def outer(h, frame):  # (N, D)
                hs = recurrent(w, jnp.stack([frame, 2 * frame]))
                return h + hs[-1], None

            return jax.lax.scan(outer, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[0]

        inner = [recurrent_by_hand(W[0], np.stack([XS[:, t], 2 * XS[:, t]], 1)) for t in range(N)]
        equal(found(apply, W[0], XS, "cell"), {"cell": np.stack(inner, 1)})

    def test_the_same_weights_at_each_step_are_time(self):
        """A scan over nothing, and one over steps of noise that no parameter decides."""

        def apply(w, x):
            h, _ = jax.lax.scan(lambda h, _: (nngp.tag("a", jnp.tanh(h @ w)), None), x, None, length=N)
            return jax.lax.scan(lambda h, t: (nngp.tag("b", h * t), None), h, jnp.arange(1.0, N + 1))[0].sum(1)

        a = [X]
        for _ in range(N):
            a.append(np.tanh(a[-1] @ W[0]))
        b = [a[-1], 2 * a[-1], 6 * a[-1]]
        equal(found(apply, W[0], X, "a", "b"), {"a": np.stack(a[1:], 1), "b": np.stack(b, 1)})

    @pytest.mark.parametrize("narrow", [False, True])
    def test_the_gram_is_that_of_all_steps(self, narrow):
        """Steps whose features take less memory than a kernel are stacked; others are added up as kernels."""
        xs, w = (normal(5, 8, 2, 3), normal(6, 3, 3)) if narrow else (XS, W[0])
        cell = recurrent_by_hand(w, xs)
        kernel, n = np.einsum("atd,btd->ab", cell, cell) / cell[0].size, len(xs)
        f = nngp.from_callable(lambda w, x: recurrent(w, x.swapaxes(0, 1))[-1]).layers("cell")
        one = nngp.gram(f, xs, w)["cell"]
        assert isinstance(one, nngp.metrics.FeatureGram) == narrow
        dense, centre = one.by_entries() if narrow else one, np.eye(n) - 1 / n
        np.testing.assert_allclose(dense.matrix, kernel, atol=1e-5)
        np.testing.assert_allclose(dense.centered, centre @ kernel @ centre, atol=1e-5)


class TestOtherAxes:
    def test_positions_do_not_depend_on_the_inputs(self):
        def apply(params, x):
            position = nngp.tag("position", 2 * params)
            return nngp.tag("sum", x + position)

        equal(found(apply, X, XS), {"sum": XS + 2 * X})
        assert no_layer(apply, X, XS, "position") == "it does not depend on the inputs."

    def test_means_over_the_batch(self):
        def apply(w, x):
            nngp.tag("mean", x.mean(0))
            nngp.tag("gram", x.T @ x)
            nngp.tag("loss", x.mean())
            return x @ w

        assert no_layer(apply, W[0], X, "mean") == f"it has no row for each example: its shape is ({N},)."
        assert no_layer(apply, W[0], X, "gram") == f"it has no row for each example: its shape is ({N}, {N})."
        assert no_layer(apply, W[0], X, "loss") == "it is a scalar."
        equal(found(apply, W[0], X), {"output": X @ W[0]})

    def test_vmap(self):
        """Over heads, over features, and over the examples; the mapped axis comes right behind the batch."""

        def apply(params, x):
            heads = jax.vmap(lambda w: nngp.tag("heads", x @ w))(params)
            jax.vmap(lambda column: nngp.tag("columns", 2 * column), in_axes=1)(x)
            jax.vmap(lambda row: nngp.tag("rows", row @ params[0]))(x)
            jax.vmap(lambda y: nngp.tag("last", y), in_axes=2)(jnp.stack([x, 2 * x], 2))
            jax.vmap(jax.vmap(lambda w, row: nngp.tag("both", row @ w), (None, 0)), (0, None))(params, x)
            return heads.sum((0, 2))

        heads = np.einsum("nd,hde->nhe", X, W)
        expected = {"heads": heads, "columns": 2 * X, "rows": X @ W[0], "last": np.stack([X, 2 * X], 1), "both": heads}
        equal(found(apply, W, X), expected | {"output": heads.sum((1, 2))})

    def test_axes_that_move(self):
        """Attention with as many heads, steps and features as examples; time and heads come first on the way."""

        def apply(w, x):
            h = nngp.tag("time first", jnp.einsum("ntd,de->tne", x, w))
            scores = nngp.tag("scores", jnp.einsum("snd,tnd->nst", h, h))
            y = nngp.tag("heads first", jnp.einsum("nst,tnd,hde->hsne", scores, h, W))
            return y.transpose(2, 1, 0, 3).reshape(N, N * N * N)

        h = np.einsum("ntd,de->nte", XS, W[0])
        scores = np.einsum("nsd,ntd->nst", h, h)
        y = np.einsum("nst,ntd,hde->nhse", scores, h, W)
        expected = {"time first": h, "scores": scores, "heads first": y}
        layers = found(apply, W[0], XS)
        np.testing.assert_allclose(layers.pop("output"), y.transpose(0, 2, 1, 3).reshape(N, -1), rtol=1e-4, atol=1e-4)
        equal(layers, expected)

    def test_operations_without_a_rule(self):
        """Where no rule tells the axis, a trace of twice the batch does."""

        def apply(w, x):
            h = nngp.tag("sorted", jnp.sort(x.T, axis=0))
            return nngp.tag("fft", jnp.abs(jnp.fft.fft(h, axis=0)))

        h = np.sort(X, 1)
        equal(found(apply, W[0], X, "sorted", "fft"), {"sorted": h, "fft": np.abs(np.fft.fft(h, axis=1))})

    def test_a_model_of_one_batch_size(self):
        """It does not run on twice the batch, so that the length tells where no rule does, and nowhere else."""

        def apply(w, x):
            x = x.reshape(N, N, N)
            h = nngp.tag("time first", x.swapaxes(0, 1) @ w)
            return h.sum((0, 2)) + nngp.tag("sorted", jnp.sort(x, axis=1)).sum((1, 2))

        h, y = XS @ W[0], np.sort(XS, 1)
        equal(found(apply, W[0], XS), {"time first": h, "sorted": y, "output": h.sum((1, 2)) + y.sum((1, 2))})


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = jnp.tanh(nn.Dense(N, name="dense")(x))
        self.sow("intermediates", "mark", 2 * x)
        return x, None


def test_sown_in_a_scan():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "intermediates": 0}
            scan = nn.scan(Sowing, variable_axes=axes, split_rngs={"params": True}, length=N)
            return scan(name="blocks")(x, None)[0]

    f = nngp.from_linen(Model())
    params = drawn(f, X)

    @jax.jit
    def run(params, x):
        return f.layers()(params, x), Model().apply({"params": params}, x, mutable="intermediates")[1]

    layers, state = run(params, X)
    (marks,) = state["intermediates"]["blocks"]["mark"]
    parts = [f"blocks/{i}{part}" for i in range(N) for part in ("/dense", "/mark", ":0")]
    assert [name.removesuffix(":0") for name in layers] == [name.removesuffix(":0") for name in parts]
    for i in range(N):
        np.testing.assert_allclose(layers[f"blocks/{i}/mark"], marks[i], rtol=1e-5)
