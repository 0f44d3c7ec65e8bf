"""Types of arrays that several packages share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def as_jax_takes_it(dtype: Any) -> Any:
    """The dtype of an array once JAX takes it: float32 for float64, unless 64 bits are switched on."""
    return jax.dtypes.canonicalize_dtype(dtype) if isinstance(dtype, np.dtype) else dtype
