"""The adapter of Flax Linen."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from .._require import require
from .._static import Static
from .._typing import PyTree
from ._arguments import Spread, frozen_kwargs, spread_input
from ._explain_errors import explain_errors, owners_of
from ._model_fn import ModelFn
from ._tag import inside, joined, mark

# Intermediates and perturbations have the batch size of the call that made them, so they cannot persist.
_NOT_STATE = ("params", "intermediates", "perturbations")


def from_linen(
    module: Any,
    *,
    method: str | Callable[..., Any] | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
    spread: Spread = None,
    batch_axis: int = 0,
    **call_kwargs: Any,
) -> ModelFn:
    """A Flax Linen module as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    Args:
        module: an unbound module, as for ``module.apply``.
        method: the method to run instead of ``__call__``.
        rngs: names of the random streams that the model draws from. Each gets its own key, folded from ``rng``.
        mutable: collections that the model writes to during a call, such as ``"batch_stats"`` in train mode. What it
            writes is dropped.
        spread: ``"args"`` calls ``module(*x)``, ``"kwargs"`` calls ``module(**x)``.
        batch_axis: the axis of the batch in what the model takes and returns: 1 for ``(T, N, D)``, time first.
        **call_kwargs: passed at every call, such as ``train=False``.

    Returns:
        The :class:`ModelFn`. Its ``params`` is Linen's ``params`` collection; its ``state`` is the other collections.
        A full variables dict passed as ``params`` is recognised and split.

    Raises:
        TypeError: ``module`` is not a Linen module, or an argument cannot be hashed.
        ValueError: ``module`` is bound.
        AttributeError: the module has no such method.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn, nngp_plugins as nngp
        >>> f = nngp.from_linen(nn.Dense(5))
        >>> params, state = f.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> nngp.empirical_nngp_fn(f)(jnp.ones((4, 3)), None, params).shape
        (4, 4)
    """
    nn = require("flax.linen", extra="flax")
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_linen takes a flax.linen.Module instance, got {reprlib.repr(module)}.")
    if module.scope is not None:
        raise ValueError(f"this {name} is bound to variables; pass from_linen what module, _ = bound.unbind() gives.")
    if isinstance(method, str) and not hasattr(module, method):
        raise AttributeError(
            f"{name} has no method {method!r}; to run a submodule that setup() creates, pass a function, such as "
            f"method=lambda module, x: module.{method}(x)."
        )
    if isinstance(mutable, str) or isinstance(rngs, str):
        raise TypeError(f"rngs={rngs!r} and mutable={mutable!r} must be sequences of names, such as ('dropout',).")
    kwargs = frozen_kwargs("from_linen", spread, call_kwargs)
    adapter = LinenAdapter(Static(module), method, tuple(rngs), tuple(mutable), spread, kwargs)
    return ModelFn(adapter, batch_axis=batch_axis)


@dataclass(frozen=True)
class LinenAdapter:
    """Calls a Linen module; see :func:`from_linen`."""

    module: Static
    method: str | Callable[..., Any] | None
    rngs: tuple[str, ...]
    mutable: tuple[str, ...]
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the module."""
        outputs = self._apply(params, state, rng, x, kwargs, mutable=list(self.mutable) or False)
        return outputs[0] if self.mutable else outputs

    def tagged(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """Returns the outputs of the module; what its submodules return or sow is tagged."""
        nn = require("flax.linen", extra="flax")
        main = self.method if isinstance(self.method, str) else "__call__"

        def tagging(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            module, method = context.module, context.method_name
            path = "/".join(module.path)
            with inside(path, method) as level, _tagging_sow(module, path):
                outputs = call(*args, **kwargs)
            public = method == "__call__" or not (method.startswith("_") or hasattr(nn.Module, method))
            if not public or (not path and method == main):
                return outputs
            return mark(path, outputs, method=method, level=level)

        with nn.intercept_methods(tagging):
            return self.apply(params, state, rng, x, kwargs)

    def owners(self, params: PyTree) -> list[str]:
        """The path of the module of each parameter."""
        return owners_of(params)

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """Returns new parameters and state."""
        args, inputs = spread_input(x, self.spread)
        streams = {"params": rng, **self._streams(rng)}
        kwargs = {**inputs, **dict(self.kwargs), **kwargs}
        module = self.module.value
        variables = type(module).init(module, streams, *args, method=self.method, **kwargs)
        return self._split(variables)

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Returns parameters and state of a full variables dict."""
        is_variables = isinstance(model, Mapping) and isinstance(model.get("params"), Mapping)
        return self._split(model) if is_variables else None

    def _split(self, variables: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
        state = {name: value for name, value in variables.items() if name not in _NOT_STATE}
        return variables.get("params", {}), state

    def _streams(self, rng: Any) -> dict[str, Any]:
        return {} if rng is None else {name: jax.random.fold_in(rng, i) for i, name in enumerate(self.rngs)}

    def _apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any], **options: Any) -> Any:
        errors = require("flax.errors", extra="flax")
        args, inputs = spread_input(x, self.spread)
        module = self.module.value
        name = type(module).__name__
        key = jax.random.key(0) if rng is None else rng
        try:
            with explain_errors(name, params, x, lambda: self.init(key, x, kwargs)[0]):
                # A training script may have put a compiled function in place of module.apply, so the class is asked.
                return type(module).apply(
                    module,
                    {**(state or {}), "params": params},
                    *args,
                    rngs=self._streams(rng),
                    method=self.method,
                    **options,
                    **inputs,
                    **{**dict(self.kwargs), **kwargs},
                )
        except errors.InvalidRngError as error:
            if rng is not None:
                raise ValueError(
                    f"rngs={self.rngs!r}, but {name} draws from a stream of another name; name all of them, such as "
                    "from_linen(module, rngs=('dropout', 'noise'))."
                ) from error
            raise ValueError(
                f"rng=None, but {name} draws random numbers; pass rng=jax.random.key(0), or "
                "call it in its deterministic mode, such as from_linen(module, deterministic=True)."
            ) from error
        except errors.ModifyScopeVariableError as error:
            raise ValueError(
                f"{name} writes to its variables when it runs; name their collections, such as from_linen(module, "
                "mutable=['batch_stats']), or call it in its evaluation mode, such as from_linen(module, train=False)."
            ) from error
        except (errors.ScopeCollectionNotFound, errors.ScopeVariableNotFoundError) as error:
            given = f"state holds {', '.join(map(repr, state))}" if state else "state=None"
            raise ValueError(
                f"{given}, but {name} has variables outside 'params'; pass them as state=, "
                "such as state={'batch_stats': variables['batch_stats']}."
            ) from error


@contextmanager
def _tagging_sow(module: Any, path: str) -> Iterator[None]:
    """Within this context, what a bound module sows is tagged, wherever the module runs."""
    if "sow" in vars(module):
        yield
        return

    def sow(collection: str, name: str, value: Any, *args: Any, **kwargs: Any) -> bool:
        mark(joined(path, name), value)
        sown: bool = type(module).sow(module, collection, name, value, *args, **kwargs)
        return sown

    # Modules refuse attributes that are set from outside, and this one is gone after the call.
    object.__setattr__(module, "sow", sow)
    try:
        yield
    finally:
        object.__delattr__(module, "sow")
