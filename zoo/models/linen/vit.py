"""Vision transformer in Flax Linen."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from ...spec import Spec
from ..parts import heads, patch_size, patches
from .transformer import Blocks


class ViT(nn.Module):
    """A vision transformer on the mean of its patches (Dosovitskiy et al. 2021): ``embed, blocks, head``."""

    blocks: Blocks
    patch: int
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        width = self.blocks.width
        x = nn.Dense(width, name="embed")(patches(x, self.patch))
        x = self.blocks(x + self.param("position", nn.initializers.normal(1), (x.shape[1], width)))
        return nn.Dense(self.classes, name="head")(x.mean(axis=1))


def vit(spec: Spec, *, width: int = 64, depth: int = 2, activation: str = "gelu", patch: int | None = None) -> ViT:
    """Returns ``depth`` blocks of ``width`` features on patches; 102,090 parameters for 8×8 grey images."""
    heads(width)
    return ViT(Blocks(width, depth, activation), patch_size(spec.shape, patch), spec.classes)
