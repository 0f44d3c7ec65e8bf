"""Picking the adapter by the type of a model."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable
from typing import Any

from ._equinox import from_equinox
from ._haiku import from_haiku
from ._keras import from_keras
from ._linen import from_linen
from ._model_fn import ModelFn
from ._nnx import from_nnx

# An object of a framework exists only where that framework is loaded, so nothing is imported to find out.
_MODELS: tuple[tuple[str, tuple[str, ...], Callable[..., ModelFn]], ...] = (
    ("flax.linen", ("Module",), from_linen),
    ("flax.nnx", ("Module",), from_nnx),
    (
        "haiku",
        ("Transformed", "TransformedWithState", "MultiTransformed", "MultiTransformedWithState"),
        from_haiku,
    ),
    ("equinox", ("Module",), from_equinox),
    ("keras", ("Layer",), from_keras),
)


def as_model_fn(model: Any, **adapter_kwargs: Any) -> ModelFn:
    """The :class:`ModelFn` of a model of any supported framework.

    Args:
        model: a Flax Linen module, a live Flax NNX model, a Haiku transformed function, or a :class:`ModelFn`,
            which is returned as it is.
        **adapter_kwargs: passed to :func:`from_linen`, :func:`from_nnx` or :func:`from_haiku`.

    Raises:
        TypeError: none of these.

    Example:
        >>> import flax.linen as nn, nngp_plugins as nngp
        >>> type(nngp.as_model_fn(nn.Dense(5)).adapter).__name__
        'LinenAdapter'
    """
    if isinstance(model, ModelFn):
        if adapter_kwargs:
            raise TypeError(f"as_model_fn got a ModelFn, which takes no {', '.join(adapter_kwargs)}; pass the model.")
        return model
    if (adapter := _adapter(model)) is not None:
        return adapter(model, **adapter_kwargs)
    raise TypeError(
        "as_model_fn takes a Flax Linen module, a Flax NNX model or what hk.transform returns, got "
        f"{reprlib.repr(model)}. A plain f(params, x) needs no adapter: pass it to empirical_nngp_fn; a factory of NNX "
        "models goes to from_nnx."
    )


def is_model(model: Any) -> bool:
    """Whether :func:`as_model_fn` would convert it."""
    return _adapter(model) is not None


def _adapter(model: Any) -> Callable[..., ModelFn] | None:
    for framework, types, adapter in _MODELS:
        loaded = sys.modules.get(framework)
        if loaded is not None and isinstance(model, tuple(getattr(loaded, name) for name in types)):
            return adapter
    return None
