"""The conformance table: a model registered in this folder inherits every test of ``test_conformance.py``."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers.parameters import random_numbers

import nngp_plugins as nngp


@dataclass(frozen=True)
class Model:
    """A model as its owner has it.

    Attributes:
        f: its ModelFn.
        params: what optax trains.
        x: inputs, four examples.
        kwargs: of a call: state, rng, flags.
        live: the object that ``f`` was made from, if that holds its parameters.
        mixes: whether the outputs of an example depend on the others in the batch, or on its place there.
        doubles: whether it computes in float64 where that is switched on.
        smooth: whether its gradients are those that small differences show.
        note: what docs/models.md says of it.
    """

    f: nngp.ModelFn
    params: Any
    x: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    live: Any = None
    mixes: bool = False
    doubles: bool = True
    smooth: bool = True
    note: str = ""


MODELS: dict[str, Callable[[], Model]] = {}
# "all" for those that take long to compile too, "packages" for those of packages that the tests do not install
WHICH = os.environ.get("NNGP_MODELS")
PACKAGES = [f"packages.{domain}" for domain in ("images", "language", "graphs", "science")]
FRAMEWORKS = ["linen", "nnx", "haiku", "equinox", "keras", "functions", "scans"]

LARGE = {
    *(f"{framework}/transformer with dropout" for framework in ("linen", "nnx", "haiku", "equinox", "keras")),
    *(f"{framework}/convolutions" for framework in ("linen", "nnx", "haiku")),
    *(f"haiku/{name}" for name in ("nets.ResNet18", "nets.ResNet", "nets.MobileNetV1")),
    *("nnx/scanned transformer", "nnx/lax.scan over split modules", "haiku/scanned transformer"),
    "equinox/scanned transformer",
    *("haiku/deep_rnn_with_skip_connections", "haiku/convolutional LSTM", "nnx/recurrent", "keras/recurrent"),
}


def register(name: str, make: Callable[[], Model]) -> None:
    assert name not in MODELS
    if WHICH or name not in LARGE:
        MODELS[name] = make


def load() -> None:
    for file in PACKAGES if WHICH == "packages" else FRAMEWORKS:
        import_module(f"{__package__}.{file}")


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def vectors() -> jax.Array:
    return normal(4, 3)


def images() -> jax.Array:
    return normal(4, 8, 8, 3)


def sequences() -> jax.Array:
    return normal(4, 5, 3)


def tokens() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 5)), jnp.int32)


def initialised(
    f: nngp.ModelFn, x: Any, init: dict[str, Any], call: dict[str, Any], own: bool = False, **flags: bool
) -> Model:
    """With parameters that NumPy draws or, where the model decides them, its own."""
    make = partial(f.init, jax.random.key(0), x, **init)
    params, state = jax.jit(make)() if own else jax.eval_shape(make)
    if not own:
        params = jax.tree.map(lambda leaf: leaf / 2, random_numbers(params))
        state = jax.jit(lambda: make()[1])() if jax.tree.leaves(state) else state
    kwargs = {"state": state, **call} if jax.tree.leaves(state) else call
    return Model(f, params, x, kwargs, **flags)
