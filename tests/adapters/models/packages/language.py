"""Language, sequences, proteins and tables."""

import importlib.util
import sys

import jax
import jax.numpy as jnp

import nngp_plugins as nngp

from ..table import Model
from .common import image, linen, live, model, normal, tokens


@model("nano-moe-jax", "mixture-of-experts language model", "a scalar beside the logits is no layer", smooth=False)
def nano_moe():
    from nano_moe import NanoMoE, NanoMoEConfig

    return linen(
        NanoMoE(NanoMoEConfig(vocab_size=50, n_layers=2, n_heads=2, d_model=16, d_ff=32, block_size=16)),
        tokens(),
        deterministic=True,
    )


@model("mamba2-jax", "Mamba-2 language model", "the output is a dict")
def mamba2():
    from flax import nnx
    from mamba2_jax import Mamba2Config, Mamba2ForCausalLM

    cfg = Mamba2Config(vocab_size=50, hidden_size=16, state_size=8, head_dim=8, chunk_size=4, num_hidden_layers=2)
    return live(Mamba2ForCausalLM(cfg, rngs=nnx.Rngs(0)), tokens())


@model("haliax", "stack of blocks, which it scans and rematerialises", "the layers that Levanter is built of")
def haliax_stack():
    import equinox as eqx
    import haliax as hax

    d, h, out = hax.Axis("d", 6), hax.Axis("h", 5), hax.Axis("out", 2)

    class Block(eqx.Module):
        up: hax.nn.Linear
        down: hax.nn.Linear

        @staticmethod
        def init(*, key):
            keys = jax.random.split(key)
            return Block(hax.nn.Linear.init(d, h, key=keys[0]), hax.nn.Linear.init(h, d, key=keys[1]))

        def __call__(self, x):
            return x + self.down(hax.nn.gelu(self.up(x)))

    class Net(eqx.Module):
        blocks: hax.nn.Stacked
        head: hax.nn.Linear

        def __init__(self, key):
            blocks = hax.nn.Stacked.init(hax.Axis("layers", 3), Block, gradient_checkpointing=True)
            self.blocks, self.head = blocks(key=jax.random.split(key, 3)), hax.nn.Linear.init(d, out, key=key)

        def __call__(self, x):
            return self.head(self.blocks.fold(hax.named(x, (hax.Axis("batch", len(x)), d)))).array

    net = Net(jax.random.key(0))
    f = nngp.from_equinox(net, batched=True)
    return Model(f, f.split(net)[0], normal(4, 6), live=net)


@model("dantinox", "language model", "the output is a dataclass")
def dantinox():
    from dantinox.core.config import ModelConfig
    from dantinox.core.model import Transformer
    from flax import nnx

    cfg = ModelConfig(dim=16, n_heads=2, head_size=8, num_blocks=2, vocab_size=50, max_context=16, kv_heads=2)
    return live(Transformer(cfg, rngs=nnx.Rngs(0)), tokens(), deterministic=True)


@model("nanodl", "GPT-3 style")
def nanodl_gpt():
    from nanodl import GPT3

    return linen(
        GPT3(
            num_layers=2,
            hidden_dim=16,
            num_heads=2,
            feedforward_dim=32,
            dropout=0.1,
            vocab_size=50,
            embed_dim=16,
            max_length=16,
            start_token=0,
            end_token=1,
        ),
        tokens(),
        training=False,
    )


@model("nanodl", "Llama 3 style")
def nanodl_llama():
    from nanodl import Llama3

    return linen(
        Llama3(
            num_layers=2,
            num_heads=2,
            num_groups=1,
            hidden_dim=16,
            feedforward_dim=32,
            dropout=0.1,
            vocab_size=50,
            embed_dim=16,
            max_length=12,
            start_token=0,
            end_token=1,
        ),
        tokens(),
        training=False,
    )


@model("nanodl", "T5")
def nanodl_t5():
    from nanodl import T5

    return linen(
        T5(
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            feedforward_dim=32,
            dropout=0.1,
            vocab_size=50,
            embed_dim=16,
            max_length=12,
            start_token=0,
            end_token=1,
        ),
        (tokens(), tokens()),
        spread="args",
        training=False,
    )


@model("nanodl", "ViT")
def nanodl_vit():
    from nanodl import ViT

    return linen(
        ViT(patch_size=(8, 8), num_layers=2, hidden_dim=16, num_heads=2, feedforward_dim=16, dropout=0.1, n_outputs=5),
        image(),
        training=False,
    )


@model("nanodl", "diffusion U-Net", moved=True)
def nanodl_unet():
    from nanodl import UNet

    return linen(
        UNet(
            image_size=(16, 16),
            widths=[8, 8, 16],
            block_depth=1,
            embed_dims=8,
            embed_min_freq=1.0,
            embed_max_freq=100.0,
        ),
        (image(size=16), jnp.ones((4, 1, 1, 1)) * 0.5),
        spread="args",
    )


@model("ablanx", "AbLang2 protein language model", "a mask beside the tokens")
def ablang():
    from ablang_jax import Ablanx

    return linen(Ablanx(), (tokens(4, 8, 20), jnp.ones((4, 8))), spread="args", return_attn=False)


@model("long-range-models", "S5")
def s5():
    from long_range_models import ContinuousSequenceModel, S5Layer

    return linen(ContinuousSequenceModel(S5Layer(8, 8), out_dim=5, emb_dim=8, pool=True), normal(4, 12, 3))


@model("long-range-models", "LRU")
def lru():
    from long_range_models import ContinuousSequenceModel, LRULayer

    return linen(ContinuousSequenceModel(LRULayer(8, 8), out_dim=5, emb_dim=8, pool=True), normal(4, 12, 3))


@model("fttjax", "FT-Transformer on tables", moved=True)
def fttransformer():

    sys.path.append(
        importlib.util.find_spec("fttjax").submodule_search_locations[0]
    )  # it imports its own module by a top-level name
    from ft_transformer import FTTransformer

    return linen(
        FTTransformer(categories=(3, 4), num_continuous=5, dim=16, depth=2, heads=2),
        (jnp.ones((4, 2), int), normal(4, 5)),
        spread="args",
    )


@model("ramsey", "neural process", "the output is a NumPyro distribution")
def ramsey_np():
    from flax import nnx
    from ramsey import NP

    r = nnx.Rngs(0)

    def mlp(i, h, o):
        return nnx.Sequential(nnx.Linear(i, h, rngs=r), nnx.relu, nnx.Linear(h, o, rngs=r))

    m = NP(decoder=mlp(1 + 8, 16, 2), deterministic_encoder=mlp(2, 16, 8), rngs=r)
    return live(
        m, {"x_context": normal(4, 5, 1), "y_context": normal(4, 5, 1), "x_target": normal(4, 7, 1)}, spread="kwargs"
    )
