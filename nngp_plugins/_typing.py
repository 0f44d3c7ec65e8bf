"""Types of arrays that several packages share."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

PyTree = Any
"""Any nesting of dicts, lists, tuples and other containers that JAX knows, with arrays as leaves."""


def wide(dtype: Any) -> Any:
    """The dtype that numbers of a dtype are computed in: at least float32, and for integers that of Python's floats.

    JAX has no rule of its own for floats and integers of less than 16 bits.
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.result_type(float)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
