"""Vision transformer in Flax NNX."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jax import Array

from ...spec import Spec
from ..parts import heads, patch_size, patches
from .transformer import Blocks


class ViT(nnx.Module):
    """A vision transformer on the mean of its patches (Dosovitskiy et al. 2021): ``embed, blocks, head``."""

    def __init__(self, spec: Spec, width: int, depth: int, activation: str, patch: int, *, rngs: nnx.Rngs):
        self.patch = patch
        h, w, channels = spec.shape
        self.embed = nnx.Linear(patch * patch * channels, width, rngs=rngs)
        self.position = nnx.Param(jax.random.normal(rngs.params(), (h // patch * (w // patch), width)))
        self.blocks = Blocks(width, depth, activation, rngs=rngs)
        self.head = nnx.Linear(width, spec.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        x = self.blocks(self.embed(patches(x, self.patch)) + self.position[...])
        return self.head(x.mean(axis=1))


def vit(
    spec: Spec, *, width: int = 64, depth: int = 2, activation: str = "gelu", patch: int | None = None
) -> Callable[[nnx.Rngs], ViT]:
    """Returns ``depth`` blocks of ``width`` features on patches; 102,090 parameters for 8×8 grey images."""
    heads(width)
    size = patch_size(spec.shape, patch)
    return lambda rngs: ViT(spec, width, depth, activation, size, rngs=rngs)
