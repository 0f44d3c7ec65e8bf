"""The one form that every framework's model takes here: ``f(params, x, **kwargs)``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax

from ._layers import Call, select
from ._summary import Summary

PyTree = Any
Spread = Literal["args", "kwargs"] | None


class Adapter(Protocol):
    """What a framework's file provides; frozen and hashable, so that compiled functions are reused."""

    def apply(self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        """The outputs of the model."""

    def capture(
        self, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any]
    ) -> tuple[PyTree, list[Call]]:
        """The outputs of the model, and of each call of a layer in forward order."""

    def init(self, rng: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, PyTree]:
        """New parameters and state."""

    def split(self, model: Any) -> tuple[PyTree, PyTree] | None:
        """Parameters and state of what holds both in this framework; None where it is something else."""


@dataclass(frozen=True)
class ModelFn:
    """A model as a pure function ``f(params, x, *, state=None, rng=None, **kwargs)``.

    Made by :func:`as_model_fn` or the ``from_...`` function of a framework; frozen and hashable, so it may be a static
    argument of ``jax.jit``; works under ``jit``, ``grad`` and ``vmap``.

    Attributes:
        adapter: the framework's part.
        patterns: names of the layers that are the outputs; None for the model's own output.
    """

    adapter: Adapter
    patterns: tuple[str, ...] | None = None

    def __call__(
        self, params: PyTree, x: PyTree, *, state: PyTree = None, rng: jax.Array | None = None, **kwargs: Any
    ) -> PyTree:
        """Runs the model; updates of its state are dropped.

        Args:
            params: what optax trains. Whatever :meth:`split` takes is split.
            x: inputs, batch axis 0.
            state: all else that persists, such as running statistics.
            rng: a key that feeds every stochastic layer; None runs deterministically.
            **kwargs: passed to the model over those given to the adapter.

        Returns:
            The model's outputs or, after :meth:`layers`, an ``OrderedDict`` of activations by layer.

        Raises:
            TypeError: ``params`` is a ``TrainState``, or ``rngs`` is passed in place of ``rng``.
            ValueError: the model needs a ``state`` or an ``rng`` that was not given; a pattern matches no layer.
        """
        if "rngs" in kwargs:
            raise TypeError(
                "rngs=... is not an argument of a ModelFn; pass one key as rng=, it is folded for each name."
            )
        if rng is not None and not hasattr(rng, "dtype"):
            raise TypeError(f"rng={rng!r} is not a key; pass rng=jax.random.key({rng!r}).")
        params, state = self.variables(params, state)
        if self.patterns is None:
            return self.adapter.apply(params, state, rng, x, kwargs)
        outputs, calls = self.adapter.capture(params, state, rng, x, kwargs)
        return select(calls, outputs, x, self.patterns)

    def init(self, rng: jax.Array, x: PyTree, **kwargs: Any) -> tuple[PyTree, PyTree]:
        """New parameters.

        Args:
            rng: the key to draw them from.
            x: inputs as for a call; only shapes and dtypes matter.
            **kwargs: passed to the model over those given to the adapter, such as ``train=True``.

        Returns:
            ``(params, state)``; the state is empty for a model that has none.
        """
        return self.adapter.init(rng, x, kwargs)

    def split(self, model: Any) -> tuple[PyTree, PyTree]:
        """The current values of a model: an NNX model at any time in training, or a Linen variables dict.

        Returns:
            ``(params, state)`` as :meth:`init` gives them.
        """
        parts = self.adapter.split(model)
        if parts is None:
            raise TypeError(
                f"cannot split {type(model).__name__} into params and state; pass a live NNX model to the ModelFn "
                "of from_nnx, or a full variables dict to that of from_linen."
            )
        return parts

    def layers(self, *patterns: str) -> ModelFn:
        """The same model with layers as its outputs.

        Args:
            *patterns: :mod:`fnmatch` patterns on the path of a layer, such as ``"Dense_*"``; with ``!`` in front, of
                layers to leave out, such as ``"!*dropout*"``. None means all layers.

        Returns:
            A :class:`ModelFn` whose outputs are ``{"path/of/layer": activation}`` in forward order. A module called
            twice gives ``name`` and ``name#1``; tuple outputs give ``name/0``; the model's own output comes last as
            ``output``, unless a layer already returned that very array. Left out are outputs whose axis 0 does not have
            the size of the batch, and layers called inside a transformation within the model (``scan``, ``vmap``,
            ``remat``, ``jit``).

        Example:
            >>> import jax, jax.numpy as jnp, flax.linen as nn, nngp_plugins as nngp
            >>> f = nngp.from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]))
            >>> x = jnp.ones((4, 3))
            >>> params, state = f.init(jax.random.key(0), x)
            >>> [(name, y.shape) for name, y in f.layers()(params, x).items()]
            [('layers_0', (4, 8)), ('layers_2', (4, 2))]
        """
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"layers({pattern!r}) takes patterns as strings, such as f.layers('Dense_*', 'head').")
        return replace(self, patterns=patterns or ("*",))

    def layer_shapes(
        self, params: PyTree, x: PyTree, *, state: PyTree = None, rng: jax.Array | None = None, **kwargs: Any
    ) -> OrderedDict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the layers' outputs, in forward order; computes nothing."""
        f = self if self.patterns is not None else self.layers()
        params, state = self.variables(params, state)

        def run(params: PyTree, state: PyTree, rng: Any, x: PyTree) -> PyTree:
            return f(params, x, state=state, rng=rng, **kwargs)

        return jax.eval_shape(run, params, state, rng, x)

    def summary(
        self, params: PyTree, x: PyTree, *, state: PyTree = None, rng: jax.Array | None = None, **kwargs: Any
    ) -> Summary:
        """The layers with their shapes and what their kernels cost: ``print`` shows a table; computes nothing.

        Example:
            >>> import jax, jax.numpy as jnp, flax.linen as nn, nngp_plugins as nngp
            >>> f = nngp.from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]))
            >>> x = jnp.ones((4, 3))
            >>> f.summary(f.init(jax.random.key(0), x)[0], x).flops
            {'layers_0': 256, 'layers_2': 64}
        """
        return Summary(self.layer_shapes(params, x, state=state, rng=rng, **kwargs))

    def variables(self, params: PyTree, state: PyTree = None) -> tuple[PyTree, PyTree]:
        """Parameters and state as plain PyTrees, from whatever holds them.

        Args:
            params: parameters, which pass through, or anything that :meth:`split` takes.
            state: the state; None takes what ``params`` holds.

        Raises:
            TypeError: ``params`` is a ``TrainState``.
        """
        if hasattr(params, "opt_state") and hasattr(params, "params"):
            raise TypeError(
                f"params is a {type(params).__name__}; pass its .params, and the rest of the model's variables "
                "(such as {'batch_stats': train_state.batch_stats}) as state=."
            )
        parts = self.adapter.split(params)
        if parts is None:
            return params, state
        params, found = parts
        return params, found if state is None else state


def spread_input(x: PyTree, spread: Spread) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the model is called: ``model(x)``, ``model(*x)`` or ``model(**x)``."""
    if spread == "args":
        return tuple(x), {}
    return ((), dict(x)) if spread == "kwargs" else ((x,), {})


def frozen_kwargs(adapter: str, spread: Spread, kwargs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The adapter's keyword arguments in hashable form, checked together with ``spread``."""
    if spread not in (None, "args", "kwargs"):
        raise ValueError(
            f"spread={spread!r} must be None for model(x), 'args' for model(*x) or 'kwargs' for model(**x)."
        )
    for name, value in kwargs.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{adapter}(..., {name}=...) got an unhashable {type(value).__name__}; flags and numbers go here, "
                f"arrays go to the call: f(params, x, {name}=...)."
            ) from None
    return tuple(sorted(kwargs.items()))
