"""A transformer in four frameworks, each as a scan over its blocks and as a loop over blocks with the same weights."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.parameters import drawn, drawn_equinox, drawn_nnx

import nngp_plugins as nngp

from .table import normal

DEPTH, HEADS, WIDTH, STEPS = 2, 2, 4, 5


@dataclass(frozen=True)
class Twins:
    """Two models with the same weights.

    Attributes:
        scanned: its blocks run in a scan, and are computed again in the backward pass.
        unrolled: its blocks run one after another.
        params: of the scanned model.
        same: the same weights for the unrolled model.
        renamed: the name of a layer of the scanned model in the unrolled one.
        own: what the modules of the unrolled model return, by calls of the framework alone.
        call: the scanned model's own call.
    """

    scanned: nngp.ModelFn
    unrolled: nngp.ModelFn
    params: Any
    same: Any
    renamed: Callable[[str], str]
    own: Callable[[jax.Array], dict[str, jax.Array]]
    call: Callable[[Any, jax.Array], jax.Array]

    @property
    def layers(self) -> nngp.ModelFn:
        """All layers but the dropout of attention weights, which are no module's output in most frameworks."""
        return self.scanned.layers("!*dropout")


def sequences() -> jax.Array:
    return normal(6, STEPS, WIDTH)


def of_layer(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[i]), tree)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attn")(nn.LayerNorm(name="norm")(x))
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(8, name="up")(x))), None


class LinenTransformer(nn.Module):
    scanned: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="embed")(x)
        if self.scanned:
            block = nn.remat(LinenBlock, prevent_cse=False)
            stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH)
            x, _ = stack(name="blocks")(x, None)
        for i in [] if self.scanned else range(DEPTH):
            x, _ = LinenBlock(name=f"blocks_{i}")(x)
        return nn.Dense(2, name="head")(x.mean(1))


def linen() -> Twins:
    scanned, unrolled = LinenTransformer(), LinenTransformer(scanned=False)
    params = drawn(nngp.from_linen(scanned), sequences())
    same = {name: params[name] for name in ("embed", "head")}
    same |= {f"blocks_{i}": of_layer(params["blocks"], i) for i in range(DEPTH)}

    def own(x):
        _, state = unrolled.apply({"params": same}, x, capture_intermediates=True)
        leaves, _ = jax.tree_util.tree_flatten_with_path(state["intermediates"])
        return {"/".join(key.key for key in path if hasattr(key, "key"))[: -len("/__call__")]: y for path, y in leaves}

    return Twins(
        nngp.from_linen(scanned),
        nngp.from_linen(unrolled),
        params,
        same,
        lambda name: name.replace("blocks/", "blocks_"),
        own,
        lambda params, x: scanned.apply({"params": params}, x),
    )


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 8, rngs=rngs), nnx.Linear(8, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class NNXTransformer(nnx.Module):
    """Its blocks run in a loop, in ``nnx.scan``, or in ``jax.lax.scan`` over what ``nnx.split`` gives."""

    def __init__(self, kind, rngs):
        @nnx.split_rngs(splits=DEPTH)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs):
            return NNXBlock(rngs)

        self.kind = kind
        self.embed, self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 2, rngs=rngs)
        self.blocks = nnx.List([NNXBlock(rngs) for _ in range(DEPTH)]) if kind == "loop" else stack(rngs)

    def __call__(self, x):
        x = self.embed(x)
        if self.kind == "nnx.scan":
            run = nnx.scan(nnx.remat(lambda x, block: block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            x = run(x, self.blocks)
        elif self.kind == "lax.scan":
            graphdef, state = nnx.split(self.blocks)
            step = jax.checkpoint(lambda x, state: (nnx.merge(graphdef, state)(x), None))
            x, _ = jax.lax.scan(step, x, state)
        else:
            for block in self.blocks:
                x = block(x)
        return self.head(x.mean(1))


def nnx_twins(kind: str) -> Twins:
    scanned, unrolled = (drawn_nnx(lambda kind=kind: NNXTransformer(kind, nnx.Rngs(0))) for kind in (kind, "loop"))
    for name in ("embed", "head"):
        nnx.update(getattr(unrolled, name), nnx.state(getattr(scanned, name)))
    for i, block in enumerate(unrolled.blocks):
        nnx.update(block, of_layer(nnx.state(scanned.blocks), i))
    graphdef, params, rest = nnx.split(scanned, nnx.Param, ...)

    def own(x):
        found = {"embed": (x := unrolled.embed(x))}
        for i, block in enumerate(unrolled.blocks):
            found[f"blocks/{i}/norm"] = norm = block.norm(x)
            found |= {f"blocks/{i}/attn/{n}": getattr(block.attn, n)(norm) for n in ("query", "key", "value")}
            found[f"blocks/{i}/attn"] = attn = block.attn(norm)
            found[f"blocks/{i}/up"] = up = block.up(x + attn)
            found[f"blocks/{i}/down"] = down = block.down(nnx.gelu(up))
            found[f"blocks/{i}"] = x = x + attn + down
        return found | {"head": unrolled.head(x.mean(1))}

    return Twins(
        nngp.from_nnx(scanned),
        nngp.from_nnx(unrolled),
        params,
        nnx.state(unrolled, nnx.Param),
        lambda name: name,
        own,
        lambda params, x: nnx.merge(graphdef, params, rest)(x),
    )


class HaikuBlock(hk.Module):
    def __call__(self, x):
        init = hk.initializers.VarianceScaling()
        norm = hk.LayerNorm(-1, True, True, name="norm")(x)
        x = x + hk.MultiHeadAttention(HEADS, 2, w_init=init, model_size=WIDTH, name="attn")(norm, norm, norm)
        return x + hk.Linear(WIDTH, name="down")(jax.nn.gelu(hk.Linear(8, name="up")(x)))


def haiku_transformer(scanned):
    def run(x):
        x = hk.Linear(WIDTH, name="embed")(x)
        if scanned:
            x = hk.experimental.layer_stack(DEPTH, name="blocks")(hk.remat(lambda x: HaikuBlock(name="block")(x)))(x)
        for i in [] if scanned else range(DEPTH):
            x = HaikuBlock(name=f"blocks_{i}")(x)
        return hk.Linear(2, name="head")(x.mean(1))

    return hk.without_apply_rng(hk.transform(run))


def haiku() -> Twins:
    scanned, unrolled = haiku_transformer(True), haiku_transformer(False)
    params = drawn(nngp.from_haiku(scanned), sequences())
    same = {}
    for path, arrays in params.items():
        of_block = path.startswith("blocks/block/")
        for i in range(DEPTH if of_block else 1):
            same[path.replace("blocks/block/", f"blocks_{i}/")] = of_layer(arrays, i) if of_block else arrays

    def own(x):
        found = {}

        def record(call, args, kwargs, context):
            y = found[context.module.module_name] = call(*args, **kwargs)
            return y

        with hk.intercept_methods(record):
            unrolled.apply(same, x)
        return found

    def renamed(name):
        return re.sub(r"blocks/(\d)(/block)?", r"blocks_\1", name)

    scanned_f, unrolled_f = nngp.from_haiku(scanned), nngp.from_haiku(unrolled)
    return Twins(scanned_f, unrolled_f, params, same, renamed, own, scanned.apply)


class EquinoxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    attn: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.norm, self.attn = eqx.nn.LayerNorm(WIDTH), eqx.nn.MultiheadAttention(HEADS, WIDTH, key=keys[0])
        self.up, self.down = eqx.nn.Linear(WIDTH, 8, key=keys[1]), eqx.nn.Linear(8, WIDTH, key=keys[2])

    def __call__(self, x):
        norm = jax.vmap(self.norm)(x)
        x = x + self.attn(norm, norm, norm)
        return x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(x)))


class EquinoxTransformer(eqx.Module):
    embed: eqx.nn.Linear
    blocks: EquinoxBlock | list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed, self.head = eqx.nn.Linear(WIDTH, WIDTH, key=keys[0]), eqx.nn.Linear(WIDTH, 2, key=keys[1])
        self.blocks = eqx.filter_vmap(EquinoxBlock)(jax.random.split(keys[2], DEPTH))

    def __call__(self, x):
        x = jax.vmap(self.embed)(x)
        if isinstance(self.blocks, list):
            for block in self.blocks:
                x = block(x)
        else:
            arrays, rest = eqx.partition(self.blocks, eqx.is_array)
            step = jax.checkpoint(lambda x, arrays: (eqx.combine(arrays, rest)(x), None))
            x, _ = jax.lax.scan(step, x, arrays)
        return self.head(x.mean(0))


def equinox() -> Twins:
    scanned = drawn_equinox(EquinoxTransformer, jax.random.key(0))
    arrays, rest = eqx.partition(scanned.blocks, eqx.is_array)
    blocks = [eqx.combine(of_layer(arrays, i), rest) for i in range(DEPTH)]
    unrolled = eqx.tree_at(lambda model: model.blocks, scanned, blocks)

    def own_of_one(x):
        found = {"embed": (x := jax.vmap(unrolled.embed)(x))}
        for i, block in enumerate(blocks):
            found[f"blocks/{i}/norm"] = norm = jax.vmap(block.norm)(x)
            for name in ("query", "key", "value"):
                found[f"blocks/{i}/attn/{name}_proj"] = jax.vmap(getattr(block.attn, f"{name}_proj"))(norm)
            found[f"blocks/{i}/attn"] = attn = block.attn(norm, norm, norm)
            found[f"blocks/{i}/up"] = up = jax.vmap(block.up)(x + attn)
            found[f"blocks/{i}/down"] = down = jax.vmap(block.down)(jax.nn.gelu(up))
            found[f"blocks/{i}"] = x = x + attn + down
        return found | {"head": unrolled.head(x.mean(0))}

    scanned_f, unrolled_f = nngp.from_equinox(scanned), nngp.from_equinox(unrolled)
    params, same = scanned_f.split(scanned)[0], unrolled_f.split(unrolled)[0]
    static = eqx.filter(scanned, eqx.is_array, inverse=True)
    own, call = jax.vmap(own_of_one), lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    return Twins(scanned_f, unrolled_f, params, same, lambda name: name, own, call)


TWINS = {
    "linen": linen,
    "nnx.scan": lambda: nnx_twins("nnx.scan"),
    "lax.scan": lambda: nnx_twins("lax.scan"),
    "haiku": haiku,
    "equinox": equinox,
}
