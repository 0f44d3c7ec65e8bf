"""MLP-Mixer in Haiku."""

from __future__ import annotations

import haiku as hk
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, patch_size, patches
from .layers import LayerNorm, Linear


class Mixer(hk.Module):
    """One block: an MLP over positions, which does not grow with the width, and an MLP over features."""

    def __init__(self, activation: str, name: str):
        super().__init__(name)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""
        act, (tokens, width) = ACTIVATIONS[self.activation], x.shape[1:]
        y = LayerNorm(name="norm_0")(x).swapaxes(1, 2)
        y = Linear(tokens, name="tokens_down")(act(Linear(2 * tokens, name="tokens_up")(y)))
        x = x + y.swapaxes(1, 2)
        y = Linear(4 * width, name="up")(LayerNorm(name="norm_1")(x))
        return x + Linear(width, name="down")(act(y))


def mlp_mixer(
    spec: Spec, *, width: int = 64, depth: int = 2, activation: str = "gelu", patch: int | None = None
) -> hk.TransformedWithState:
    """Returns ``depth`` blocks of ``width`` features on patches; 69,930 parameters for 8×8 grey images.

    MLP-Mixer (Tolstikhin et al. 2021): ``embed, block_0, ..., norm, head``.
    """
    size = patch_size(spec.shape, patch)

    def net(x: Array) -> Array:
        x = Linear(width, name="embed")(patches(x, size))
        for i in range(depth):
            x = Mixer(activation, f"block_{i}")(x)
        return Linear(spec.classes, name="head")(LayerNorm(name="norm")(x).mean(axis=1))

    return hk.transform_with_state(net)
