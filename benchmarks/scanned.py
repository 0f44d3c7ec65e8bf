"""Layers inside a scan: kernels of a transformer that scans over its rematted blocks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, Target, ratio


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        d = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(nn.LayerNorm(name="before_attention")(x))
        hidden = nn.gelu(nn.Dense(4 * d, name="up")(nn.LayerNorm(name="before_up")(x)))
        return x + nn.Dense(d, name="down")(hidden), None


class Transformer(nn.Module):
    depth: int
    scanned: bool = True

    @nn.compact
    def __call__(self, x):
        if self.scanned:
            options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": self.depth}
            x, _ = nn.scan(nn.remat(Block, prevent_cse=False), **options)(name="blocks")(x, None)
        else:
            for i in range(self.depth):
                x, _ = nn.remat(Block)(name=f"blocks_{i}")(x, None)
        return nn.Dense(10, name="head")(x)


def transformer(n, depth, scanned=True):
    """As a :class:`ModelFn`, with inputs and parameters, which are the same whether it is scanned or not."""
    import nngp_plugins as nngp

    x = jnp.asarray(np.random.default_rng(0).standard_normal((n, 64, 128), np.float32))
    params, _ = nngp.from_linen(Transformer(depth)).init(jax.random.key(1), x)
    if not scanned:
        blocks = params.pop("blocks")
        params |= {f"blocks_{i}": jax.tree.map(lambda w: w[i], blocks) for i in range(depth)}  # noqa: B023
    return nngp.from_linen(Transformer(depth, scanned)), params, x


def forward_and_products(n, depth):
    f, params, x = transformer(n, depth)
    shapes = f.layers().layer_shapes(params, x).values()
    outputs = [jax.random.normal(jax.random.key(i), y.shape).reshape(n, -1) for i, y in enumerate(shapes)]
    products = jax.jit(lambda outputs: [jnp.matmul(y, y.T, precision="highest") / y.shape[1] for y in outputs])
    forward = jax.jit(f)

    def run():
        jax.block_until_ready((forward(params, x), products(outputs)))

    return run


def kernels(scanned, n, depth):
    import nngp_plugins as nngp

    f, params, x = transformer(n, depth, scanned)
    kernel_fn = nngp.empirical_nngp_fn(f.layers(), trace_axes=nngp.all_but_batch)
    compiled = jax.jit(lambda params, x: kernel_fn(x, None, params)).lower(params, x).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes

    def run():
        found = jax.block_until_ready(compiled(params, x))
        return {"temporaries": temporaries, "result": float(np.abs(found["head"]).mean())}

    return run


CASES = [
    Case(
        "kernels of every layer of a transformer of {depth} scanned and rematted blocks, {n}×64 tokens",
        {
            "floor": Contender(forward_and_products, "jitted forward pass, and the products of given outputs"),
            "ours": Contender(partial(kernels, True), "jitted `empirical_nngp_fn(f.layers(), all_but_batch)`"),
            "unrolled": Contender(partial(kernels, False), "the same with the same weights, without the scan"),
        },
        [
            ratio("ours", "floor", at_most=1.15),
            ratio("unrolled", "floor"),
            Target("temporaries of ours", lambda n, _: n["ours"], "temporaries", "bytes", at_most=20e6),
            Target("temporaries of unrolled", lambda n, _: n["unrolled"], "temporaries", "bytes"),
        ],
        sizes={"n": 32, "depth": 12},
        quick={"n": 4, "depth": 2},
        rounds=15,
    ),
]
