"""Equinox."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax

from .._require import require
from .._static import Static
from ._layers import Call, Recorder
from ._mismatch import Shapes, check_params, explaining, shapes_of
from ._model_fn import ModelFn, PyTree, Spread, frozen_kwargs, spread_input
from ._recording import Record, recording, watching


def from_equinox(
    model_or_factory: Any,
    *,
    batched: bool = False,
    axis_name: str = "batch",
    method: str | None = None,
    spread: Spread = None,
    **call_kwargs: Any,
) -> ModelFn:
    """An Equinox model as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    Equinox models take a single example, so the model is mapped over batch axis 0 of the inputs. With ``rng`` each
    example gets a key of its own, passed as ``key=``; with ``state`` the model is called as ``model(x, state)``.

    Args:
        model_or_factory: an ``eqx.Module`` that can be called, or a function ``key -> model``, as ``f.init`` needs.
            ``eqx.nn.inference_mode(model)`` makes dropout and batch norm deterministic.
        batched: whether the model takes a batch as it is.
        axis_name: of the batch, for ``eqx.nn.BatchNorm``.
        method: name of the method to run in place of ``__call__``.
        spread: ``"args"`` calls ``model(*x)``, ``"kwargs"`` calls ``model(**x)``.
        **call_kwargs: passed at every call.

    Returns:
        The :class:`ModelFn`. Its ``params`` is the model with its arrays alone, as ``eqx.filter(model, eqx.is_array)``
        gives them; the whole model may stand for them. Its ``state`` is an ``eqx.nn.State``.

    Raises:
        TypeError: neither a module nor a factory of one.
        AttributeError: the model has no such method.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> model = eqx.nn.MLP(3, 5, 16, 1, key=jax.random.key(0))
        >>> f = nngp.from_equinox(model)
        >>> nngp.empirical_nngp_fn(f)(jnp.ones((4, 3)), None, model).shape
        (4, 4)
    """
    eqx = require("equinox", extra="equinox")
    factory: Callable[..., Any] | None = None
    model = model_or_factory
    if not isinstance(model, eqx.Module):
        if not callable(model_or_factory):
            raise TypeError(
                f"from_equinox takes an eqx.Module or a function key -> eqx.Module, got {reprlib.repr(model)}."
            )
        factory = eqx.nn.make_with_state(_factory(model_or_factory))
        model, _ = eqx.filter_eval_shape(factory, jax.random.key(0))
        if not isinstance(model, eqx.Module):
            raise TypeError(f"the factory given to from_equinox returned {type(model).__name__}, not an eqx.Module.")
    call = getattr(model, method or "__call__", None)
    if call is None:
        raise AttributeError(f"{type(model).__name__} has no method {method or '__call__'!r}; choose one with method=.")
    arguments = inspect.signature(call).parameters.values()
    takes_key = any(a.name == "key" or a.kind is inspect.Parameter.VAR_KEYWORD for a in arguments)

    def is_index(leaf: Any) -> bool:
        return isinstance(leaf, eqx.nn.StateIndex)

    stateful = any(map(is_index, jax.tree.leaves(model, is_leaf=is_index)))
    leaves, structure = jax.tree.flatten(eqx.filter(model, _is_array, inverse=True))
    static = Static((tuple(leaves), structure))
    shapes = shapes_of(eqx.filter(model, _is_array))
    kwargs = frozen_kwargs("from_equinox", spread, call_kwargs)
    return ModelFn(
        EquinoxAdapter(
            type(model).__name__,
            static,
            shapes,
            stateful,
            takes_key,
            factory,
            batched,
            axis_name,
            method or "__call__",
            spread,
            kwargs,
        )
    )


def _factory(make: Callable[..., Any]) -> Callable[..., Any]:
    """The factory as a function of ``key`` by position; modules take it by keyword."""
    return (lambda key: make(key=key)) if "key" in inspect.signature(make).parameters else make


def _is_array(leaf: Any) -> bool:
    """Whether this is an array, or stands for one as in ``jax.eval_shape``."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


@dataclass(frozen=True)
class EquinoxAdapter:
    """Calls an Equinox model, put together from its arrays at every call; see :func:`from_equinox`."""

    name: str
    static: Static
    shapes: Shapes
    stateful: bool
    takes_key: bool
    factory: Callable[..., Any] | None
    batched: bool
    axis_name: str
    method: str
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """The outputs of the model."""
        return self._map(lambda x, key: self._call(params, state, key, x, kwargs, lambda path, value: None), x, rng)

    def capture(
        self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]
    ) -> tuple[PyTree, list[Call]]:
        """The outputs of the model and of its submodules."""
        paths: list[str] = []

        def run(x: PyTree, key: Any) -> tuple[PyTree, list[Any]]:
            record = Recorder()
            outputs = self._call(params, state, key, x, kwargs, record)
            paths[:] = [path for path, _ in record.calls]
            return outputs, [self._without_state(value) for _, value in record.calls]

        outputs, values = self._map(run, x, rng)
        return outputs, list(zip(paths, values, strict=True))

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """New parameters and state."""
        if self.factory is None:
            raise ValueError(
                "this ModelFn was made from an Equinox model, whose values f.split(model) gives; for new ones make it "
                "from a factory: from_equinox(lambda key: Model(key=key))."
            )
        model, state = self.factory(rng)
        return self._arrays(model), state if self.stateful else None

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """The arrays of a model, or of a ``(model, state)`` pair."""
        eqx = require("equinox", extra="equinox")
        state = None
        if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], eqx.nn.State):
            model, state = model
        return (self._arrays(model), state) if isinstance(model, eqx.Module) else None

    def _arrays(self, model: Any) -> PyTree:
        return require("equinox", extra="equinox").filter(model, _is_array)

    def _map(self, run: Callable[..., Any], x: PyTree, rng: Any) -> Any:
        """``run(x, key)`` of the batch, or of each example."""
        if self.batched:
            return run(x, rng)
        size = next((leaf.shape[0] for leaf in jax.tree.leaves(x) if getattr(leaf, "ndim", 0)), 1)
        keys = None if rng is None else jax.random.split(rng, size)
        axes = 0, None if rng is None else 0
        return jax.vmap(run, in_axes=axes, axis_size=size, axis_name=self.axis_name)(x, keys)

    def _call(
        self, params: PyTree, state: PyTree, key: Any, x: PyTree, kwargs: dict[str, Any], record: Record
    ) -> PyTree:
        eqx = require("equinox", extra="equinox")
        if self.stateful and state is None:
            raise ValueError(
                "state=None, but this model has a state; pass the eqx.nn.State that eqx.nn.make_with_state gave."
            )
        check_params(self.name, self.shapes, params)
        if self.shapes and type(params).__name__ != self.name:
            raise ValueError(f"params are those of a {type(params).__name__}, not of this {self.name}.")
        leaves, structure = self.static.value
        model = eqx.combine(params, structure.unflatten(leaves))
        paths = {}
        for path, module in _modules(model, "", eqx.Module):
            paths[id(module)] = path
            object.__setattr__(module, "__class__", recording(type(module)))
        args, inputs = spread_input(x, self.spread)
        # a copy: a state may be updated only once
        args = (*args, jax.tree.map(lambda leaf: leaf, state)) if self.stateful else args
        keys = {"key": key} if key is not None and self.takes_key else {}
        with watching(paths, record):
            try:
                with explaining(self.name, params, x):
                    y = getattr(model, self.method)(*args, **{**keys, **inputs, **dict(self.kwargs), **kwargs})
            except RuntimeError as error:
                if key is not None or "key" not in str(error):
                    raise
                raise ValueError(
                    "rng=None, but this Equinox model draws random numbers; pass rng=jax.random.key(0), or convert "
                    "eqx.nn.inference_mode(model)."
                ) from error
        return self._without_state(y)

    def _without_state(self, value: Any) -> PyTree:
        """What a stateful layer returns beside its state; arrays only, as ``vmap`` asks for."""
        eqx = require("equinox", extra="equinox")
        if isinstance(value, tuple) and value and isinstance(value[-1], eqx.nn.State):
            value = value[0] if len(value) == 2 else value[:-1]
        return eqx.filter(value, _is_array)


def _modules(node: Any, path: str, module_type: type) -> Iterator[tuple[str, Any]]:
    """Every module in a model that can be called, with its path, such as ``layers/0``."""
    children: Mapping[str, Any] = {}
    if isinstance(node, module_type):
        if callable(node):
            yield path, node
        children = {field.name: getattr(node, field.name, None) for field in fields(node)}  # type: ignore[arg-type]
    elif isinstance(node, Mapping):
        children = {str(name): child for name, child in node.items()}
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        children = {str(i): child for i, child in enumerate(node)}
    for name, child in children.items():
        yield from _modules(child, f"{path}/{name}".lstrip("/"), module_type)
