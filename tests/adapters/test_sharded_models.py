"""Layers inside shard_map on four devices, which JAX must be told of before it starts: in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, jax_normal
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nngp_plugins as nngp

P = PartitionSpec
X, WIDE, BLOCKS = jax_normal(0, 8, 6), jax_normal(1, 6, 12), jax_normal(2, 3, 6, 6)
STEPS = jax_normal(3, 8, 5, 6)


def test_on_four_devices():
    command = [sys.executable, "-m", "pytest", "-o", "python_functions=on_four_*", Path(__file__)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    # A plugin that the tests do not ask for may warn, and warnings are errors.
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def tensor_parallel(check_vma):
    """A model with its batch and one layer's features on a mesh, and a scan over blocks inside."""

    def body(x, wide, blocks):
        hidden = nngp.tag("hidden", jnp.tanh(x @ wide))
        x = nngp.tag("summed", jax.lax.psum(hidden @ wide.T, "model"))
        return jax.lax.scan(lambda x, w: (nngp.tag("block", jnp.tanh(x @ w)), None), x, blocks)[0]

    def apply(params, x):
        specs = {"in_specs": (P("data"), P(None, "model"), P()), "out_specs": P("data")}
        return jax.shard_map(body, mesh=mesh(data=2, model=2), check_vma=check_vma, **specs)(x, *params).sum(1)

    return nngp.from_callable(apply)


def by_hand():
    hidden = np.tanh(np.asarray(X, np.float64) @ WIDE)
    layers = {"hidden": hidden, "summed": hidden @ np.asarray(WIDE, np.float64).T}
    y = layers["summed"]
    for i, w in enumerate(np.asarray(BLOCKS, np.float64)):
        y = layers[f"block/{i}"] = np.tanh(y @ w)
    return {**layers, "output": y.sum(1)}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def on_four_layers_have_all_examples_and_features(transform):
    layers = transform(tensor_parallel(True).layers())((WIDE, BLOCKS), X)
    expected = by_hand()
    assert list(layers) == list(expected)
    for name, y in expected.items():
        assert layers[name].shape == y.shape
        assert_close(layers[name], y, 2e-5)
    # Each layer lies where the model put it.
    assert layers["hidden"].sharding.spec == P("data", "model")
    assert layers["block/2"].sharding.spec[0] == "data"


def on_four_shapes_are_those_of_the_call():
    shapes = tensor_parallel(True).layer_shapes((WIDE, BLOCKS), X)
    assert {name: s.shape for name, s in shapes.items()} == {name: y.shape for name, y in by_hand().items()}


def on_four_kernels():
    kernel_fn = nngp.empirical_nngp_fn(tensor_parallel(True).layers(), trace_axes=nngp.all_but_batch)
    kernels = jax.jit(lambda params, x: kernel_fn(x, None, params))((WIDE, BLOCKS), X)
    for name, y in by_hand().items():
        assert_close(kernels[name], gram(y.reshape(8, -1)), 2e-5)


def on_four_a_scan_over_time():
    def body(x):
        def step(h, x):
            h = nngp.tag("cell", jnp.tanh(h + x))
            return h, h

        return jax.lax.scan(step, 0 * x[:, 0], x.swapaxes(0, 1))[0]

    def apply(params, x):
        return jax.shard_map(body, mesh=mesh(data=4), in_specs=P("data"), out_specs=P("data"))(x)

    layers = jax.jit(nngp.from_callable(apply).layers("cell"))(None, STEPS)
    h, states = np.zeros((8, 6)), []
    for t in range(5):
        h = np.tanh(h + np.asarray(STEPS[:, t], np.float64))
        states.append(h)
    assert_close(layers["cell"], np.stack(states, 1))


def on_four_what_a_mesh_does_not_tell_is_said():
    summary = tensor_parallel(False).summary((WIDE, BLOCKS), X)
    reason = "it is called inside shard_map with check_vma=False, or pmap"
    assert list(summary.shapes) == ["output"]
    assert summary.unseen == dict.fromkeys(["hidden", "summed", "block"], reason)


def on_four_a_mesh_of_the_batch_alone_tells_enough():
    def apply(params, x):
        specs = {"mesh": mesh(data=4), "in_specs": P("data"), "out_specs": P("data"), "check_vma": False}
        return 2 * jax.shard_map(lambda x: nngp.tag("inside", x + 1), **specs)(x)

    layers = nngp.from_callable(apply).layers()(None, X)
    assert list(layers) == ["inside", "output"]
    assert_close(layers["inside"], np.asarray(X) + 1)


def on_four_pmap_is_said():
    def apply(params, x):
        return jax.pmap(lambda x: nngp.tag("inside", 2 * x))(x.reshape(4, 2, 6)).reshape(8, 6)

    assert list(nngp.from_callable(apply).summary(None, X).unseen) == ["inside"]


def on_four_a_jit_keeps_its_shardings():
    sharding = NamedSharding(mesh(data=4), P("data"))
    inner = jax.jit(lambda x: nngp.tag("inside", 2 * x), in_shardings=sharding, out_shardings=sharding)
    layers = jax.jit(nngp.from_callable(lambda params, x: inner(x) + 1).layers())(None, X)
    assert layers["inside"].sharding.is_equivalent_to(sharding, 2)
    assert_close(layers["inside"], 2 * np.asarray(X))
