"""MLP-Mixer in Flax NNX."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, patch_size, patches


class Mixer(nnx.Module):
    """One block: an MLP over positions, which does not grow with the width, and an MLP over features."""

    def __init__(self, tokens: int, width: int, activation: str, *, rngs: nnx.Rngs):
        self.activation = activation
        self.norm_0 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.tokens_up = nnx.Linear(tokens, 2 * tokens, rngs=rngs)
        self.tokens_down = nnx.Linear(2 * tokens, tokens, rngs=rngs)
        self.norm_1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""
        act = ACTIVATIONS[self.activation]
        y = self.tokens_down(act(self.tokens_up(self.norm_0(x).swapaxes(1, 2))))
        x = x + y.swapaxes(1, 2)
        return x + self.down(act(self.up(self.norm_1(x))))


class MLPMixer(nnx.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): ``embed, block_0, ..., norm, head``."""

    def __init__(self, spec: Spec, width: int, depth: int, activation: str, patch: int, *, rngs: nnx.Rngs):
        self.depth, self.patch = depth, patch
        h, w, channels = spec.shape
        self.embed = nnx.Linear(patch * patch * channels, width, rngs=rngs)
        for i in range(depth):
            setattr(self, f"block_{i}", Mixer(h // patch * (w // patch), width, activation, rngs=rngs))
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(width, spec.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, classes)`` of images ``(N, H, W, C)``."""
        x = self.embed(patches(x, self.patch))
        for i in range(self.depth):
            x = getattr(self, f"block_{i}")(x)
        return self.head(self.norm(x).mean(axis=1))


def mlp_mixer(
    spec: Spec, *, width: int = 64, depth: int = 2, activation: str = "gelu", patch: int | None = None
) -> Callable[[nnx.Rngs], MLPMixer]:
    """Returns ``depth`` blocks of ``width`` features on patches; 69,930 parameters for 8×8 grey images."""
    size = patch_size(spec.shape, patch)
    return lambda rngs: MLPMixer(spec, width, depth, activation, size, rngs=rngs)
