"""Flax Linen."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .._require import require
from .._static import Static
from ._layers import Call
from ._mismatch import explaining
from ._model_fn import ModelFn, PyTree, Spread, frozen_kwargs, spread_input

Path = tuple[str, ...]

_NOT_STATE = ("params", "intermediates", "perturbations")  # the last two have the batch of the call that made them


def from_linen(
    module: Any,
    *,
    method: str | Callable[..., Any] | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
    spread: Spread = None,
    **call_kwargs: Any,
) -> ModelFn:
    """A Flax Linen module as ``f(params, x, *, state=None, rng=None, **kwargs)``.

    Args:
        module: the module, unbound, as for ``module.apply``.
        method: the method to run in place of ``__call__``.
        rngs: names of the random streams that the model draws from; each gets its own key, folded from ``rng``.
        mutable: collections that the model writes to as it runs, such as ``"batch_stats"`` in train mode. What it
            writes is dropped.
        spread: ``"args"`` calls ``module(*x)``, ``"kwargs"`` calls ``module(**x)``.
        **call_kwargs: passed at every call, such as ``train=False``.

    Returns:
        The :class:`ModelFn`. Its ``params`` is Linen's ``params`` collection, its ``state`` the other collections.
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
        raise ValueError(f"this {name} is bound to variables; pass from_linen the first of bound.unbind().")
    if isinstance(method, str) and not hasattr(module, method):
        raise AttributeError(
            f"{name} has no method {method!r}; for what its setup makes pass a function, such as "
            f"method=lambda module, x: module.{method}(x)."
        )
    if isinstance(mutable, str) or isinstance(rngs, str):
        raise TypeError(f"rngs={rngs!r} and mutable={mutable!r} are sequences of names, such as ('dropout',).")
    kwargs = frozen_kwargs("from_linen", spread, call_kwargs)
    return ModelFn(LinenAdapter(Static(module), method, tuple(rngs), tuple(mutable), spread, kwargs))


@dataclass(frozen=True)
class LinenAdapter:
    """Calls a Linen module; see :func:`from_linen`."""

    static: Static
    method: str | Callable[..., Any] | None
    rngs: tuple[str, ...]
    mutable: tuple[str, ...]
    spread: Spread
    kwargs: tuple[tuple[str, Any], ...]

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """The outputs of the module."""
        outputs = self._apply(params, state, rng, x, kwargs, mutable=list(self.mutable) or False)
        return outputs[0] if self.mutable else outputs

    def capture(
        self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]
    ) -> tuple[PyTree, list[Call]]:
        """The outputs of the module, of its submodules, and what they sowed."""
        order: list[Path] = []

        def see(module: Any, method: str) -> bool:
            # Flax asks this as each call returns, which is the only record of forward order that it leaves.
            if method != "__call__":
                return False
            order.append(module.path)
            return True

        outputs, variables = self._apply(
            params, state, rng, x, kwargs, mutable=["intermediates", *self.mutable], capture_intermediates=see
        )
        return outputs, _in_forward_order(order, variables.get("intermediates", {}))

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """New parameters and state."""
        args, inputs = spread_input(x, self.spread)
        streams = {"params": rng, **self._streams(rng)}
        kwargs = {**inputs, **dict(self.kwargs), **kwargs}
        variables = self.static.value.init(streams, *args, method=self.method, **kwargs)
        return self._split(variables)

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Parameters and state of a full variables dict."""
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
        name = type(self.static.value).__name__
        key = jax.random.key(0) if rng is None else rng
        try:
            with explaining(name, params, x, lambda: self.init(key, x, kwargs)[0]):
                return self.static.value.apply(
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
                raise
            raise ValueError(
                f"rng=None, but {name} draws random numbers; pass rng=jax.random.key(0), or "
                "call it in its deterministic mode, such as from_linen(module, deterministic=True)."
            ) from error
        except errors.ModifyScopeVariableError as error:
            raise ValueError(
                f"{name} writes to its variables as it runs; name their collections, such as from_linen(module, "
                "mutable=['batch_stats']), or call it in its evaluation mode, such as from_linen(module, train=False)."
            ) from error
        except (errors.ScopeCollectionNotFound, errors.ScopeVariableNotFoundError) as error:
            given = f"state holds {', '.join(map(repr, state))}" if state else "state=None"
            raise ValueError(
                f"{given}, but {name} has variables outside 'params'; pass them as state=, "
                "such as state={'batch_stats': variables['batch_stats']}."
            ) from error


def _in_forward_order(order: Sequence[Path], intermediates: Mapping[str, Any]) -> list[Call]:
    """The calls of submodules in the order seen, and after them, where it was sown, what modules sowed."""
    called: dict[Path, list[int]] = {}
    found: list[tuple[float, Path, Any]] = []
    for place, path in enumerate(order):
        values = _get(intermediates, path).get("__call__", ())
        if len(called.setdefault(path, [])) < len(values):
            found.append((place, path, values[len(called[path])]))
            called[path].append(place)
    for path, name, values, previous in _sown(intermediates):
        # the j-th value comes after the j-th call of the submodule that wrote before it, else as its module starts
        start = [min((places[0] for p, places in called.items() if p[: len(path)] == path and places), default=0) - 0.5]
        after = called.get(previous) if previous else [*start, *called.get(path, ())]
        for j, value in enumerate(values if isinstance(values, tuple) else (values,)):
            found.append(((after or start)[min(j, len(after or start) - 1)], (*path, name), value))
    return [("/".join(path), value) for _, path, value in sorted(found, key=lambda call: call[0]) if path]


def _get(tree: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    for name in path:
        tree = tree.get(name, {})
    return tree


def _sown(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, str, Any, Path | None]]:
    """What modules sowed, as (path of the module, name, values, path of the submodule that wrote before it)."""
    previous = None
    for name, value in tree.items():
        if isinstance(value, Mapping):
            previous = (*path, name)
            yield from _sown(value, previous)
        elif name != "__call__":
            yield path, name, value, previous
