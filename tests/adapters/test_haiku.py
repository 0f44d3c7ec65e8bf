"""Haiku: every kind of transformed function, against its own `apply`."""

import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.parameters import drawn

import nngp_plugins as nngp

equal = np.testing.assert_array_equal


def net(x, is_training=False):
    x = hk.Linear(8)(x)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(2, name="head")(x)


TRANSFORMED = hk.transform_with_state(net)


@pytest.fixture(scope="module")
def split(x):
    return jax.jit(lambda: nngp.from_haiku(TRANSFORMED).init(jax.random.key(0), x, is_training=True))()


class TestState:
    def test_init_is_haikus_own(self, split, x):
        jax.tree.map(equal, split, jax.jit(lambda: TRANSFORMED.init(jax.random.key(0), x, is_training=True))())

    def test_init_without_state(self, x):
        transformed = hk.transform(lambda x: hk.Linear(2)(x))
        params, state = nngp.from_haiku(transformed).init(jax.random.key(0), x)
        assert state == {}
        jax.tree.map(equal, params, jax.jit(transformed.init)(jax.random.key(0), x))

    def test_outputs_only(self, split, x):
        params, state = split
        equal(nngp.from_haiku(TRANSFORMED)(params, x, state=state), TRANSFORMED.apply(params, state, None, x)[0])

    @pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
    def test_train_mode(self, split, x, make_key):
        params, state = split
        own, _ = TRANSFORMED.apply(params, state, make_key(1), x, is_training=True)
        f = nngp.from_haiku(TRANSFORMED, is_training=True)
        equal(f(params, x, state=state, rng=make_key(1)), own)
        equal(f.layers("head")(params, x, state=state, rng=make_key(1))["head"], own)
        assert not np.array_equal(f(params, x, state=state, rng=make_key(2)), own)

    def test_kwargs_at_the_call_win(self, split, x):
        params, state = split
        f = nngp.from_haiku(TRANSFORMED, is_training=True)
        equal(f(params, x, state=state, is_training=False), TRANSFORMED.apply(params, state, None, x)[0])

    def test_missing_state(self, split, x):
        told = r"state=None, but this Haiku function has a state; pass it: params, state = f.init"
        with pytest.raises(ValueError, match=told):
            nngp.from_haiku(TRANSFORMED)(split[0], x)

    def test_missing_rng(self, split, x):
        told = r"rng=None, but this Haiku function draws random numbers; pass rng=jax\.random\.key\(0\), or call it in"
        with pytest.raises(ValueError, match=told):
            nngp.from_haiku(TRANSFORMED, is_training=True)(split[0], x, state=split[1])

    def test_other_errors_pass(self, split, x):
        with pytest.raises(ValueError, match=r"param.*not match|shape"):
            nngp.from_haiku(TRANSFORMED)(split[0], x[:, :2], state=split[1])


class TestWithoutApplyRng:
    def test_with_state(self, split, x):
        params, state = split
        f = nngp.from_haiku(hk.without_apply_rng(TRANSFORMED))
        equal(f(params, x, state=state), TRANSFORMED.apply(params, state, None, x)[0])

    def test_without_state(self, x):
        transformed = hk.transform(lambda x: hk.Linear(2)(x))
        params = drawn(nngp.from_haiku(transformed), x)
        f = nngp.from_haiku(hk.without_apply_rng(transformed))
        equal(f(params, x), transformed.apply(params, None, x))
        told = r"rng was given, but hk\.without_apply_rng removed this argument; pass from_haiku the transf.* without"
        with pytest.raises(ValueError, match=told):
            f(params, x, rng=jax.random.key(0))


def build():
    first, head = hk.Linear(3, name="first"), hk.Linear(2, name="head")

    def both(x):
        return head(jax.nn.relu(first(x)))

    return both, {"encode": lambda x: first(x), "both": both}


class TestMultiTransform:
    @pytest.mark.parametrize("method", ["encode", "both"])
    @pytest.mark.parametrize("wrap", [lambda t: t, hk.without_apply_rng], ids=["rng", "without_apply_rng"])
    def test_method(self, method, wrap, x):
        transformed = hk.multi_transform(build)
        f = nngp.from_haiku(wrap(transformed), method=method)
        assert jax.eval_shape(f.init, jax.random.key(0), x)[1] == {}
        params = drawn(f, x)
        equal(f(params, x), transformed.apply[method](params, None, x))

    @pytest.mark.parametrize("wrap", [lambda t: t, hk.without_apply_rng], ids=["rng", "without_apply_rng"])
    def test_method_with_state(self, wrap, x):
        def counting():
            def run(x):
                return x * hk.get_state("factor", (), init=jnp.ones)

            return run, {"run": run}

        f = nngp.from_haiku(wrap(hk.multi_transform_with_state(counting)), method="run")
        params, state = jax.eval_shape(f.init, jax.random.key(0), x)
        equal(f(params, x, state=jax.tree.map(lambda s: np.full(s.shape, 3, s.dtype), state)), 3 * x)

    @pytest.mark.parametrize("method", [None, "decode"])
    def test_unknown_method(self, method):
        told = rf"method={method!r} names none of this multi-transform's functions, which are '.*'both'|'encode'"
        with pytest.raises(ValueError, match=told):
            nngp.from_haiku(hk.multi_transform(build), method=method)

    def test_functions_without_names(self):
        def pair():
            linear = hk.Linear(2)
            return linear, (linear, linear)

        with pytest.raises(ValueError, match="which are not named: return a dict"):
            nngp.from_haiku(hk.multi_transform(pair), method="encode")

    def test_method_of_a_single_function(self):
        with pytest.raises(ValueError, match="method='encode' chooses a function of a multi-transform, and this is a"):
            nngp.from_haiku(TRANSFORMED, method="encode")


class TestCallForms:
    @pytest.mark.parametrize(
        ("spread", "pack"), [("args", lambda u, v: (u, v)), ("kwargs", lambda u, v: {"v": v, "u": u})]
    )
    def test_spread(self, spread, pack, x):
        transformed = hk.transform(lambda u, v: hk.Linear(2, name="left")(u) + hk.Linear(2, name="right")(v))
        f = nngp.from_haiku(transformed, spread=spread)
        params = drawn(f, pack(x, x))
        equal(f(params, pack(x, 2 * x)), transformed.apply(params, None, x, 2 * x))

    def test_rnn(self, x):
        def model(x):
            core = hk.VanillaRNN(4)
            outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
            return hk.Linear(2, name="head")(outputs[:, -1])

        transformed = hk.transform(model)
        sequences = np.stack([x, 2 * x, 3 * x], axis=1)
        f = nngp.from_haiku(transformed)
        params = drawn(f, sequences)
        kernel_fn = nngp.empirical_nngp_fn(f.layers(), trace_axes=nngp.all_but_batch)

        @jax.jit
        def run(params, x):
            return f(params, x), transformed.apply(params, None, x), f.layers()(params, x), kernel_fn(x, None, params)

        y, own, layers, kernels = run(params, sequences)
        equal(y, own)
        # what runs inside the scan has no value outside; all that is given must be one
        np.testing.assert_allclose(layers["head"], y, rtol=1e-5)
        assert list(kernels) == list(layers)
        assert all(np.isfinite(kernel).all() for kernel in kernels.values())

    @pytest.mark.parametrize(
        ("inner", "inner_names"),
        [
            (lambda x: hk.remat(hk.Linear(3, name="inner"))(x), ["inner"]),
            (
                lambda x: hk.experimental.layer_stack(2)(lambda x: hk.Linear(3, name="inner")(x))(x),
                ["layer_stack/0/inner", "layer_stack/1/inner"],
            ),
        ],
        ids=["remat", "layer_stack"],
    )
    def test_layers_around_a_transformation(self, inner, inner_names, x):
        transformed = hk.transform(lambda x: hk.Linear(2, name="head")(inner(x)))
        f = nngp.from_haiku(transformed)
        params = drawn(f, x)
        layers, own = jax.jit(lambda params, x: (f.layers()(params, x), transformed.apply(params, None, x)))(params, x)
        assert list(layers) == [*inner_names, "head"]
        np.testing.assert_allclose(layers["head"], own, rtol=1e-5)

    def test_attention(self, x):
        initial = hk.initializers.VarianceScaling()
        transformed = hk.transform(lambda x: hk.MultiHeadAttention(2, 4, w_init=initial)(x, x, x))
        sequences = np.stack([x, 2 * x, 3 * x], axis=1)
        f = nngp.from_haiku(transformed)
        params, f = drawn(f, sequences), f.layers("*/query", "*/linear")
        layers, own = jax.jit(lambda params, x: (f(params, x), transformed.apply(params, None, x)))(params, sequences)
        assert list(layers) == ["multi_head_attention/query", "multi_head_attention/linear"]
        equal(layers["multi_head_attention/linear"], own)


@pytest.mark.every(4)
@pytest.mark.parametrize(("depth", "blocks"), [(34, 16), (50, 16), (200, 66)])
def test_layers_of_deep_resnets(depth, blocks):
    """Too deep to run in a test, and none too deep to trace; the table of models has the shallow ones."""
    net = hk.transform_with_state(lambda x, is_training: getattr(hk.nets, f"ResNet{depth}")(10)(x, is_training))
    f, x = nngp.from_haiku(net, is_training=False), jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    params, state = jax.eval_shape(lambda x: f.init(jax.random.key(0), x, is_training=True), x)
    shapes = f.layer_shapes(params, x, state=state)
    assert {name for name in params if "conv" in name} <= {*shapes}
    assert sum(re.fullmatch(r".*/block_group_\d/~/block_\d+", name) is not None for name in shapes) == blocks
    assert list(shapes)[-1].endswith(f"res_net{depth}/~/logits")
    assert list(shapes.values())[-1].shape == (4, 10)
