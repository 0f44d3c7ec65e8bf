"""Transformers in Flax Linen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, attention, heads, rows


class Block(nn.Module):
    """Attention and an MLP, normalised before each (Xiong et al. 2020)."""

    width: int
    activation: str
    causal: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""
        y = nn.LayerNorm(epsilon=1e-5, name="norm_0")(x)
        q, k, v = (nn.Dense(self.width, name=name)(y) for name in ("query", "key", "value"))
        x = x + nn.Dense(self.width, name="out")(attention(q, k, v, causal=self.causal))
        y = nn.Dense(4 * self.width, name="up")(nn.LayerNorm(epsilon=1e-5, name="norm_1")(x))
        return x + nn.Dense(self.width, name="down")(ACTIVATIONS[self.activation](y))


class Blocks(nn.Module):
    """Blocks one after the other, ``block_0, block_1, ...``, or as one scan, ``stack``; and a last normalisation."""

    width: int
    depth: int
    activation: str
    causal: bool = False
    scan_layers: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""
        block: Callable[..., Any] = nn.remat(Block) if self.remat else Block
        args = self.width, self.activation, self.causal
        if self.scan_layers:
            scan: Any = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = scan(block(*args, name="stack"), x, None)
        else:
            for i in range(self.depth):
                x = block(*args, name=f"block_{i}")(x)
        return nn.LayerNorm(epsilon=1e-5, name="norm")(x)


class Transformer(nn.Module):
    """Embedded inputs with positions, blocks, and a head on the mean of all positions or, if causal, on each."""

    blocks: Blocks
    outputs: int
    vocabulary: int | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, outputs)``, or ``(N, T, outputs)`` if causal, of tokens, sequences or images."""
        width = self.blocks.width
        if self.vocabulary is None:
            x = nn.Dense(width, name="embed")(rows(x))
        else:
            x = nn.Embed(self.vocabulary, width, embedding_init=nn.initializers.normal(1), name="embed")(x)
        x = self.blocks(x + self.param("position", nn.initializers.normal(1), (x.shape[1], width)))
        return nn.Dense(self.outputs, name="head")(x if self.blocks.causal else x.mean(axis=1))


def transformer(
    spec: Spec,
    *,
    width: int = 64,
    depth: int = 2,
    activation: str = "gelu",
    scan_layers: bool = False,
    remat: bool = False,
) -> Transformer:
    """Returns an encoder with ``depth`` blocks of ``width`` features; 113,034 parameters for 64 of 128 tokens."""
    heads(width)
    return Transformer(Blocks(width, depth, activation, False, scan_layers, remat), spec.classes, spec.vocabulary)


def char_lm(
    spec: Spec,
    *,
    width: int = 64,
    depth: int = 2,
    activation: str = "gelu",
    scan_layers: bool = False,
    remat: bool = False,
) -> Transformer:
    """Returns a causal language model of characters; 120,704 parameters for 64 of 128 tokens."""
    heads(width)
    assert spec.vocabulary is not None
    return Transformer(Blocks(width, depth, activation, True, scan_layers, remat), spec.vocabulary, spec.vocabulary)
