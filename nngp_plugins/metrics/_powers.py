"""Exact powers of two, which bring kernels to a common size without rounding a digit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def exponent_of(x: Array) -> Array:
    """``⌊log2 x⌋`` as int32, a constant in gradients; the least exponent for zero, and 0 for NaN and infinity."""
    integer, digits, bias = _format(x.dtype)
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), integer)
    exponent = (lax.shift_right_logical(bits, integer(digits)) - integer(bias)).astype(jnp.int32)
    return jnp.where(exponent > bias, 0, jnp.maximum(exponent, 1 - bias))


def power_of_2(exponent: Array, dtype: Any) -> Array:
    """``2^exponent`` exactly; the nearest power that is normal if it leaves the range of the dtype."""
    integer, digits, bias = _format(dtype)
    biased = jnp.clip(exponent, 1 - bias, bias).astype(integer) + integer(bias)
    return lax.bitcast_convert_type(lax.shift_left(biased, integer(digits)), dtype)


def times_power_of_4(x: Array, exponent: Array) -> Array:
    """``x 4^exponent``. The features of a kernel have half of its exponent, and so lie in the range of the dtype."""
    power = power_of_2(exponent, x.dtype)
    return x * power * power


def exponent_if_far(x: Array) -> Array:
    """The exponent of the largest feature; 0 if products of such features stay well within the range, and for zero."""
    exponent = exponent_of(x)
    return jnp.where((jnp.abs(exponent) <= jnp.finfo(x.dtype).maxexp // 4) | (x == 0), 0, exponent)


@jax.jit
def largest(x: Array) -> Array:
    """``max |x|``, by one program, so that no copy of x is made."""
    return jnp.abs(lax.stop_gradient(x)).max()


def _format(dtype: Any) -> tuple[Any, int, int]:
    """The integers of the same bits, the bits behind the binary point, and what is added to an exponent."""
    numbers = jnp.finfo(dtype)
    return getattr(np, f"int{numbers.bits}"), int(numbers.nmant), int(numbers.maxexp) - 1
