"""Plain functions."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._static import Static
from ._layers import Call
from ._model_fn import ModelFn, PyTree, frozen_kwargs


def from_callable(
    apply: Callable[..., PyTree], init: Callable[..., PyTree] | None = None, **call_kwargs: Any
) -> ModelFn:
    """A plain function ``apply(params, x, **kwargs)`` as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    For code that takes a :class:`ModelFn`. Its only layer is ``output``, or what ``output`` holds: return a dict of
    activations to have more.

    Args:
        apply: takes ``state=`` and ``rng=`` by keyword where it has need of them, and returns outputs alone.
        init: ``init(rng, x) -> params``, as ``f.init`` needs.
        **call_kwargs: passed at every call.

    Raises:
        TypeError: not a function.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> f = nngp.from_callable(lambda params, x: {"hidden": x @ params, "relu": jnp.maximum(x @ params, 0)})
        >>> list(f.layers()(jnp.ones((3, 5)), jnp.ones((4, 3))))
        ['output/hidden', 'output/relu']
    """
    for name, function in {"apply": apply, "init": init}.items():
        if not callable(function) and (name == "apply" or function is not None):
            raise TypeError(f"from_callable({name}={reprlib.repr(function)}) takes a function.")
    kwargs = frozen_kwargs("from_callable", None, call_kwargs)
    return ModelFn(CallableAdapter(Static(apply), None if init is None else Static(init), kwargs))


@dataclass(frozen=True)
class CallableAdapter:
    """Calls a function; see :func:`from_callable`."""

    function: Static
    init_function: Static | None
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """The outputs of the function."""
        given = {name: value for name, value in (("state", state), ("rng", rng)) if value is not None}
        taken = inspect.signature(self.function.value).parameters.values()
        if not any(a.kind is inspect.Parameter.VAR_KEYWORD for a in taken):
            for name in given.keys() - {a.name for a in taken}:
                raise ValueError(f"{name}= was given, but this function takes no {name}.")
        return self.function.value(params, x, **given, **{**dict(self.kwargs), **kwargs})

    def capture(
        self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]
    ) -> tuple[PyTree, list[Call]]:
        """The outputs of the function, which has no layers."""
        return self.apply(params, state, rng, x, kwargs), []

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """New parameters."""
        if self.init_function is None:
            raise ValueError("init=None, so there is nothing to make parameters with; pass from_callable(apply, init).")
        return self.init_function.value(rng, x, **kwargs), {}

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Nothing but the caller knows what holds both."""
        return None
