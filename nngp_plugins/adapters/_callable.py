"""The adapter of plain functions."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._static import Static
from .._typing import PyTree
from ._arguments import accepts_argument, frozen_kwargs
from ._model_fn import ModelFn


def from_callable(
    apply: Callable[..., PyTree],
    init: Callable[..., PyTree] | None = None,
    *,
    batch_axis: int = 0,
    **call_kwargs: Any,
) -> ModelFn:
    """A plain function ``apply(params, x, **kwargs)`` as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    Use it where code takes a :class:`ModelFn`. Its only layer is ``output``. If ``apply`` returns a dict of
    activations, each of them is a layer inside ``output``.

    Args:
        apply: returns outputs only. If it needs a state or a key, it takes ``state=`` and ``rng=`` by keyword.
        init: ``init(rng, x) -> params``, which ``f.init`` needs.
        batch_axis: the axis of the batch in what the model takes and returns: 1 for ``(T, N, D)``, time first.
        **call_kwargs: passed at every call.

    Raises:
        TypeError: ``apply`` or ``init`` is not a function.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> f = nngp.from_callable(lambda params, x: {"hidden": x @ params, "relu": jnp.maximum(x @ params, 0)})
        >>> list(f.layers()(jnp.ones((3, 5)), jnp.ones((4, 3))))
        ['output/hidden', 'output/relu']
    """
    if not callable(apply):
        raise TypeError(f"from_callable(apply={reprlib.repr(apply)}) takes a function.")
    if init is not None and not callable(init):
        raise TypeError(f"from_callable(init={reprlib.repr(init)}) takes a function.")
    kwargs = frozen_kwargs("from_callable", None, call_kwargs)
    adapter = CallableAdapter(Static(apply), None if init is None else Static(init), kwargs)
    return ModelFn(adapter, batch_axis=batch_axis)


@dataclass(frozen=True)
class CallableAdapter:
    """Calls a function; see :func:`from_callable`."""

    function: Static
    init_function: Static | None
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the function."""
        given = {name: value for name, value in (("state", state), ("rng", rng)) if value is not None}
        for name in given:
            if not accepts_argument(self.function.value, name):
                raise ValueError(f"{name}= was given, but this function takes no {name}.")
        return self.function.value(params, x, **given, **{**dict(self.kwargs), **kwargs})

    def tagged(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the function, which tags its layers itself, by :func:`tag`."""
        return self.apply(params, state, rng, x, kwargs)

    def owners(self, params: PyTree) -> list[str]:
        """Returns an empty list, because a function has no modules."""
        return []

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """Returns new parameters and an empty state."""
        if self.init_function is None:
            raise ValueError(
                "init=None, so f.init cannot make parameters; pass a function for it: from_callable(apply, init)."
            )
        return self.init_function.value(rng, x, **kwargs), {}

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Returns None, because a function has no object that holds both parameters and state."""
        return None
