"""MLP-Mixer in Flax Linen."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, patch_size, patches


class Mixer(nn.Module):
    """One block: an MLP over positions, which does not grow with the width, and an MLP over features."""

    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""
        act, (tokens, width) = ACTIVATIONS[self.activation], x.shape[1:]
        y = nn.LayerNorm(epsilon=1e-5, name="norm_0")(x).swapaxes(1, 2)
        y = nn.Dense(tokens, name="tokens_down")(act(nn.Dense(2 * tokens, name="tokens_up")(y)))
        x = x + y.swapaxes(1, 2)
        y = nn.Dense(4 * width, name="up")(nn.LayerNorm(epsilon=1e-5, name="norm_1")(x))
        return x + nn.Dense(width, name="down")(act(y))


class MLPMixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): ``embed, block_0, ..., norm, head``."""

    width: int
    depth: int
    activation: str
    patch: int
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        x = nn.Dense(self.width, name="embed")(patches(x, self.patch))
        for i in range(self.depth):
            x = Mixer(self.activation, name=f"block_{i}")(x)
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x)
        return nn.Dense(self.classes, name="head")(x.mean(axis=1))


def mlp_mixer(
    spec: Spec, *, width: int = 64, depth: int = 2, activation: str = "gelu", patch: int | None = None
) -> MLPMixer:
    """Returns ``depth`` blocks of ``width`` features on patches; 69,930 parameters for 8×8 grey images."""
    return MLPMixer(width, depth, activation, patch_size(spec.shape, patch), spec.classes)
