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

# A model can only exist if its framework is loaded, so no framework has to be imported to recognise it.
_MODEL_TYPES: tuple[tuple[str, tuple[str, ...], Callable[..., ModelFn]], ...] = (
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
    """Returns the :class:`ModelFn` of a model of any supported framework.

    Args:
        model: a Flax Linen module, a live Flax NNX model, a Haiku transformed function, an Equinox module, a Keras
            layer, or a :class:`ModelFn`, which is returned as it is.
        **adapter_kwargs: passed to the ``from_...`` function of the framework.

    Raises:
        TypeError: ``model`` is none of these.

    Example:
        >>> import flax.linen as nn, nngp_plugins as nngp
        >>> type(nngp.as_model_fn(nn.Dense(5)).adapter).__name__
        'LinenAdapter'
    """
    if isinstance(model, ModelFn):
        if adapter_kwargs:
            raise TypeError(f"as_model_fn got a ModelFn, which takes no {', '.join(adapter_kwargs)}; pass the model.")
        return model
    convert = _converter(model)
    if convert is None:
        if holds_module(model):
            raise TypeError(
                f"as_model_fn got a {type(model).__name__}, which holds a Flax Linen module; pass the module, "
                "as_model_fn(model.module), and model.params as the parameters."
            )
        raise TypeError(
            "as_model_fn takes a Flax Linen module, a Flax NNX model, what hk.transform returns, an Equinox module or "
            f"a Keras layer, got {reprlib.repr(model)}. A plain f(params, x) needs no adapter: pass it to "
            "empirical_nngp_fn. Pass a factory of NNX models to from_nnx."
        )
    return convert(model, **adapter_kwargs)


def is_model(model: Any) -> bool:
    """Returns whether :func:`as_model_fn` can convert ``model``."""
    return _converter(model) is not None


def holds_module(model: Any) -> bool:
    """Returns whether this is an object around a Linen module and its parameters, such as a model of Hugging Face."""
    linen = sys.modules.get("flax.linen")
    # dir() runs no code of the object, whose params may be a property that raises.
    return linen is not None and "params" in dir(model) and isinstance(getattr(model, "module", None), linen.Module)


def _converter(model: Any) -> Callable[..., ModelFn] | None:
    """Returns the ``from_...`` function for a model, or None."""
    for framework, types, from_framework in _MODEL_TYPES:
        loaded = sys.modules.get(framework)
        if loaded is not None and isinstance(model, tuple(getattr(loaded, name) for name in types)):
            return from_framework
    return None
