"""Any object as a static argument of ``jax.jit``, or as part of the structure of a PyTree."""

from __future__ import annotations

from typing import Any

import jax


@jax.tree_util.register_static
class Static:
    """Makes any object hashable: by its value if that has a hash, otherwise by its identity.

    For example, the Linen module ``nn.Sequential([...])`` has no hash, because it holds a list.
    """

    def __init__(self, value: Any):
        self.value = value
        try:
            hash(value)
            self._key = value
        except TypeError:
            self._key = id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and (self.value is other.value or self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(self.value)
