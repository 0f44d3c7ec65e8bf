"""Where the scale of a weight is, and how fast it learns: standard, NTK and maximal-update parametrisation.

A builder makes a plain model. A parametrisation changes it from outside, one parameter at a time: the effective weight
is ``forward · θ``, ``θ`` starts as ``init`` times what the model draws, and the optimizer moves it at ``rate`` times
the learning rate. So this one file serves every framework and every architecture, also other people's.

``r`` is the factor by which the fan-in of a weight has grown since the base width, where all parametrisations but NTK
agree. Which axes grow is found by comparing the shapes of the model with those at the base width, as µP does.

================  ==================  =============  =================  ================
parametrisation   weight              init           rate of Adam       rate of SGD
================  ==================  =============  =================  ================
``standard``      all                 1              1                  1
``ntk``           forward 1/√fan-in   √fan-in        1                  1
``mup``           hidden              1              1/r                1
``mup``           output              1/√r           1/r                1/r
``mup``           input and vectors   1              1                  growth of fan-out
================  ==================  =============  =================  ================

Sources: Jacot et al. 2018; Yang & Hu 2021 and Yang et al. 2022, Tensor Programs IV and V (table 3 there).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_VECTORS = ("b", "bias", "scale", "offset")
_TABLES = ("embedding", "embeddings", "position")
_STACK = "stack"


class Scale(NamedTuple):
    """How one parameter differs from what its model makes.

    Attributes:
        init: factor on the value that the model draws.
        forward: factor on the parameter wherever the model uses it.
        adam: factor on the learning rate of Adam and of other optimizers that normalise gradients.
        sgd: factor on the learning rate of SGD.
    """

    init: float = 1.0
    forward: float = 1.0
    adam: float = 1.0
    sgd: float = 1.0


def scales(parametrisation: str, params: Any, base: Any, init_scale: float = 1.0) -> tuple[Scale, ...]:
    """Returns the scale of each parameter, in the order of the leaves.

    Args:
        parametrisation: ``"standard"``, ``"ntk"`` or ``"mup"``.
        params: the parameters of the model, or their shapes.
        base: those of the model at its base width.
        init_scale: factor on the initial standard deviation of all weights but vectors.

    Returns:
        One :class:`Scale` for each leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    bases = jax.tree.leaves(base)
    of = []
    for (path, leaf), before in zip(leaves, bases, strict=True):
        keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
        names = "/".join(keys).split("/")
        names = names[:-1] if names[-1] == "value" else names
        shape, base_shape = leaf.shape, before.shape
        if _STACK in names:  # the first axis is that of a scan over layers
            shape, base_shape = shape[1:], base_shape[1:]
        is_vector = len(shape) < 2 or (names[-1] in _VECTORS and math.prod(shape) == max(shape))
        is_weight = not is_vector and names[-1] not in _TABLES
        scale = _scale(parametrisation, is_weight, shape, base_shape)
        of.append(scale if is_vector else scale._replace(init=init_scale * scale.init))
    return tuple(of)


def _scale(parametrisation: str, is_weight: bool, shape: tuple[int, ...], base: tuple[int, ...]) -> Scale:
    fan_in, fan_out = math.prod(shape[:-1]), shape[-1] if shape else 1
    if parametrisation == "ntk" and is_weight:
        return Scale(init=fan_in**0.5, forward=fan_in**-0.5)
    if parametrisation != "mup" or not shape:
        return Scale()
    grows_in, grows_out = fan_in / math.prod(base[:-1]), fan_out / base[-1]
    if not is_weight or grows_in == 1:
        return Scale(sgd=grows_out)
    if grows_out == 1:
        return Scale(init=grows_in**-0.5, adam=1 / grows_in, sgd=1 / grows_in)
    return Scale(adam=1 / grows_in)


@dataclass(frozen=True)
class Scaled:
    """An adapter of a :class:`nngp_plugins.ModelFn` whose parameters are scaled before the model uses them.

    Attributes:
        adapter: the adapter of the plain model.
        scales: the scale of each parameter.
        dtype: the dtype in which the model computes; parameters stay float32.
    """

    adapter: Any
    scales: tuple[Scale, ...]
    dtype: str = "float32"

    def effective(self, params: Any) -> Any:
        """Returns the weights that the model uses, of the parameters that are trained."""
        leaves, structure = jax.tree.flatten(params)
        if len(leaves) != len(self.scales):
            return params  # the model itself says what is wrong with parameters of another model
        scaled = [s.forward * leaf if s.forward != 1 else leaf for s, leaf in zip(self.scales, leaves, strict=True)]
        return self.cast(jax.tree.unflatten(structure, scaled))

    def cast(self, tree: Any) -> Any:
        """Returns float32 arrays in the dtype of computation, and other arrays as they are."""
        if self.dtype == "float32":
            return tree
        return jax.tree.map(lambda a: a.astype(self.dtype) if jnp.result_type(a) == jnp.float32 else a, tree)

    def _cast_state(self, state: Any) -> Any:
        # A plain function takes no state, not even an empty one.
        return self.cast(state) if jax.tree.leaves(state) else None

    def apply(self, params: Any, state: Any, rng: Any, x: Any, kwargs: dict[str, Any]) -> Any:
        """Returns the outputs of the model."""
        return self.adapter.apply(self.effective(params), self._cast_state(state), rng, self.cast(x), kwargs)

    def tagged(self, params: Any, state: Any, rng: Any, x: Any, kwargs: dict[str, Any]) -> Any:
        """Returns the outputs of the model; what each layer returns is tagged."""
        return self.adapter.tagged(self.effective(params), self._cast_state(state), rng, self.cast(x), kwargs)

    def owners(self, params: Any) -> list[str]:
        """Returns the paths of the modules that own parameters."""
        return self.adapter.owners(params)

    def init(self, rng: Any, x: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Returns new parameters and state."""
        params, state = self.adapter.init(rng, x, kwargs)
        leaves, structure = jax.tree.flatten(params)
        return jax.tree.unflatten(
            structure, [s.init * leaf for s, leaf in zip(self.scales, leaves, strict=True)]
        ), state

    def split(self, model: Any) -> tuple[Any, Any] | None:
        """Returns parameters and state of an object that holds both; they are those that are trained."""
        return self.adapter.split(model)

    def forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a training forward pass ``(params, state, x, rng) -> (outputs, state)`` with scaled parameters."""

        def scaled(params: Any, state: Any, x: Any, rng: Any) -> tuple[Any, Any]:
            # Running statistics stay float32.
            return forward(self.effective(params), state, self.cast(x), rng)

        return scaled
