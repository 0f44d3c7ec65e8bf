"""Flax NNX."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from .._require import require
from .._static import Static
from ._layers import Call, Recorder
from ._mismatch import Shapes, check_params, explaining, shapes_of
from ._model_fn import ModelFn, PyTree, Spread, frozen_kwargs, spread_input
from ._recording import Record, recording, watching


def from_nnx(model_or_factory: Any, *, method: str | None = None, spread: Spread = None, **call_kwargs: Any) -> ModelFn:
    """A Flax NNX model as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    What the model is at conversion decides: ``model.eval()`` before it for deterministic outputs. Later changes of
    the live object do not reach the :class:`ModelFn`; ``f.split(model)`` reads its current values at any time, and
    the model itself may stand for ``params``.

    Args:
        model_or_factory: a live ``nnx.Module``, or a function ``rngs -> model`` (which a class may be), as ``f.init``
            needs.
        method: name of the method to run in place of ``__call__``.
        spread: ``"args"`` calls ``model(*x)``, ``"kwargs"`` calls ``model(**x)``.
        **call_kwargs: passed at every call.

    Returns:
        The :class:`ModelFn`. Its ``params`` is the ``nnx.Param`` state, its ``state`` all other variables. Random
        state alone need not be passed: it is replaced by ``rng``, and unused without.

    Raises:
        TypeError: neither a module nor a factory of one.
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
        factory = _factory(model_or_factory)
        model = nnx.eval_shape(lambda: factory(nnx.Rngs(0)))
        if not isinstance(model, nnx.Module):
            raise TypeError(f"the factory given to from_nnx returned {type(model).__name__}, not an nnx.Module.")
    if not hasattr(model, method or "__call__"):
        raise AttributeError(f"{type(model).__name__} has no method {method or '__call__'!r}; choose one with method=.")
    kwargs = frozen_kwargs("from_nnx", spread, call_kwargs)
    model = nnx.clone(model)
    nnx.pop(model, nnx.Intermediate)  # left behind by a sow outside nnx.capture; no part of the model
    graphdef, params, random, rest = nnx.split(model, nnx.Param, nnx.RngState, ...)
    needed = tuple("/".join(map(str, path)) for path, _ in nnx.to_flat_state(rest))
    leaves, structure = jax.tree.flatten(random)
    streams = Streams(structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
    shapes = shapes_of(params)
    return ModelFn(
        NNXAdapter(type(model).__name__, Static(graphdef), shapes, streams, needed, factory, method, spread, kwargs)
    )


def _factory(make: Any) -> Callable[..., Any]:
    """The factory as a function of ``rngs`` by position; modules take it by keyword."""
    arguments = inspect.signature(make.__init__ if isinstance(make, type) else make).parameters  # type: ignore[misc]
    return (lambda rngs: make(rngs=rngs)) if "rngs" in arguments else make


@dataclass(frozen=True)
class Streams:
    """The random state of a model without its values: what it takes to feed every stream from one key."""

    structure: jax.tree_util.PyTreeDef
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    def seeded(self, rng: jax.Array) -> PyTree:
        """The random state with keys folded from ``rng`` and all counts at zero."""
        if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            rng = jax.random.wrap_key_data(rng)
        state = []
        for i, (shape, dtype) in enumerate(self.leaves):
            is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
            key = jax.random.fold_in(rng, i)
            state.append((jax.random.split(key, shape) if shape else key) if is_key else jnp.zeros(shape, dtype))
        return self.structure.unflatten(state)


@dataclass(frozen=True)
class NNXAdapter:
    """Calls an NNX model, rebuilt from its graph at every call; see :func:`from_nnx`."""

    name: str
    graphdef: Static
    shapes: Shapes
    streams: Streams
    needed: tuple[str, ...]
    factory: Callable[..., Any] | None
    method: str | None
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """The outputs of the model."""
        return self._call(params, state, rng, x, kwargs, lambda path, value: None)

    def capture(
        self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]
    ) -> tuple[PyTree, list[Call]]:
        """The outputs of the model, of its submodules, and what they sowed."""
        record = Recorder()
        return self._call(params, state, rng, x, kwargs, record), record.calls

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """New parameters and state."""
        if self.factory is None:
            raise ValueError(
                "this ModelFn was made from a live NNX model, whose values f.split(model) gives; for new ones make it "
                "from a factory: from_nnx(lambda rngs: Model(rngs=rngs))."
            )
        nnx = require("flax.nnx", extra="flax")
        _, params, state = nnx.split(self.factory(nnx.Rngs(rng)), nnx.Param, ...)
        return params, state

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Parameters and state of a live model, or of all its variables as ``nnx.state`` gives them."""
        nnx = require("flax.nnx", extra="flax")
        if isinstance(model, nnx.State):
            plain = not jax.tree.leaves(nnx.filter_state(model, nnx.Variable))  # as nnx.Optimizer hands parameters on
            if plain or not jax.tree.leaves(nnx.filter_state(model, nnx.Not(nnx.Param))):
                return None
            return nnx.split_state(model, nnx.Param, ...)
        if not isinstance(model, nnx.Module):
            return None
        _, params, _, state = nnx.split(model, nnx.Param, nnx.Intermediate, ...)
        # new variables: training goes on writing to those of the model
        return jax.tree.map(lambda value: value, (params, state))

    def _merge(self, params: PyTree, state: PyTree, rng: Any) -> Any:
        nnx = require("flax.nnx", extra="flax")
        check_params(self.name, self.shapes, params)
        if self.needed and not state:
            names = ", ".join(self.needed[:3]) + (", ..." if len(self.needed) > 3 else "")
            raise ValueError(
                f"state=None, but this model has variables that are not parameters ({names}); "
                "pass them: params, state = f.split(model), then f(params, x, state=state)."
            )
        rest = nnx.filter_state(state, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate))) if state else nnx.State({})
        random = self.streams.seeded(jax.random.key(0, impl=_refusing_keys()) if rng is None else rng)
        # copy: the model writes to its variables, and those of the caller must not change
        return nnx.merge(self.graphdef.value, params, random, rest, copy=True)

    def _call(
        self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any], record: Record
    ) -> PyTree:
        nnx = require("flax.nnx", extra="flax")
        model = self._merge(params, state, rng)
        paths = {}
        for path, module in nnx.iter_modules(model):
            paths[id(module)] = "/".join(map(str, path))
            kind: Any = type(module)
            object.__setattr__(module, "__class__", recording(kind))
        args, inputs = spread_input(x, self.spread)
        with watching(paths, record), explaining(self.name, params, x):
            return getattr(model, self.method or "__call__")(*args, **{**inputs, **dict(self.kwargs), **kwargs})


@cache
def _refusing_keys() -> Any:
    """Keys that may be folded and split, as many models do on their way, but give no random numbers."""

    def random_bits(key: Any, bits: int, shape: tuple[int, ...]) -> Any:
        raise ValueError(
            "rng=None, but this NNX model draws random numbers; pass rng=jax.random.key(0), or call model.eval() "
            "before from_nnx(model)."
        )

    from jax.extend.random import define_prng_impl  # here, for it takes long to import

    return define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: jnp.zeros((1,), jnp.uint32),
        split=lambda key, shape: jnp.zeros((*shape, 1), jnp.uint32),
        random_bits=random_bits,
        fold_in=lambda key, data: key,
        name="refusing",
        tag="refusing",
    )
