"""The mathematics that all frameworks share: functions of arrays, without parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

HEAD_DIM = 16

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def flat(x: Array) -> Array:
    """Returns examples as vectors ``(N, D)``."""
    return x.reshape(x.shape[0], -1)


def rows(x: Array) -> Array:
    """Returns a sequence ``(N, T, D)``; an image ``(N, H, W, C)`` is read row by row."""
    return x.reshape(*x.shape[:2], -1)


def patches(x: Array, size: int) -> Array:
    """Returns the patches of images ``(N, H, W, C)`` as a sequence ``(N, T, size·size·C)``."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(n, (h // size) * (w // size), size * size * c)


def patch_size(shape: tuple[int, ...], size: int | None) -> int:
    """Returns the side of a patch: the given one, or the largest of 4, 2 and 1 that makes at least 16 patches.

    Raises:
        ValueError: the image cannot be cut into such patches.
    """
    h, w = shape[:2]
    if size is None:
        size = next(s for s in (4, 2, 1) if (h % s == w % s == 0 and h * w >= 16 * s * s) or s == 1)
    if size < 1 or h % size or w % size:
        raise ValueError(f"patch={size} does not divide images of {h}×{w} pixels.")
    return size


def heads(width: int) -> int:
    """Returns the number of attention heads; the size of a head does not grow with the width, so µP needs no 1/d.

    Raises:
        ValueError: the width is no multiple of the size of a head.
    """
    if width % HEAD_DIM:
        raise ValueError(f"width={width} must be a multiple of {HEAD_DIM}, the size of an attention head.")
    return width // HEAD_DIM


def attention(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """Returns what each position ``(N, T, D)`` reads, by heads of :data:`HEAD_DIM` features."""
    split = [a.reshape(*a.shape[:2], -1, HEAD_DIM) for a in (q, k, v)]
    return jax.nn.dot_product_attention(*split, is_causal=causal).reshape(q.shape)
