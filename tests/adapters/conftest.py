"""One small network in every framework: what is registered here inherits the tests that take `case`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import jax_normal
from helpers.parameters import drawn, drawn_nnx

import nngp_plugins as nngp


@dataclass(frozen=True)
class Case:
    """A network whose layers run in the order z, m, a: the reverse of the alphabet."""

    make: Callable[..., nngp.ModelFn]  # the ModelFn, with keyword arguments for the adapter
    own: Callable[..., jax.Array]  # the framework's own call, own(params, x, **kwargs)
    params: Any
    weights: Callable[[Any], dict[str, tuple[jax.Array, jax.Array]]]  # kernel and bias of each layer

    def by_hand(self, params, x):
        """Every layer's output, from the formula."""
        outputs = {}
        for name, (kernel, bias) in self.weights(params).items():
            outputs[name] = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + bias
            x = np.maximum(outputs[name], 0)
        return outputs


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, shift=None):
        x = nn.relu(nn.Dense(6, name="z")(x))
        x = nn.relu(nn.Dense(5, name="m")(x))
        x = nn.Dense(2, name="a")(x)
        return x if shift is None else x + shift


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.z = nnx.Linear(3, 6, rngs=rngs)
        self.m = nnx.Linear(6, 5, rngs=rngs)
        self.a = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x, shift=None):
        x = self.a(nnx.relu(self.m(nnx.relu(self.z(x)))))
        return x if shift is None else x + shift


def haiku_net(x, shift=None):
    x = jax.nn.relu(hk.Linear(6, name="z")(x))
    x = jax.nn.relu(hk.Linear(5, name="m")(x))
    x = hk.Linear(2, name="a")(x)
    return x if shift is None else x + shift


def _linen() -> Case:
    module = LinenNet()
    return Case(
        make=lambda **kwargs: nngp.from_linen(module, **kwargs),
        own=lambda params, x, **kwargs: module.apply({"params": params}, x, **kwargs),
        params=drawn(nngp.from_linen(module), np.ones((1, 3))),
        weights=lambda params: {name: (params[name]["kernel"], params[name]["bias"]) for name in "zma"},
    )


def _nnx() -> Case:
    model = drawn_nnx(lambda: NNXNet(nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    return Case(
        make=lambda **kwargs: nngp.from_nnx(model, **kwargs),
        own=lambda params, x, **kwargs: nnx.merge(graphdef, params)(x, **kwargs),
        params=params,
        weights=lambda params: {n: (params[n]["kernel"][...], params[n]["bias"][...]) for n in "zma"},
    )


def _haiku() -> Case:
    transformed = hk.transform(haiku_net)
    return Case(
        make=lambda **kwargs: nngp.from_haiku(transformed, **kwargs),
        own=lambda params, x, **kwargs: transformed.apply(params, None, x, **kwargs),
        params=drawn(nngp.from_haiku(transformed), np.ones((1, 3))),
        weights=lambda params: {name: (params[name]["w"], params[name]["b"]) for name in "zma"},
    )


@pytest.fixture(scope="session", params=[_linen, _nnx, _haiku], ids=["linen", "nnx", "haiku"])
def case(request) -> Case:
    return request.param()


@pytest.fixture(scope="session")
def x() -> jax.Array:
    return jax_normal(7, 4, 3)
