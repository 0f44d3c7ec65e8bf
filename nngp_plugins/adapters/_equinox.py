"""The adapter of Equinox."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax

from .._require import require
from .._static import Static
from .._typing import PyTree
from ._arguments import Spread, accepts_argument, frozen_kwargs, is_array, spread_input
from ._explain_errors import Shapes, check_params, explain_errors, owners_of, refuse_others, shapes_of
from ._intercept import Capture, Method, methods_of, tagging
from ._model_fn import ModelFn


def from_equinox(
    model_or_factory: Any,
    *,
    batched: bool = False,
    axis_name: str = "batch",
    method: str | None = None,
    spread: Spread = None,
    batch_axis: int = 0,
    **call_kwargs: Any,
) -> ModelFn:
    """An Equinox model as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    Equinox models take a single example, so the model is mapped over batch axis 0 of the inputs. With ``rng`` each
    example gets its own key, passed as ``key=``. With ``state`` the model is called as ``model(x, state)``.

    Args:
        model_or_factory: an ``eqx.Module`` that can be called, or a function ``key -> model``, which ``f.init`` needs.
            ``eqx.nn.inference_mode(model)`` makes dropout and batch norm deterministic.
        batched: whether the model takes a whole batch, so that it is not mapped over examples.
        axis_name: name of the batch axis, which ``eqx.nn.BatchNorm`` needs.
        method: name of the method to run instead of ``__call__``.
        spread: ``"args"`` calls ``model(*x)``, ``"kwargs"`` calls ``model(**x)``.
        batch_axis: the axis of the batch in what the model takes and returns: 1 for ``(T, N, D)``, time first.
        **call_kwargs: passed at every call.

    Returns:
        The :class:`ModelFn`. Its ``params`` is the model with only its arrays, as ``eqx.filter(model, eqx.is_array)``
        gives it; the whole model may be passed as well. Its ``state`` is an ``eqx.nn.State``.

    Raises:
        TypeError: ``model_or_factory`` is neither a module nor a factory of one.
        AttributeError: the model has no such method.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> model = eqx.nn.MLP(3, 5, 16, 1, key=jax.random.key(0))
        >>> f = nngp.from_equinox(model)
        >>> nngp.empirical_nngp_fn(f)(jnp.ones((4, 3)), None, model).shape
        (4, 4)
    """
    eqx = require("equinox", extra="equinox")
    model, factory = _model_and_factory(model_or_factory)
    method = method or "__call__"
    call = getattr(model, method, None)
    if call is None:
        raise AttributeError(f"{type(model).__name__} has no method {method!r}; choose one with method=.")
    leaves, structure = jax.tree.flatten(eqx.filter(model, is_array, inverse=True))
    if batch_axis and not batched:
        raise ValueError(
            f"batch_axis={batch_axis} is the axis of the batch in what a model takes, but this one takes one example; "
            "pass batched=True as well if it takes a whole batch."
        )
    adapter = EquinoxAdapter(
        name=type(model).__name__,
        not_arrays=Static((tuple(leaves), structure)),
        shapes=shapes_of(eqx.filter(model, is_array)),
        stateful=_has_state(model),
        signature=Static(inspect.signature(call)),
        takes_key=accepts_argument(call, "key"),
        factory=factory,
        batched=batched,
        axis_name=axis_name,
        method=method,
        spread=spread,
        kwargs=frozen_kwargs("from_equinox", spread, call_kwargs),
    )
    return ModelFn(adapter, batch_axis=batch_axis)


def _model_and_factory(model_or_factory: Any) -> tuple[Any, Callable[..., Any] | None]:
    """Returns a model and no factory, or the shapes of a model and the function ``key -> (model, state)``."""
    eqx = require("equinox", extra="equinox")
    if isinstance(model_or_factory, eqx.Module):
        return model_or_factory, None
    if not callable(model_or_factory):
        raise TypeError(
            f"from_equinox takes an eqx.Module or a function key -> eqx.Module, got {reprlib.repr(model_or_factory)}."
        )
    factory = eqx.nn.make_with_state(_positional_factory(model_or_factory))
    model, _ = eqx.filter_eval_shape(factory, jax.random.key(0))
    if not isinstance(model, eqx.Module):
        raise TypeError(f"the factory given to from_equinox returned {type(model).__name__}, not an eqx.Module.")
    return model, factory


def _positional_factory(make: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the factory as a function of ``key`` by position, because modules usually take it by keyword."""
    return (lambda key: make(key=key)) if "key" in inspect.signature(make).parameters else make


def _has_state(model: Any) -> bool:
    """Returns whether a layer of the model keeps values in an ``eqx.nn.State``."""
    state_index = require("equinox", extra="equinox").nn.StateIndex

    def is_index(leaf: Any) -> bool:
        return isinstance(leaf, state_index)

    return any(map(is_index, jax.tree.leaves(model, is_leaf=is_index)))


@dataclass(frozen=True)
class EquinoxAdapter:
    """Calls an Equinox model, which it rebuilds from its arrays at every call; see :func:`from_equinox`."""

    name: str
    not_arrays: Static
    shapes: Shapes
    stateful: bool
    signature: Static
    takes_key: bool
    factory: Callable[..., Any] | None
    batched: bool
    axis_name: str
    method: str
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the model."""
        return self._map(lambda x, key: self._call(self._rebuild(params), params, state, key, x, kwargs), x, rng)

    def tagged(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the model; what its submodules return is tagged."""
        eqx = require("equinox", extra="equinox")

        def run(x: PyTree, key: Any) -> PyTree:
            model, methods = self._rebuild(params), set[Method]()
            for path, module in list(_iter_modules(model, "", eqx.Module)):
                object.__setattr__(module, "__qualname__", _Path(path))
                kind: Any = type(module)
                methods |= methods_of(kind, eqx.Module)
            with tagging(methods, Capture(_path_of, self.method, (eqx.nn.State,))):
                return self._call(model, params, state, key, x, kwargs)

        return self._map(run, x, rng)

    def owners(self, params: PyTree) -> list[str]:
        """The path of the module of each parameter."""
        return owners_of(params)

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """Returns new parameters and state."""
        if self.factory is None:
            raise ValueError(
                "this ModelFn was made from an Equinox model, so it cannot make new values; f.split(model) gives those "
                "of the model. For new ones make it from a factory: from_equinox(lambda key: Model(key=key))."
            )
        model, state = self.factory(rng)
        return self._arrays(model), state if self.stateful else None

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Returns the arrays and the state of a model or of a ``(model, state)`` pair."""
        eqx = require("equinox", extra="equinox")
        state = None
        if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], eqx.nn.State):
            model, state = model
        return (self._arrays(model), state) if isinstance(model, eqx.Module) else None

    def _arrays(self, model: Any) -> PyTree:
        return require("equinox", extra="equinox").filter(model, is_array)

    def _map(self, run: Callable[..., Any], x: PyTree, rng: Any) -> Any:
        """Calls ``run(x, key)`` on the batch, or maps it over the examples."""
        if self.batched:
            return run(x, rng)
        size = next((leaf.shape[0] for leaf in jax.tree.leaves(x) if getattr(leaf, "ndim", 0)), 1)
        keys = None if rng is None else jax.random.split(rng, size)
        key_axis = None if rng is None else 0
        return jax.vmap(run, in_axes=(0, key_axis), axis_size=size, axis_name=self.axis_name)(x, keys)

    def _call(self, model: Any, params: PyTree, state: PyTree, key: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        if self.stateful and state is None:
            raise ValueError(
                "state=None, but this model has a state; pass the eqx.nn.State that eqx.nn.make_with_state gave."
            )
        args, inputs = spread_input(x, self.spread)
        if self.stateful:
            # Equinox allows one update of each state object, so every call gets a copy.
            args = (*args, jax.tree.map(lambda leaf: leaf, state))
        given = {**inputs, **dict(self.kwargs), **kwargs}
        if key is not None and self.takes_key:
            given = {"key": key, **given}
        elif _lacks_key(self.signature.value, args, given):
            raise ValueError(
                "rng=None, but this Equinox model requires a key; pass rng=jax.random.key(0), or convert it by "
                "from_equinox(model, key=None) if it draws nothing in its inference mode."
            )
        try:
            with explain_errors(self.name, params, x):
                y = getattr(model, self.method)(*args, **given)
        except (RuntimeError, ValueError) as error:
            # Layers of Equinox raise the first for want of a key; JAX tells that None is no PRNG key.
            if key is not None or ("key" if isinstance(error, RuntimeError) else "PRNG key") not in str(error):
                raise
            raise ValueError(
                "rng=None, but this Equinox model draws random numbers; pass rng=jax.random.key(0), or convert "
                "eqx.nn.inference_mode(model)."
            ) from error
        return self._without_state(y)

    def _rebuild(self, params: PyTree) -> Any:
        """Returns a model with these parameters."""
        eqx = require("equinox", extra="equinox")
        check_params(self.name, self.shapes, params)
        if self.shapes and type(params).__name__ != self.name:
            raise ValueError(f"params belong to a {type(params).__name__}, not to this {self.name}.")
        leaves, structure = self.not_arrays.value
        rest = structure.unflatten(leaves)
        try:
            return eqx.combine(params, rest)
        except ValueError as error:
            # Equal shapes in the same order may be those of other modules.
            refuse_others(self.name, self.shapes, shapes_of(params))
            raise ValueError(
                f"params do not belong to this {self.name}: {_first_other(params, rest, eqx.Module)} is of another "
                "class there, or has a field that is no array with another value or other keys; convert the model that "
                "they belong to, from_equinox(model)."
            ) from error

    def _without_state(self, value: Any) -> PyTree:
        """Returns the arrays that a layer returned, without its state; ``vmap`` accepts nothing but arrays."""
        eqx = require("equinox", extra="equinox")
        if isinstance(value, tuple) and value and isinstance(value[-1], eqx.nn.State):
            value = value[0] if len(value) == 2 else value[:-1]
        return eqx.filter(value, is_array)


class _Path(str):
    """The path of a module. Its copies, which transformations within a model make, keep it as their ``__qualname__``.

    Equinox copies that attribute with a module, for those that wrap a function, and nothing else beyond the fields.
    """


def _path_of(module: Any) -> str | None:
    path = vars(module).get("__qualname__")
    return path if isinstance(path, _Path) else None


def _first_other(given: Any, own: Any, module_type: Any) -> str:
    """The innermost module, the first of several, that is not the same in two models but for its arrays."""

    def kept(module: Any) -> Any:
        return jax.tree.structure(module, is_leaf=lambda leaf: leaf is None)

    pairs = zip(_iter_modules(given, "", module_type), _iter_modules(own, "", module_type), strict=False)
    paths = [path for (path, a), (_, b) in pairs if kept(a) != kept(b)]
    around = {path.rpartition("/")[0] for path in paths if path}
    path = next((path for path in paths if path not in around), "")
    return repr(path) if path else "the model itself"


def _lacks_key(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Returns whether these arguments can be passed only with a key among them."""

    def fits(**key: None) -> bool:
        try:
            signature.bind(*args, **{**key, **kwargs})
        except TypeError:
            return False
        return True

    return not fits() and fits(key=None)


def _iter_modules(node: Any, path: str, module_type: Any) -> Iterator[tuple[str, Any]]:
    """Yields every module in a model, with its path, such as ``layers/0``."""
    children: Mapping[str, Any] = {}
    if isinstance(node, module_type):
        yield path, node
        children = {field.name: getattr(node, field.name, None) for field in fields(node)}
    elif isinstance(node, Mapping):
        children = {str(name): child for name, child in node.items()}
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        children = {str(i): child for i, child in enumerate(node)}
    for name, child in children.items():
        yield from _iter_modules(child, f"{path}/{name}".lstrip("/"), module_type)
