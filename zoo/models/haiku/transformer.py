"""Transformers in Haiku."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import haiku as hk
from jax import Array

from ...spec import Spec
from ..parts import ACTIVATIONS, attention, heads, rows
from .layers import NORMAL, Embed, LayerNorm, Linear


class Block(hk.Module):
    """Attention and an MLP, normalised before each (Xiong et al. 2020)."""

    def __init__(self, width: int, activation: str, causal: bool, name: str):
        super().__init__(name)
        self.width, self.activation, self.causal = width, activation, causal

    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""
        y = LayerNorm(name="norm_0")(x)
        q, k, v = (Linear(self.width, name=name)(y) for name in ("query", "key", "value"))
        x = x + Linear(self.width, name="out")(attention(q, k, v, causal=self.causal))
        y = Linear(4 * self.width, name="up")(LayerNorm(name="norm_1")(x))
        return x + Linear(self.width, name="down")(ACTIVATIONS[self.activation](y))


class Blocks(hk.Module):
    """Blocks one after the other, ``block_0, block_1, ...``, or as one scan, ``stack``; and a last normalisation."""

    def __init__(
        self,
        width: int,
        depth: int,
        activation: str,
        causal: bool = False,
        scan_layers: bool = False,
        remat: bool = False,
    ):
        super().__init__("blocks")
        self.width, self.depth, self.activation = width, depth, activation
        self.causal, self.scan_layers, self.remat = causal, scan_layers, remat

    def __call__(self, x: Array) -> Array:
        """Returns activations ``(N, T, width)``."""

        def run(x: Array, name: str) -> Array:
            block = Block(self.width, self.activation, self.causal, name)
            return hk.remat(block)(x) if self.remat else block(x)

        if self.scan_layers:
            x = hk.experimental.layer_stack(self.depth, name="stack")(lambda x: run(x, "block"))(x)
        else:
            for i in range(self.depth):
                x = run(x, f"block_{i}")
        return LayerNorm(name="norm")(x)


def _embedded(x: Array, spec: Spec, width: int) -> Array:
    """Embeds tokens, or the rows of sequences and images, and adds positions."""
    is_tokens = spec.vocabulary is not None
    x = Embed(spec.vocabulary, width, name="embed")(x) if is_tokens else Linear(width, name="embed")(rows(x))
    return x + hk.get_parameter("position", (x.shape[1], width), x.dtype, init=NORMAL)


def _network(spec: Spec, outputs: int, make: Callable[[], Blocks]) -> hk.TransformedWithState:
    """Blocks, which are made as the network runs, and a head on the mean of all positions or, if causal, on each."""

    def net(x: Array) -> Array:
        blocks = make()
        x = blocks(_embedded(x, spec, blocks.width))
        return Linear(outputs, name="head")(x if blocks.causal else x.mean(axis=1))

    return hk.transform_with_state(net)


def transformer(
    spec: Spec,
    *,
    width: int = 64,
    depth: int = 2,
    activation: str = "gelu",
    scan_layers: bool = False,
    remat: bool = False,
) -> hk.TransformedWithState:
    """Returns an encoder with ``depth`` blocks of ``width`` features; 113,034 parameters for 64 of 128 tokens."""
    heads(width)
    return _network(spec, spec.classes, partial(Blocks, width, depth, activation, False, scan_layers, remat))


def char_lm(
    spec: Spec,
    *,
    width: int = 64,
    depth: int = 2,
    activation: str = "gelu",
    scan_layers: bool = False,
    remat: bool = False,
) -> hk.TransformedWithState:
    """Returns a causal language model of characters; 120,704 parameters for 64 of 128 tokens."""
    heads(width)
    return _network(spec, spec.vocabulary or 0, partial(Blocks, width, depth, activation, True, scan_layers, remat))
