"""A plain model of any framework as two functions: one to measure, and one to train."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nngp_plugins import ModelFn, as_model_fn, from_haiku, from_linen, from_nnx

from .spec import Spec

Forward = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
# The names of the switch between training and evaluation, each with its value in training.
SWITCHES = {"train": True, "training": True, "is_training": True, "deterministic": False}


@dataclass(frozen=True)
class Adapted:
    """A plain model as two functions.

    Attributes:
        framework: ``"linen"``, ``"nnx"``, ``"haiku"``, or ``"other"``.
        f: the model as it is measured: running statistics, no dropout.
        forward: the model as it is trained, ``(params, state, x, rng) -> (outputs, state)``.
        init_kwargs: what ``f.init`` needs.
    """

    framework: str
    f: ModelFn
    forward: Forward
    init_kwargs: tuple[tuple[str, Any], ...] = ()

    def init(self, rng: Any, x: Any) -> tuple[Any, Any]:
        """Returns new parameters and state."""
        return self.f.init(rng, x, **dict(self.init_kwargs))

    def statistics(self, params: Any, state: Any, batch: Any) -> Any:
        """Returns a state that has running statistics with those of one batch in their place."""
        if self.framework != "linen" and self.framework != "nnx":
            return self.forward(params, state, batch, None)[1]  # Haiku removes the bias of its running means

        def updated(old: Any) -> Any:
            given = jax.tree.map(lambda a: jnp.full_like(a, old) if _is_float(a) else a, state)
            return self.forward(params, given, batch, None)[1]

        # Flax computes m · old + (1 − m) · new, and two old values give m and new. Only this is done twice under vmap:
        # the activations do not depend on the old values.
        both = jax.vmap(updated)(jnp.arange(2.0))
        return jax.tree.map(lambda a: a[0] / (1 - (a[1] - a[0])) if _is_float(a) else a[0], both)

    def shapes(self, spec: Spec) -> tuple[Any, Any]:
        """Returns the shapes of parameters and state."""
        return jax.eval_shape(self.init, jax.random.key(0), inputs(spec))


def inputs(spec: Spec, n: int = 1) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of ``n`` examples."""
    return jax.ShapeDtypeStruct((n, *spec.shape), spec.dtype)


def has_statistics(state: Any) -> bool:
    """Returns whether a state holds running statistics, which are its floating-point numbers."""
    return any(map(_is_float, jax.tree.leaves(state)))


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def adapt(model: Any, spec: Spec) -> Adapted:
    """Returns the two functions of a model.

    Args:
        model: a Linen module, a factory of NNX modules ``rngs -> module``, what ``hk.transform`` or
            ``hk.transform_with_state`` returns, a :class:`nngp_plugins.ModelFn`, or what ``as_model_fn`` takes.
        spec: its inputs.

    Raises:
        TypeError: it is no model, or a live NNX module, which has no way to start anew.
    """
    if is_of(model, "flax.linen", "Module"):
        return _linen(model)
    if is_of(model, "haiku", "Transformed", "TransformedWithState"):
        return _haiku(model, inputs(spec))
    if is_of(model, "flax.nnx", "Module"):
        raise TypeError("a live NNX module cannot start anew; return a function rngs -> module in its place.")
    if inspect.isfunction(model):
        return _nnx(model)
    f = as_model_fn(model)

    def forward(params: Any, state: Any, x: Any, rng: Any) -> tuple[Any, Any]:
        return f(params, x, state=state if jax.tree.leaves(state) else None), state

    return Adapted("other", f, forward)


def is_of(model: Any, framework: str, *types: str) -> bool:
    """Returns whether a model is of such a type, without importing a framework that is not loaded."""
    loaded = sys.modules.get(framework)
    return loaded is not None and isinstance(model, tuple(getattr(loaded, name) for name in types))


def _linen(module: Any) -> Adapted:
    known = inspect.signature(type(module).__call__).parameters
    switch = {name: value for name, value in SWITCHES.items() if name in known}
    evaluating: dict[str, Any] = {name: not value for name, value in switch.items()}
    f = from_linen(module, **evaluating)

    def forward(params: Any, state: Any, x: Any, rng: Any) -> tuple[Any, Any]:
        rngs = None if rng is None else {"dropout": rng}
        variables = {"params": params, **(state or {})}
        return module.apply(variables, x, rngs=rngs, mutable=[*(state or {})], **switch)

    return Adapted("linen", f, forward)


def _haiku(transformed: Any, x: jax.ShapeDtypeStruct) -> Adapted:
    has_state, switch = is_of(transformed, "haiku", "TransformedWithState"), {}
    for name, value in SWITCHES.items():
        try:
            jax.eval_shape(partial(transformed.init, **{name: value}), jax.random.key(0), x)
        except TypeError:
            continue
        switch = {name: value}
        break
    evaluating: dict[str, Any] = {name: not value for name, value in switch.items()}
    f = from_haiku(transformed, **evaluating)

    def forward(params: Any, state: Any, x: Any, rng: Any) -> tuple[Any, Any]:
        if has_state:
            return transformed.apply(params, state, rng, x, **switch)
        return transformed.apply(params, rng, x, **switch), state

    return Adapted("haiku", f, forward, tuple(switch.items()))


def _nnx(factory: Callable[[Any], Any]) -> Adapted:
    from flax import nnx

    def evaluated(rngs: nnx.Rngs) -> nnx.Module:
        model = factory(rngs)
        model.eval()
        return model

    def trained() -> nnx.Module:
        model = factory(nnx.Rngs(0))
        model.train()
        return model

    graph = nnx.graphdef(nnx.eval_shape(trained))

    def forward(params: Any, state: Any, x: Any, rng: Any) -> tuple[Any, Any]:
        model = nnx.merge(graph, params, state, copy=True)
        if rng is not None:
            nnx.reseed(model, default=rng)
        y = model(x)
        return y, nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate)))

    return Adapted("nnx", from_nnx(evaluated), forward)
