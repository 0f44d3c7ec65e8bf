"""The adapter of Flax NNX."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from .._require import require
from .._static import Static
from .._typing import PyTree
from ._arguments import Spread, frozen_kwargs, spread_input
from ._explain_errors import Shapes, explain_errors, owners_of, refuse_others, shapes_of_leaves
from ._intercept import Capture, definition_of, methods_of, sow_nothing, sows, tagging
from ._model_fn import ModelFn

# NNX leaves out names that begin so when it iterates over what a container holds.
_PATH = "_pytree__nngp_path"


def from_nnx(
    model_or_factory: Any, *, method: str | None = None, spread: Spread = None, batch_axis: int = 0, **call_kwargs: Any
) -> ModelFn:
    """A Flax NNX model as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    The mode of the model at conversion decides: call ``model.eval()`` first for deterministic outputs. Later changes
    of the live object do not reach the :class:`ModelFn`. ``f.split(model)`` reads the current values at any time, and
    the model itself may be passed as ``params``.

    Args:
        model_or_factory: a live ``nnx.Module``, or a function or class ``rngs -> model``, which ``f.init`` needs.
        method: name of the method to run instead of ``__call__``.
        spread: ``"args"`` calls ``model(*x)``, ``"kwargs"`` calls ``model(**x)``.
        batch_axis: the axis of the batch in what the model takes and returns: 1 for ``(T, N, D)``, time first.
        **call_kwargs: passed at every call.

    Returns:
        The :class:`ModelFn`. Its ``params`` is the ``nnx.Param`` state; its ``state`` is all other variables. A model
        whose only other variables are random state needs no ``state``: keys from ``rng`` replace its random state.

    Raises:
        TypeError: ``model_or_factory`` is neither a module nor a factory of one.
        AttributeError: the model has no such method.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> from flax import nnx
        >>> model = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
        >>> f = nngp.from_nnx(model)
        >>> params, state = f.split(model)
        >>> nngp.empirical_nngp_fn(f)(jnp.ones((4, 3)), None, params).shape
        (4, 4)
    """
    nnx = require("flax.nnx", extra="flax")
    factory: Callable[..., Any] | None = None
    model = model_or_factory
    if not isinstance(model, nnx.Module):
        if not callable(model_or_factory):
            raise TypeError(
                f"from_nnx takes an nnx.Module or a function rngs -> nnx.Module, got {reprlib.repr(model_or_factory)}."
            )
        factory = _positional_factory(model_or_factory)
        model = nnx.eval_shape(lambda: factory(nnx.Rngs(0)))
        if not isinstance(model, nnx.Module):
            raise TypeError(f"the factory given to from_nnx returned {type(model).__name__}, not an nnx.Module.")
    if not hasattr(model, method or "__call__"):
        raise AttributeError(f"{type(model).__name__} has no method {method or '__call__'!r}; choose one with method=.")
    kwargs = frozen_kwargs("from_nnx", spread, call_kwargs)
    model = nnx.clone(model)
    nnx.pop(model, nnx.Intermediate)  # A sow outside nnx.capture leaves these behind; they are no part of the model.
    graphdef, params, random, rest = nnx.split(model, nnx.Param, nnx.RngState, ...)
    adapter = NNXAdapter(
        name=type(model).__name__,
        graphdef=Static(graphdef),
        streams=RandomStreams(Variables.of(random), tuple(leaf.dtype for leaf in jax.tree.leaves(random))),
        params=Variables.of(params),
        rest=Variables.of(rest),
        factory=factory,
        method=method,
        spread=spread,
        kwargs=kwargs,
    )
    return ModelFn(adapter, batch_axis=batch_axis)


def _positional_factory(make: Any) -> Callable[..., Any]:
    """Returns the factory as a function of ``rngs`` by position, because modules usually take it by keyword."""
    is_class = isinstance(make, type)
    # The metaclass of NNX hides the arguments of a class, but its __init__ shows them.
    arguments = inspect.signature(make.__init__ if is_class else make).parameters
    return (lambda rngs: make(rngs=rngs)) if "rngs" in arguments else make


@dataclass(frozen=True)
class Variables:
    """Variables of a model without their values.

    Attributes:
        structure: their state.
        shapes: the path and the shape of each array.
    """

    structure: jax.tree_util.PyTreeDef
    shapes: Shapes

    @classmethod
    def of(cls, state: PyTree) -> Variables:
        """Those of a state."""
        return cls(jax.tree.structure(state), tuple((name, leaf.shape) for name, leaf in _by_path(state)))

    def filled(self, model: str, argument: str, given: PyTree, beside: Collection[str] = ()) -> PyTree:
        """The state with values, which are found by their paths.

        NNX takes values in the order of their keys. A checkpoint has strings in place of numbers, and "10" comes before
        "2".

        Args:
            model: the name of the model, for messages.
            argument: what is given, for messages.
            given: a state, or a dict of arrays.
            beside: paths of what may be given beside these variables.

        Raises:
            ValueError: a path is missing, is not one of the model, or has another shape.
        """
        values, structure = jax.tree.flatten(given)
        if structure == self.structure and shapes_of_leaves(values) == [shape for _, shape in self.shapes]:
            return given
        leaves = {name: leaf for name, leaf in _by_path(given) if name not in beside}
        refuse_others(model, self.shapes, tuple((name, jnp.shape(leaf)) for name, leaf in leaves.items()), argument)
        return self.structure.unflatten(leaves[name] for name, _ in self.shapes)


def _by_path(state: PyTree) -> list[tuple[str, Any]]:
    """The path of each array in a state, or in a dict of arrays, whose keys may be strings in place of numbers."""
    value = jax.tree_util.GetAttrKey("value")
    return [
        (jax.tree_util.keystr(tuple(key for key in path if key != value), simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


@dataclass(frozen=True)
class RandomStreams:
    """The random state of a model without its values, so that every stream can be fed from one key."""

    variables: Variables
    dtypes: tuple[Any, ...]

    def seeded(self, rng: jax.Array) -> PyTree:
        """Returns the random state with keys folded from ``rng`` and all counts at zero."""
        if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            rng = jax.random.wrap_key_data(rng)
        state = []
        for i, ((_, shape), dtype) in enumerate(zip(self.variables.shapes, self.dtypes, strict=True)):
            if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
                state.append(jnp.zeros(shape, dtype))
                continue
            key = jax.random.fold_in(rng, i)
            state.append(jax.random.split(key, shape) if shape else key)
        return self.variables.structure.unflatten(state)


@dataclass(frozen=True)
class NNXAdapter:
    """Calls an NNX model, rebuilt from its graph at every call; see :func:`from_nnx`."""

    name: str
    graphdef: Static
    streams: RandomStreams
    params: Variables = field(compare=False)  # The graph says all of it, and is compared.
    rest: Variables = field(compare=False)
    factory: Callable[..., Any] | None
    method: str | None
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the model."""
        nnx = require("flax.nnx", extra="flax")
        model = self._merge(params, state, rng)
        for _, module in nnx.iter_modules(model):
            kind: Any = type(module)
            if sows(kind, nnx.Module):
                object.__setattr__(module, "sow", sow_nothing)
        return self._call(model, params, x, kwargs)

    def tagged(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the model; what its submodules return or sow is tagged."""
        nnx = require("flax.nnx", extra="flax")
        model, kinds = self._merge(params, state, rng), set[Any]()
        for path, module in nnx.iter_modules(model):
            # It is a static attribute, which the copies keep that transformations within a model make.
            object.__setattr__(module, _PATH, "/".join(map(str, path)))
            kinds.add(type(module))
        methods = {method for kind in kinds for method in methods_of(kind, nnx.Module)}
        capture = Capture(lambda module: vars(module).get(_PATH), self.method or "__call__")
        with tagging(methods, capture, sows={definition_of(kind, "sow") for kind in kinds}):
            return self._call(model, params, x, kwargs)

    def owners(self, params: PyTree) -> list[str]:
        """The path of the module of each parameter."""
        return owners_of(params)

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """Returns new parameters and state."""
        if self.factory is None:
            raise ValueError(
                "this ModelFn was made from a live NNX model, so it cannot make new values; f.split(model) gives those "
                "of the model. For new ones make it from a factory: from_nnx(lambda rngs: Model(rngs=rngs))."
            )
        nnx = require("flax.nnx", extra="flax")
        _, params, state = nnx.split(self.factory(nnx.Rngs(rng)), nnx.Param, ...)
        return params, state

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Returns parameters and state of a live model, or of all its variables as ``nnx.state`` gives them."""
        nnx = require("flax.nnx", extra="flax")
        if isinstance(model, nnx.State):
            # nnx.Optimizer passes parameters on as a State of plain arrays, without Variables.
            is_plain = not jax.tree.leaves(nnx.filter_state(model, nnx.Variable))
            if is_plain or not jax.tree.leaves(nnx.filter_state(model, nnx.Not(nnx.Param))):
                return None
            parts: tuple[PyTree, PyTree] = nnx.split_state(model, nnx.Param, ...)
            return parts
        if not isinstance(model, nnx.Module):
            return None
        _, params, _, state = nnx.split(model, nnx.Param, nnx.Intermediate, ...)
        # The copies are new variables, because training continues to write to those of the model.
        copies: tuple[PyTree, PyTree] = jax.tree.map(lambda value: value, (params, state))
        return copies

    def _merge(self, params: PyTree, state: PyTree, rng: Any) -> Any:
        nnx = require("flax.nnx", extra="flax")
        params = self.params.filled(self.name, "params", params)
        if self.rest.shapes and not state:
            names = ", ".join(name for name, _ in self.rest.shapes[:3]) + (", ..." if len(self.rest.shapes) > 3 else "")
            raise ValueError(
                f"state=None, but this model has variables that are not parameters ({names}); "
                "pass them: params, state = f.split(model), then f(params, x, state=state)."
            )
        if isinstance(state, nnx.State):
            state = nnx.filter_state(state, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate)))
        beside = [name for part in (self.params, self.streams.variables) for name, _ in part.shapes]
        rest = self.rest.filled(self.name, "the variables in state", state or {}, beside)
        random = self.streams.seeded(jax.random.key(0, impl=_refusing_keys()) if rng is None else rng)
        # The model writes to its variables; copy=True keeps those of the caller unchanged.
        return nnx.merge(self.graphdef.value, params, random, rest, copy=True)

    def _call(self, model: Any, params: PyTree, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        args, inputs = spread_input(x, self.spread)
        with explain_errors(self.name, params, x):
            return getattr(model, self.method or "__call__")(*args, **{**inputs, **dict(self.kwargs), **kwargs})


@cache
def _refusing_keys() -> Any:
    """Returns a kind of key that can be folded and split, as many models do, but raises when numbers are drawn."""

    def random_bits(key: Any, bits: int, shape: tuple[int, ...]) -> Any:
        raise ValueError(
            "rng=None, but this NNX model draws random numbers; pass rng=jax.random.key(0), or call model.eval() "
            "before from_nnx(model)."
        )

    from jax.extend.random import define_prng_impl

    return define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: jnp.zeros((1,), jnp.uint32),
        split=lambda key, shape: jnp.zeros((*shape, 1), jnp.uint32),
        random_bits=random_bits,
        fold_in=lambda key, data: key,
        name="refusing",
        tag="refusing",
    )
