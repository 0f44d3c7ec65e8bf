"""``nngp.tag``: layers of any function under any transformation, and the identity when nobody looks."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import gram, normal
from helpers.jaxprs import primitives
from helpers.parameters import drawn

import nngp_plugins as nngp

W, X = normal(0, 3, 3), normal(1, 4, 3)
WS = normal(2, 2, 3, 3)
H = np.tanh(X @ W)


def block(x, w):
    return nngp.tag("h", jnp.tanh(x @ w))


@jax.custom_jvp
def with_jvp(x):
    return nngp.tag("h", jnp.tanh(x))


@with_jvp.defjvp
def _jvp(primals, tangents):
    return with_jvp(*primals), 7 * tangents[0]


@jax.custom_vjp
def with_vjp(x):
    return nngp.tag("h", jnp.tanh(x))


with_vjp.defvjp(lambda x: (with_vjp(x), None), lambda _, cotangent: (7 * cotangent,))


@jax.custom_batching.custom_vmap
def with_vmap(x, w):
    return block(x, w)


@with_vmap.def_vmap
def _rule(axis_size, in_batched, x, w):
    return block(x, w), True


policies = jax.checkpoint_policies
TRANSFORMED = {
    "plain": block,
    "jit": jax.jit(block),
    "remat": jax.checkpoint(block),
    "remat that saves all": jax.checkpoint(block, policy=policies.everything_saveable),
    "remat that saves products": jax.checkpoint(block, policy=policies.dots_saveable),
    "remat in remat": jax.checkpoint(jax.jit(jax.checkpoint(block))),
    "vmap": lambda x, w: jax.vmap(block, (0, None))(x, w),
    "vmap of features": lambda x, w: jax.vmap(block, (None, 1), 1)(x, w),
    "jit in vmap": lambda x, w: jax.vmap(jax.jit(block), (0, None))(x, w),
    "custom_jvp": lambda x, w: with_jvp(x @ w),
    "custom_vjp": lambda x, w: with_vjp(x @ w),
    "vmap of custom_vmap": lambda x, w: jax.vmap(with_vmap, (0, None))(x, w),
    "scan": lambda x, w: jax.lax.scan(lambda h, w: (block(h, w), None), x, w[None])[0],
    "scan of remat": lambda x, w: jax.lax.scan(jax.checkpoint(lambda h, w: (block(h, w), None)), x, w[None])[0],
    "linearize": lambda x, w: jax.linearize(lambda x: block(x, w), x)[0],
    "closed over": lambda x, w: jax.vmap(lambda row: block(row, w))(x),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_under(name):
    """Values, kernels and gradients are those of the formula, and the function's own jaxpr holds no tag."""

    def apply(w, x):
        return TRANSFORMED[name](x, w)

    def loss(f, w):
        return jnp.sum(jnp.sin(f(w, X)))

    layer = "h/0" if "scan" in name else "h"
    f = nngp.from_callable(apply)
    assert "nngp_tag" not in primitives(jax.make_jaxpr(f)(W, X))
    kernel_fn = nngp.empirical_nngp_fn(f.layers("h*"), trace_axes=nngp.all_but_batch)

    @jax.jit
    def run(w):
        values, kernels = f.layers()(w, X), kernel_fn(X, None, w)
        grads = [jax.grad(partial(loss, g))(w) for g in (f, lambda w, x: f.layers("output")(w, x)["output"])]
        return values, kernels, grads

    values, kernels, grads = run(W)
    # What the function returns is the layer.
    assert list(values) == [layer]
    np.testing.assert_allclose(values[layer], H, rtol=1e-5)
    np.testing.assert_allclose(kernels[layer], gram(H), rtol=1e-4, atol=1e-6)
    slope = 7 if name in ("custom_jvp", "custom_vjp") else 1 - H**2
    for grad in grads:
        np.testing.assert_allclose(grad, X.T @ (np.cos(H) * slope), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [with_jvp, with_vjp])
def test_the_users_rule_of_differentiation_holds_for_outputs(function):
    """Also where layers are taken at the same time, and the layer itself is differentiated as it is computed."""
    f = nngp.from_callable(lambda w, x: 2 * function(x @ w)).layers()

    @jax.jit
    def gradients(w):
        return [jax.grad(lambda w, name=name: f(w, X)[name].sum())(w) for name in ("output", "h")]

    assert list(f.layer_shapes(W, X)) == ["h", "output"]
    of_output, of_layer = gradients(W)
    np.testing.assert_allclose(of_output, np.broadcast_to(14 * X.sum(0)[:, None], (3, 3)), rtol=1e-5)
    np.testing.assert_allclose(of_layer, X.T @ (1 - H**2), rtol=1e-4, atol=1e-5)


def test_a_function_that_was_compiled_before():
    """What JAX has kept of it holds no tag, is found with tags all the same, and holds none afterwards."""
    traces = []

    @jax.jit
    def step(w, x):
        traces.append(1)
        return nngp.tag("step", x @ w)

    def apply(w, x):
        return jnp.tanh(step(w, x))

    train = jax.jit(jax.value_and_grad(lambda w: apply(w, X).sum()))
    before, jaxpr = train(W), str(jax.make_jaxpr(apply)(W, X))
    f = nngp.from_callable(apply).layers()
    assert list(f(W, X)) == ["step", "output"]
    count = len(traces)
    # Neither the compiled training nor another trace of the function has changed.
    after = train(W)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert str(jax.make_jaxpr(apply)(W, X)) == jaxpr
    assert len(traces) == count
    assert "nngp_tag" not in primitives(jax.make_jaxpr(jax.grad(lambda w: apply(w, X).sum()))(W))
    assert list(f(W, X)) == ["step", "output"]


def test_the_identity_when_nobody_looks():
    tree = {"a": jnp.ones(2), "b": (jnp.zeros(3), None, "text")}
    assert nngp.tag("name", tree) is tree
    jaxpr = jax.make_jaxpr(lambda x: nngp.tag("name", x))(X)
    assert jaxpr.eqns == []
    with_tag, without = (jax.grad(lambda w, f=f: f(X, w).sum()) for f in (block, lambda x, w: jnp.tanh(x @ w)))
    assert str(jax.make_jaxpr(with_tag)(W)) == str(jax.make_jaxpr(without)(W))


def test_trees():
    def apply(w, x):
        tagged = nngp.tag("t", {"a": x @ w, "b": [2 * x, None], "c": "text"})
        one = nngp.tag("one", (3 * x, None))
        assert (tagged["b"][1], tagged["c"], one[1]) == (None, "text", None)
        return tagged["a"] + one[0]

    layers = nngp.from_callable(apply).layers()(W, X)
    assert list(layers) == ["t:a", "t:b:0", "one", "output"]
    np.testing.assert_allclose(layers["output"], layers["t:a"] + layers["one"], rtol=1e-6)


@jax.tree_util.register_pytree_node_class
class Remembers:
    """A PyTree node with more than its leaves, as ``IrrepsArray`` of e3nn-jax remembers which parts are zero."""

    def __init__(self, array, zero=None):
        self.array, self.zero = array, zero

    def tree_flatten(self):
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        return cls(*leaves)


def test_objects_that_hold_more_than_their_leaves():
    def apply(w, x):
        (y,) = nngp.tag("t", (Remembers(x @ w, zero=False),))
        return y.array if y.zero is False else 0 * y.array

    (y,) = nngp.from_callable(apply).layers("t")(W, X).values()
    np.testing.assert_allclose(y, X @ W, rtol=1e-5)
    np.testing.assert_allclose(nngp.from_callable(apply).layers("output")(W, X)["output"], X @ W, rtol=1e-5)


@pytest.mark.parametrize("name", [None, 3, "", b"h"])
def test_a_name_that_is_no_name(name):
    with pytest.raises(TypeError, match=r"^tag\(name=.*, \.\.\.\) takes the name of a layer as a string"):
        nngp.tag(name, X)


class LinenPart(nn.Module):
    @nn.compact
    def __call__(self, x):
        return 2 * nngp.tag("relu", nn.relu(nn.Dense(3, name="d")(x)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return LinenPart(name="part")(x)


class NNXPart(nnx.Module):
    def __init__(self, rngs):
        self.d = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return 2 * nngp.tag("relu", nnx.relu(self.d(x)))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.part = NNXPart(rngs)

    def __call__(self, x):
        return self.part(x)


class HaikuPart(hk.Module):
    def __call__(self, x):
        return 2 * nngp.tag("relu", jax.nn.relu(hk.Linear(3, name="d")(x)))


class EquinoxPart(eqx.Module):
    d: eqx.nn.Linear

    def __call__(self, x):
        return 2 * nngp.tag("relu", jax.nn.relu(self.d(x)))


class EquinoxNet(eqx.Module):
    part: EquinoxPart

    def __init__(self, key):
        self.part = EquinoxPart(eqx.nn.Linear(3, 3, key=key))

    def __call__(self, x):
        return self.part(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nngp.from_linen(LinenNet()),
        lambda: nngp.from_nnx(NNXNet),
        lambda: nngp.from_haiku(hk.transform(lambda x: HaikuPart(name="part")(x))),
        lambda: nngp.from_equinox(EquinoxNet),
    ],
    ids=["linen", "nnx", "haiku", "equinox"],
)
def test_inside_modules(make):
    """The path of the module comes before the name."""
    f = make()
    params = drawn(f, X)
    layers = jax.jit(f.layers())(params, X)
    assert list(layers) == ["part/d", "part/relu", "part"]
    np.testing.assert_array_equal(layers["part/relu"], np.maximum(layers["part/d"], 0))
    assert "nngp_tag" not in primitives(jax.make_jaxpr(f)(params, X))
