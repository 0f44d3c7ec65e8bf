"""How the keyword arguments of a kernel function are dealt out to its two forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType

from ._inputs import parts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shared:
    """Passes a 2-tuple whole to both sides of a kernel, where a bare one would be split between them.

    Attributes:
        value: what both forward passes get.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> f = lambda params, x, window: x[:, window[0]:window[1]] * params
        >>> kernel_fn = nngp.empirical_nngp_fn(f)
        >>> kernel_fn(jnp.ones((3, 8)), None, 1.0, window=nngp.Shared((0, 4))).shape
        (3, 3)
    """

    value: Any


def is_none(x: Any) -> bool:
    """Whether ``x`` is None or a PyTree of nothing but Nones."""
    return not jax.tree.leaves(x)


def split_kwargs(kwargs: dict[str, Any], x1: Any, x2: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments of ``f`` on ``x1`` and on ``x2``, by the rules of neural-tangents.

    A 2-tuple gives its first to ``x1`` and its second to ``x2``; :class:`Shared` passes a tuple whole; ``rng``
    (a key) or ``rngs`` (a PyTree of keys, as Flax takes it) is the same on both sides when ``x2`` is None or
    equals ``x1``, and folded for ``x2`` otherwise; all else goes to both.
    """
    first, second = {}, {}
    for name, value in kwargs.items():
        if isinstance(value, Shared):
            first[name] = second[name] = value.value
        elif type(value) is tuple and len(value) == 2:
            first[name], second[name] = value
        elif name in ("rng", "rngs") and not is_none(x2):
            first[name], second[name] = value, _fold_unless_equal(value, x1, x2)
        else:
            first[name] = second[name] = value
    return first, second


def _fold_unless_equal(keys: Any, x1: Any, x2: Any) -> Any:
    equal = _equal(x1, x2)
    if equal is True:
        return keys
    return jax.tree.map(lambda key: jnp.where(equal, key, jax.random.fold_in(key, 1)), keys)


def _equal(x1: Any, x2: Any) -> bool | Array:
    """Whether two inputs are the same examples; a traced bool where only the values can tell."""
    leaves1, leaves2 = jax.tree.leaves(x1), jax.tree.leaves(x2)
    structures: list[Any] = [jax.tree.structure(x1), jax.tree.structure(x2)]
    if structures[0] != structures[1] or any(
        jnp.shape(a) != jnp.shape(b) for a, b in zip(leaves1, leaves2, strict=True)
    ):
        return False
    pairs = [(a, b) for a, b in zip(leaves1, leaves2, strict=True) if a is not b]
    on_host = [_on_host(a) and _on_host(b) for a, b in pairs]
    if not all(_equal_on_host(a, b) for (a, b), here in zip(pairs, on_host, strict=True) if here):
        return False
    others = [_equal_values(a, b) for (a, b), here in zip(pairs, on_host, strict=True) if not here]
    return jnp.all(jnp.stack(others)) if others else True


def _on_host(x: Any) -> bool:
    """Whether this is an array, but none of JAX, maybe larger than memory."""
    return hasattr(x, "shape") and not isinstance(x, jax.Array)


def _equal_on_host(a: Any, b: Any) -> bool:
    return all(np.all((p == q) | ((p != p) & (q != q))) for p, q in zip(parts(a), parts(b), strict=True))


@jax.jit
def _equal_values(a: Array, b: Array) -> Array:
    for sharding in (jax.typeof(a).sharding, jax.typeof(b).sharding):
        if AxisType.Explicit in sharding.mesh.axis_types:  # which refuses to compare what is sharded in two ways
            a, b = jax.sharding.reshard((a, b), sharding)
    # NaN marks missing values in some inputs: the same NaN in the same place is the same example.
    return jnp.all((a == b) | ((a != a) & (b != b)))
