"""How the keyword arguments of a kernel function are divided between its two forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from ._keys import KEYS, keys_of_x2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shared:
    """Passes a 2-tuple whole to both sides of a kernel; without it the tuple would be split between them.

    Attributes:
        value: what both forward passes are given.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> f = lambda params, x, window: x[:, window[0]:window[1]] * params
        >>> kernel_fn = nngp.empirical_nngp_fn(f)
        >>> kernel_fn(jnp.ones((3, 8)), None, 1.0, window=nngp.Shared((0, 4))).shape
        (3, 3)
    """

    value: Any


def is_none(x: Any) -> bool:
    """Whether ``x`` is None or a PyTree that holds only Nones."""
    return not jax.tree.leaves(x)


def split_kwargs(kwargs: dict[str, Any], x1: Any, x2: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments of ``f`` on ``x1`` and on ``x2``, by the rules of neural-tangents.

    A 2-tuple gives its first element to ``x1`` and its second one to ``x2``; :class:`Shared` passes a tuple whole.
    ``rng`` (a key) or ``rngs`` (a PyTree of keys, as Flax takes it) is the same on both sides if ``x2`` is None or
    equals ``x1``, and is folded for ``x2`` otherwise. Everything else goes to both sides.
    """
    first, second = {}, {}
    for name, value in kwargs.items():
        if isinstance(value, Shared):
            first[name] = second[name] = value.value
        elif type(value) is tuple and len(value) == 2:
            first[name], second[name] = value
        elif name in KEYS and not is_none(x2):
            first[name], second[name] = value, keys_of_x2(value, x1, x2)
        else:
            first[name] = second[name] = value
    return first, second
