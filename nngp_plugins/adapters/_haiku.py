"""The adapter of Haiku."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from .._require import require
from .._typing import PyTree
from ._arguments import Spread, frozen_kwargs, spread_input
from ._explain_errors import explain
from ._model_fn import ModelFn
from ._tag import STACKED, inside, mark


def from_haiku(
    transformed: Any, *, method: str | None = None, spread: Spread = None, batch_axis: int = 0, **call_kwargs: Any
) -> ModelFn:
    """A Haiku transformed function as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    Args:
        transformed: what ``hk.transform``, ``hk.transform_with_state``, ``hk.multi_transform`` or
            ``hk.multi_transform_with_state`` returns, with or without ``hk.without_apply_rng``.
        method: for a multi-transform, the name of the function to apply.
        spread: ``"args"`` calls the function with ``*x``, ``"kwargs"`` with ``**x``.
        batch_axis: the axis of the batch in what the model takes and returns: 1 for ``(T, N, D)``, time first.
        **call_kwargs: passed at every call, such as ``is_training=False``.

    Returns:
        The :class:`ModelFn`, with Haiku's params and Haiku's state.

    Raises:
        TypeError: ``transformed`` is none of these.
        ValueError: a multi-transform is given without a ``method``, or with one that it does not have.

    Example:
        >>> import haiku as hk, jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> f = nngp.from_haiku(hk.transform(lambda x: hk.nets.MLP([16, 5])(x)))
        >>> params, state = f.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> nngp.empirical_nngp_fn(f)(jnp.ones((4, 3)), None, params).shape
        (4, 4)
    """
    hk = require("haiku", extra="haiku")
    multi = isinstance(transformed, hk.MultiTransformed | hk.MultiTransformedWithState)
    if not multi and not isinstance(transformed, hk.Transformed | hk.TransformedWithState):
        raise TypeError(f"from_haiku takes what hk.transform(fn) returns, got {reprlib.repr(transformed)}.")
    apply = transformed.apply
    if multi:
        if not isinstance(apply, dict) or method not in apply:
            names = ", ".join(map(repr, apply)) if isinstance(apply, dict) else "not named: return a dict of them"
            raise ValueError(f"method={method!r} names none of this multi-transform's functions, which are {names}.")
        apply = apply[method]
    elif method is not None:
        raise ValueError(f"method={method!r} chooses a function of a multi-transform, and this is a single function.")
    with_state = isinstance(transformed, hk.TransformedWithState | hk.MultiTransformedWithState)
    # hk.without_apply_rng removes this argument, and only the signature shows it.
    arguments_before_x = list(inspect.signature(apply).parameters)[: 3 if with_state else 2]
    with_rng = arguments_before_x[-1] == "rng"
    kwargs = frozen_kwargs("from_haiku", spread, call_kwargs)
    adapter = HaikuAdapter(transformed.init, apply, with_state, with_rng, spread, kwargs)
    return ModelFn(adapter, batch_axis=batch_axis)


@dataclass(frozen=True)
class HaikuAdapter:
    """Calls a transformed function; see :func:`from_haiku`."""

    init_fn: Callable[..., Any]
    apply_fn: Callable[..., Any]
    with_state: bool
    with_rng: bool
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the function."""
        if rng is not None and not self.with_rng:
            raise ValueError(
                "rng was given, but hk.without_apply_rng removed this argument; pass from_haiku the transformed "
                "function without hk.without_apply_rng."
            )
        args, inputs = spread_input(x, self.spread)
        before_x = [params]
        if self.with_state:
            before_x.append(state or {})
        if self.with_rng:
            before_x.append(rng)
        try:
            outputs = self.apply_fn(*before_x, *args, **inputs, **{**dict(self.kwargs), **kwargs})
        except Exception as error:
            if (message := self._explain(error, params, state, rng, x, kwargs)) is None:
                raise
            raise ValueError(message) from error
        return outputs[0] if self.with_state else outputs

    def _explain(
        self, error: Exception, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]
    ) -> str | None:
        """Returns a message for an error of the function; None if there is nothing to add to it."""
        if self.with_state and not state and ("state" in str(error) or "No value for" in str(error)):
            return (
                "state=None, but this Haiku function has a state; pass it: params, state = f.init(rng, x), then "
                "f(params, x, state=state)."
            )
        if rng is None and "PRNGKey" in str(error):
            return (
                "rng=None, but this Haiku function draws random numbers; pass rng=jax.random.key(0), or call it in "
                "its deterministic mode, such as from_haiku(transformed, is_training=False)."
            )
        # Batch norm can be initialised in training mode only.
        training = {"is_training": True} if "is_training" in {**dict(self.kwargs), **kwargs} else {}
        key = jax.random.key(0) if rng is None else rng
        return explain(error, "this Haiku function", params, x, lambda: self.init(key, x, {**kwargs, **training})[0])

    def tagged(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the function; what its modules return is tagged."""
        with require("haiku", extra="haiku").intercept_methods(_Tagging(params)):
            return self.apply(params, state, rng, x, kwargs)

    def owners(self, params: PyTree) -> list[str]:
        """The path of the module of each parameter."""
        return [_readable(path) for path in params]

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """Returns new parameters and state."""
        args, inputs = spread_input(x, self.spread)
        variables = self.init_fn(rng, *args, **inputs, **{**dict(self.kwargs), **kwargs})
        return variables if self.with_state else (variables, {})

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Returns None, because Haiku has no object that holds both parameters and state."""
        return None


class _Tagging:
    """Tags what the methods of modules return.

    The modules inside ``hk.experimental.layer_stack`` have names of their own, without that of the stack. What the
    stack lifts into the parameters comes right before them, and the names in the parameters hold both.
    """

    def __init__(self, params: Mapping[str, Any]):
        self._known = {"/".join(path.split("/")[:i]) for path in params for i in range(1, path.count("/") + 2)}
        self._lifts: list[tuple[str, Any]] = []
        self._stacks: set[str] = set()

    def __call__(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        if method.startswith("_") and method != "__call__":
            return call(*args, **kwargs)
        raw = path = module.module_name
        if self._lifts:
            raw = self._raw_path(raw)
            path = self._marked(raw)
        with inside(path, method) as level:
            outputs = call(*args, **kwargs)
        if type(module).__name__ == "LiftingModule":
            self._lifts.append((raw, _trace_state()))
            self._stacks.add(raw)
            return outputs
        return mark(path, outputs, method=method, level=level)

    def _raw_path(self, name: str) -> str:
        """The path of a module in the parameters."""
        here = _trace_state()
        of_here = [i for i, (_, trace) in enumerate(self._lifts) if trace == here]
        if of_here:
            del self._lifts[of_here[-1] + 1 :]  # The scans of these are over.
        # A stack that was lifted here is over, or has no scan, so its names come last.
        running = [f"{path}/{name}" for path, trace in reversed(self._lifts) if trace != here]
        over = [f"{path}/{name}" for path, trace in reversed(self._lifts) if trace == here]
        candidates = [*running, name, *over]
        return next((path for path in candidates if path in self._known), candidates[0])

    def _marked(self, raw: str) -> str:
        """A readable path that says where the index of a layer comes."""
        parts = raw.split("/")
        for i in range(len(parts) - 1, 0, -1):
            if "/".join(parts[:i]) in self._stacks:
                parts.insert(i, STACKED)
        return _readable("/".join(parts))


def _readable(path: str) -> str:
    """A path without the name that a layer stack has if its user gave it none."""
    return re.sub(r"__layer_stack_(no|with)_per_layer", "layer_stack", path)


def _trace_state() -> Any:
    """Returns an object that compares equal within one transformation and unequal between two."""
    try:
        from jax.extend.core import get_opaque_trace_state
    except ImportError:  # JAX before 0.10 has it in jax.core.
        from jax.core import get_opaque_trace_state
    typed: Callable[..., Any] = get_opaque_trace_state
    return typed(convention="nngp")
