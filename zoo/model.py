"""A model of the zoo: the plain model, its functions, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nngp_plugins import ModelFn

from .frameworks import Adapted, Forward, has_statistics, inputs
from .optimizers import optimizer
from .parametrisation import Scale, Scaled
from .spec import Spec


@dataclass(frozen=True)
class Model:
    """What :func:`zoo.get` returns.

    Attributes:
        name: its name, as it was asked for.
        family: its architecture, or the name of somebody else's builder.
        knobs: the value of every knob.
        spec: the inputs that it is built for.
        module: the plain model of its framework, which knows nothing of the parametrisation.
        adapted: the model as functions, with the parametrisation.
        scales: how each parameter differs from what the plain model makes, in the order of the leaves.
        task: what it is trained for, see :mod:`zoo.tasks`.
        limit: the Gaussian process of its infinite-width limit, with its source; empty if none is known.
    """

    name: str
    family: str
    knobs: Mapping[str, Any]
    spec: Spec
    module: Any
    adapted: Adapted
    scales: tuple[Scale, ...]
    task: str = "classify"
    limit: str = ""

    @property
    def framework(self) -> str:
        """``"linen"``, ``"nnx"``, ``"haiku"`` or ``"other"``."""
        return self.adapted.framework

    @property
    def f(self) -> ModelFn:
        """The model as it is measured, ``f(params, x, state=state)``: running statistics, no dropout."""
        return self.adapted.f

    @property
    def forward(self) -> Forward:
        """The model as it is trained, ``forward(params, state, x, rng) -> (outputs, state)``."""
        return self.adapted.forward

    def inputs(self, n: int = 1) -> jax.ShapeDtypeStruct:
        """Returns shape and dtype of ``n`` examples."""
        return inputs(self.spec, n)

    def init(self, rng: jax.Array, batch: Any = None) -> tuple[Any, Any]:
        """Returns new parameters and state, made by one compiled program, and one more for the statistics of a batch.

        Args:
            rng: the key that they are drawn from.
            batch: training inputs whose statistics the running statistics start from, as in Park et al. 2020; None for
                what the framework starts from, which is a variance of 1 in Flax, and of 0 in Haiku.
        """
        if isinstance(rng, jax.core.Tracer):
            # JAX takes options of the compiler for a whole program only, and this is part of the caller's.
            params, state = self._init.__wrapped__(rng)
        else:
            with jax.ensure_compile_time_eval():
                params, state = self._init(rng)
        return params, state if batch is None or not has_statistics(state) else self._statistics(params, state, batch)

    @cached_property
    def _init(self) -> Any:
        def init(rng: Any) -> tuple[Any, Any]:
            return self.adapted.init(rng, jnp.zeros((1, *self.spec.shape), self.spec.dtype))

        # Random numbers are drawn a few times only, and compiling that at full optimisation takes twice as long.
        return jax.jit(init, compiler_options={"xla_backend_optimization_level": 1})

    @cached_property
    def _statistics(self) -> Any:
        return jax.jit(self.adapted.statistics)

    @cached_property
    def shapes(self) -> tuple[Any, Any]:
        """Shapes of parameters and state."""
        return self.adapted.shapes(self.spec)

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes[0]))

    def optimizer(self, name: str, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        """Returns an optimizer in which each parameter learns at the rate of the parametrisation.

        Args:
            name: ``"adam"``, ``"adamw"``, ``"lion"``, ``"sgd"`` or ``"momentum"``.
            learning_rate: the rate, or a schedule of it.
        """
        return optimizer(name, learning_rate, self.scales)


def scaled(adapted: Adapted, scales: tuple[Scale, ...], dtype: str) -> Adapted:
    """Returns the functions of a model with scaled parameters."""
    adapter = Scaled(adapted.f.adapter, scales, dtype)
    return replace(adapted, f=replace(adapted.f, adapter=adapter), forward=adapter.forward(adapted.forward))
