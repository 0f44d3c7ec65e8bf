"""The same weights give the same kernels in every framework."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nngp_plugins as nngp
from zoo.registry import get_dataset, get_model

LAYERS = {"mlp": ["dense_0", "dense_1", "head"], "cnn": ["conv_0", "conv_1", "dense", "head"]}


@pytest.fixture(scope="module")
def digits():
    return get_dataset("digits")


def to_nnx(linen_params, nnx_params):
    state = jax.tree.map(jnp.copy, nnx_params)
    nnx.replace_by_pure_dict(state, linen_params)
    return state


def to_haiku(linen_params):
    return {name: {"w": layer["kernel"], "b": layer["bias"]} for name, layer in linen_params.items()}


def assert_close(kernel, expected, what):
    error = np.linalg.norm(kernel - expected) / np.linalg.norm(expected)
    assert error < 1e-5, f"{what}: {error:.1e}"


@pytest.fixture(scope="module", params=["mlp", "cnn"])
def network(request, digits):
    """The name, the probe, and (f, params) of the network in each framework."""
    fs = {framework: get_model(f"{framework}/{request.param}", digits) for framework in ("linen", "nnx", "haiku")}
    x, _ = digits.probe(30)
    linen, _ = fs["linen"].init(jax.random.key(0), x[:1])
    # fresh biases are zero, which would hide a bias that was dropped
    noise = np.random.default_rng(0)
    linen = jax.tree.map(lambda w: w + 0.1 * noise.normal(size=w.shape).astype(w.dtype), linen)
    params = {
        "linen": linen,
        "nnx": to_nnx(linen, fs["nnx"].init(jax.random.key(1), x[:1])[0]),
        "haiku": to_haiku(linen),
    }
    return request.param, x, {framework: (fs[framework], params[framework]) for framework in fs}


def test_output_kernel(network):
    _, x, models = network
    kernels = {name: nngp.empirical_nngp_fn(f)(x, None, params) for name, (f, params) in models.items()}
    for framework in ("nnx", "haiku"):
        assert_close(kernels[framework], kernels["linen"], framework)


def test_layer_kernels(network):
    name, x, models = network
    kernels = {
        framework: nngp.empirical_nngp_fn(f.layers(), trace_axes=nngp.all_but_batch)(x, None, params)
        for framework, (f, params) in models.items()
    }
    for framework, (f, params) in models.items():
        assert list(kernels[framework]) == LAYERS[name]
        # `head` is the output of these networks
        assert_close(kernels[framework]["head"], nngp.empirical_nngp_fn(f)(x, None, params), framework)
        for layer in LAYERS[name]:
            assert_close(kernels[framework][layer], kernels["linen"][layer], f"{framework} {layer}")
