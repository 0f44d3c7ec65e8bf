"""The adapter of Keras 3 on its JAX backend."""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._require import require
from .._static import Static
from .._typing import PyTree
from ._arguments import Spread, accepts_argument, frozen_kwargs, spread_input
from ._explain_errors import check_params, explain_errors
from ._intercept import Capture, Method, methods_of, tagging
from ._model_fn import ModelFn


def from_keras(model: Any, *, spread: Spread = None, batch_axis: int = 0, **call_kwargs: Any) -> ModelFn:
    """A Keras model as ``f(params, x, *, state=None, rng=None, **kwargs)``, through its ``stateless_call``.

    The model runs with ``training=False`` unless ``training=True`` is passed. The live object does not change.
    ``f.split(model)`` reads its current values at any time, and the model itself may be passed as ``params``.

    Args:
        model: a built ``keras.Model`` or layer.
        spread: ``"args"`` calls ``model(*x)``, ``"kwargs"`` calls ``model(**x)``.
        batch_axis: the axis of the batch in what the model takes and returns: 1 for ``(T, N, D)``, time first.
        **call_kwargs: passed at every call, such as ``training=True``.

    Returns:
        The :class:`ModelFn`. Its ``params`` are the values of ``model.trainable_variables``; its ``state`` is the
        values of ``model.non_trainable_variables``. Both are lists, as ``stateless_call`` takes them. ``rng`` replaces
        the seeds in the state, so a model whose state is only seeds needs no ``state``.

    Raises:
        TypeError: ``model`` is not a Keras layer.
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
    kwargs = frozen_kwargs("from_keras", spread, call_kwargs)
    return ModelFn(KerasAdapter(Static(model), spread, kwargs), batch_axis=batch_axis)


@dataclass(frozen=True)
class KerasAdapter:
    """Calls a Keras model with values in place of its variables; see :func:`from_keras`."""

    model: Static
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the model."""
        model = self.model.value
        kwargs = {**dict(self.kwargs), **kwargs}
        if accepts_argument(model.call, "training"):
            kwargs.setdefault("training", False)
        state = self._state(state, rng, kwargs.get("training", False))
        args, inputs = spread_input(x, self.spread)
        self._check_params(params)
        with explain_errors(model.name, params, x):
            outputs, new_state = model.stateless_call(params, state, *args, **inputs, **kwargs)
        if rng is None and any(new_state[i] is not state[i] for i in self._seeds()):
            raise ValueError(
                "rng=None, but this Keras model draws random numbers at every call; pass rng=jax.random.key(0)."
            )
        return outputs

    def tagged(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the model; what its layers return is tagged."""
        keras, model = require("keras", extra="keras"), self.model.value
        paths: dict[int, str] = {}
        methods: set[Method] = set()
        for path, layer in _iter_layers(model, ""):
            if layer is not model:
                paths.setdefault(id(layer), path)
                # The loop of a recurrent layer is a public method, which no user calls.
                base = keras.layers.RNN if isinstance(layer, keras.layers.RNN) else keras.Layer
                kind: Any = type(layer)
                methods |= methods_of(kind, base)
        with tagging(methods, Capture(lambda layer: paths.get(id(layer)))):
            return self.apply(params, state, rng, x, kwargs)

    def owners(self, params: PyTree) -> list[str]:
        """The path of the layer of each parameter."""
        model = self.model.value
        # The innermost layer of a variable comes last.
        owners = {id(v): path for path, layer in _iter_layers(model, "") for v in layer.trainable_variables}
        return [owners.get(id(v), "") for v in model.trainable_variables]

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """Raises, because Keras makes the variables when it builds a model."""
        raise ValueError(
            "Keras draws the parameters when it builds a model; params, state = f.split(model) gives them. For new "
            "ones call keras.utils.set_random_seed(seed), then keras.models.clone_model(model)."
        )

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Returns the current values of a live model."""
        if not isinstance(model, require("keras", extra="keras").Layer):
            return None
        if callable(getattr(model, "jax_state_sync", None)):
            model.jax_state_sync()  # During fit, the variables hold old values until this call.
        return [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]

    def _check_params(self, params: PyTree) -> None:
        """Refuses parameters of another model; they are named by their position and Keras' path."""
        variables = self.model.value.trainable_variables
        _refuse_order("params", params, variables)
        names = [f"[{i}] {v.path}" for i, v in enumerate(variables)]
        names_given = names[: len(params)] + [f"[{i}]" for i in range(len(names), len(params))]
        shapes = tuple((name, tuple(v.shape)) for name, v in zip(names, variables, strict=True))
        check_params(self.model.value.name, shapes, OrderedDict(zip(names_given, params, strict=True)))

    def _state(self, state: PyTree, rng: Any, training: bool) -> PyTree:
        """Returns the state with seeds drawn from ``rng``."""
        variables, seeds = self.model.value.non_trainable_variables, self._seeds()
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
        _refuse_order("state", state, variables)
        state = list(state)
        for i in seeds:
            # As an array of JAX, a seed that was not drawn from comes back as the same object.
            state[i] = jnp.asarray(state[i], variables[i].dtype)
            if rng is not None:
                state[i] = jax.random.bits(jax.random.fold_in(rng, i), state[i].shape, state[i].dtype)
        return state

    def _seeds(self) -> list[int]:
        """Returns the places of the seeds in the state."""
        variables = self.model.value.non_trainable_variables
        return [i for i, v in enumerate(variables) if v.path.endswith("seed_generator_state")]


def _refuse_order(argument: str, given: Any, variables: Sequence[Any]) -> None:
    """Refuses what is no list, and variables of Keras in another order than that of the model: arrays have no names.

    Raises:
        TypeError: it is no list.
        ValueError: names the first variable in another place.
    """
    if not isinstance(given, list | tuple):
        raise TypeError(
            f"{argument} is a {type(given).__name__}; Keras takes a list of arrays in the order of the model's "
            "variables: params, state = f.split(model)."
        )
    places = {v.path: i for i, v in enumerate(variables)}
    for i, value in enumerate(given):
        path = getattr(value, "path", None)
        if path in places and variables[i : i + 1] and variables[i].path != path:
            raise ValueError(
                f"{argument}[{i}] is {path!r}, which this model has at [{places[path]}]; pass its variables in its own "
                "order: params, state = f.split(model)."
            )


def _iter_layers(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields every layer inside a layer with its path."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        inner_path = f"{path}/{inner.name}".lstrip("/")
        yield inner_path, inner
        yield from _iter_layers(inner, inner_path)
