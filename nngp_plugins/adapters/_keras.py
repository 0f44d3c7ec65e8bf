"""Keras 3 on its JAX backend."""

from __future__ import annotations

import inspect
import reprlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import jax

from .._require import require
from .._static import Static
from ._layers import Call, Recorder
from ._mismatch import check_params, explaining
from ._model_fn import ModelFn, PyTree, Spread, frozen_kwargs, spread_input
from ._recording import Record, recording, watching

_lock = RLock()


def from_keras(model: Any, *, spread: Spread = None, **call_kwargs: Any) -> ModelFn:
    """A Keras model as ``f(params, x, *, state=None, rng=None, **kwargs)``, by its ``stateless_call``.

    Runs with ``training=False`` unless told otherwise. The live object is left as it is; ``f.split(model)`` reads its
    current values at any time, and the model itself may stand for ``params``.

    Args:
        model: a ``keras.Model`` or layer that is built.
        spread: ``"args"`` calls ``model(*x)``, ``"kwargs"`` calls ``model(**x)``.
        **call_kwargs: passed at every call, such as ``training=True``.

    Returns:
        The :class:`ModelFn`. Its ``params`` are the values of ``model.trainable_variables`` and its ``state`` those of
        ``model.non_trainable_variables``, lists as ``stateless_call`` takes them. The seeds in the state are replaced
        by ``rng``, and need not be passed where they are all of it.

    Raises:
        TypeError: not a Keras layer.
        ValueError: the model is not built, or Keras runs on another backend than JAX.

    Example:
        >>> import os; os.environ["KERAS_BACKEND"] = "jax"
        >>> import keras, jax.numpy as jnp, nngp_plugins as nngp
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(5)])
        >>> f = nngp.from_keras(model)
        >>> nngp.empirical_nngp_fn(f)(jnp.ones((4, 3)), None, model).shape
        (4, 4)
    """
    keras = require("keras", extra="keras")
    if not isinstance(model, keras.Layer):
        raise TypeError(f"from_keras takes a keras.Model or keras.Layer, got {reprlib.repr(model)}.")
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Keras runs on {keras.backend.backend()}; set the environment variable KERAS_BACKEND=jax before keras is "
            "imported."
        )
    if not model.built:
        raise ValueError(f"{model.name!r} is not built; call it once, or model.build(input_shape).")
    return ModelFn(KerasAdapter(Static(model), spread, frozen_kwargs("from_keras", spread, call_kwargs)))


@dataclass(frozen=True)
class KerasAdapter:
    """Calls a Keras model with values in place of its variables; see :func:`from_keras`."""

    static: Static
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """The outputs of the model."""
        model = self.static.value
        kwargs = {**dict(self.kwargs), **kwargs}
        taken = inspect.signature(model.call).parameters.values()
        if any(a.name == "training" or a.kind is inspect.Parameter.VAR_KEYWORD for a in taken):
            kwargs.setdefault("training", False)
        state = self._state(state, rng, kwargs.get("training", False))
        args, inputs = spread_input(x, self.spread)
        names = [f"[{i}] {v.path}" for i, v in enumerate(model.trainable_variables)]
        shapes = tuple(zip(names, (tuple(v.shape) for v in model.trainable_variables), strict=True))
        found = (names[i] if i < len(names) else f"[{i}]" for i in range(len(params)))
        check_params(model.name, shapes, OrderedDict(zip(found, params, strict=True)))
        with explaining(model.name, params, x):
            outputs, _ = model.stateless_call(params, state, *args, **inputs, **kwargs)
        return outputs

    def capture(
        self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]
    ) -> tuple[PyTree, list[Call]]:
        """The outputs of the model and of its layers."""
        record = Recorder()
        with _recorded(self.static.value, record):
            outputs = self.apply(params, state, rng, x, kwargs)
        return outputs, record.calls

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """Keras makes its variables with the model."""
        raise ValueError(
            "Keras draws the parameters of a model as it is built; params, state = f.split(model) gives them, and "
            "keras.utils.set_random_seed(seed) before keras.models.clone_model(model) makes new ones."
        )

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """The current values of a live model."""
        if not isinstance(model, require("keras", extra="keras").Layer):
            return None
        if callable(getattr(model, "jax_state_sync", None)):
            model.jax_state_sync()  # within fit, the variables are behind
        return [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]

    def _state(self, state: PyTree, rng: Any, training: bool) -> PyTree:
        """The state with seeds from ``rng``."""
        variables = self.static.value.non_trainable_variables
        seeds = [i for i, v in enumerate(variables) if v.path.endswith("seed_generator_state")]
        if state is None:
            if missing := [v.path for i, v in enumerate(variables) if i not in seeds]:
                raise ValueError(
                    f"state=None, but this model has variables that are not trained ({', '.join(missing[:3])}); pass "
                    "them: params, state = f.split(model), then f(params, x, state=state)."
                )
            state = [v.value for v in variables]
        if rng is None and training and seeds:
            raise ValueError(
                "rng=None, but this Keras model draws random numbers in training mode; pass rng=jax.random.key(0), or "
                "leave out training=True."
            )
        state = list(state)
        for i in seeds if rng is not None else []:
            state[i] = jax.random.bits(jax.random.fold_in(rng, i), state[i].shape, state[i].dtype)
        return state


@contextmanager
def _recorded(model: Any, record: Record) -> Iterator[None]:
    """For as long as it lasts, the layers of a live model record what they return."""
    with _lock:
        paths, types = {}, {}
        for path, layer in _layers(model, ""):
            if id(layer) not in paths and layer is not model:
                paths[id(layer)], types[layer] = path, type(layer)
        try:
            for layer, kind in types.items():
                object.__setattr__(layer, "__class__", recording(kind))
            with watching(paths, record):
                yield
        finally:
            for layer, kind in types.items():
                object.__setattr__(layer, "__class__", kind)


def _layers(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every layer inside a layer with the names on the way to it."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        inner_path = f"{path}/{inner.name}".lstrip("/")
        yield inner_path, inner
        yield from _layers(inner, inner_path)
