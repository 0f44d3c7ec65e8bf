"""Transformers in Flax NNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, attention, heads, rows


class Block(nnx.Module):
    """Attention and an MLP, normalised before each (Xiong et al. 2020)."""

    def __init__(self, width: int, activation: str, causal: bool, *, rngs: nnx.Rngs):
        self.activation, self.causal = activation, causal
        self.norm_0 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.query, self.key, self.value, self.out = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.norm_1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""
        y = self.norm_0(x)
        x = x + self.out(attention(self.query(y), self.key(y), self.value(y), causal=self.causal))
        return x + self.down(ACTIVATIONS[self.activation](self.up(self.norm_1(x))))


def _call(block: Block, x: Array) -> Array:
    return block(x)


class Blocks(nnx.Module):
    """Blocks one after the other, ``block_0, block_1, ...``, or as one scan, ``stack``; and a last normalisation."""

    def __init__(
        self,
        width: int,
        depth: int,
        activation: str,
        *,
        causal: bool = False,
        scan_layers: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.depth, self.scan_layers, self.remat = depth, scan_layers, remat

        def block(rngs: nnx.Rngs) -> Block:
            return Block(width, activation, causal, rngs=rngs)

        if scan_layers:
            self.stack = nnx.split_rngs(splits=depth)(nnx.vmap(block))(rngs)
        else:
            for i in range(depth):
                setattr(self, f"block_{i}", block(rngs))
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""
        call: Callable[..., Any] = nnx.remat(_call) if self.remat else _call
        if self.scan_layers:
            x = nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.stack, x)
        else:
            for i in range(self.depth):
                x = call(getattr(self, f"block_{i}"), x)
        return self.norm(x)


class Transformer(nnx.Module):
    """Embedded inputs with positions, blocks, and a head on the mean of all positions or, if causal, on each."""

    def __init__(self, spec: Spec, outputs: int, width: int, *, rngs: nnx.Rngs, causal: bool = False, **blocks: Any):
        self.causal, self.is_tokens = causal, spec.vocabulary is not None
        self.embed: nnx.Embed | nnx.Linear
        if spec.vocabulary is None:
            self.embed = nnx.Linear(math.prod(spec.shape[1:]), width, rngs=rngs)
        else:
            self.embed = nnx.Embed(spec.vocabulary, width, embedding_init=jax.nn.initializers.normal(1), rngs=rngs)
        self.position = nnx.Param(jax.random.normal(rngs.params(), (spec.shape[0], width)))
        self.blocks = Blocks(width, causal=causal, rngs=rngs, **blocks)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns logits ``(N, outputs)``, or ``(N, T, outputs)`` if causal, of tokens, sequences or images."""
        x = self.embed(x if self.is_tokens else rows(x))
        x = self.blocks(x + self.position[...])
        return self.head(x if self.causal else x.mean(axis=1))


def transformer(
    spec: Spec,
    *,
    width: int = 64,
    depth: int = 2,
    activation: str = "gelu",
    scan_layers: bool = False,
    remat: bool = False,
) -> Callable[[nnx.Rngs], Transformer]:
    """Returns an encoder with ``depth`` blocks of ``width`` features; 113,034 parameters for 64 of 128 tokens."""
    heads(width)
    blocks: dict[str, Any] = {"depth": depth, "activation": activation, "scan_layers": scan_layers, "remat": remat}
    return lambda rngs: Transformer(spec, spec.classes, width, rngs=rngs, **blocks)


def char_lm(
    spec: Spec,
    *,
    width: int = 64,
    depth: int = 2,
    activation: str = "gelu",
    scan_layers: bool = False,
    remat: bool = False,
) -> Callable[[nnx.Rngs], Transformer]:
    """Returns a causal language model of characters; 120,704 parameters for 64 of 128 tokens."""
    heads(width)
    blocks: dict[str, Any] = {"depth": depth, "activation": activation, "scan_layers": scan_layers, "remat": remat}
    outputs = spec.vocabulary or 0
    return lambda rngs: Transformer(spec, outputs, width, causal=True, rngs=rngs, **blocks)
