"""Vision transformer in Haiku."""

from __future__ import annotations

import haiku as hk
from jax import Array

from ...spec import Spec
from ..parts import heads, patch_size, patches
from .layers import NORMAL, Linear
from .transformer import Blocks


def vit(
    spec: Spec, *, width: int = 64, depth: int = 2, activation: str = "gelu", patch: int | None = None
) -> hk.TransformedWithState:
    """Returns ``depth`` blocks of ``width`` features on patches; 102,090 parameters for 8×8 grey images.

    A vision transformer on the mean of its patches (Dosovitskiy et al. 2021): ``embed, blocks, head``.
    """
    heads(width)
    size = patch_size(spec.shape, patch)

    def net(x: Array) -> Array:
        x = Linear(width, name="embed")(patches(x, size))
        x = x + hk.get_parameter("position", (x.shape[1], width), x.dtype, init=NORMAL)
        return Linear(spec.classes, name="head")(Blocks(width, depth, activation)(x).mean(axis=1))

    return hk.transform_with_state(net)
