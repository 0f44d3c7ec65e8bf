"""Images and sound."""

import jax
import jax.numpy as jnp

from .common import haiku, image, linen, live, model, normal


@model("jax-models", "ConvMixer")
def jax_models_convmixer():
    from jax_models.models.conv_mixer import ConvMixer

    return linen(
        ConvMixer(features=16, patch_size=4, num_mixer_layers=2, filter_size=3, num_classes=5),
        image(),
        deterministic=True,
    )


@model("jax-models", "MLP-Mixer")
def jax_models_mixer():
    from jax_models.models.mlp_mixer import MLPMixer

    return linen(
        MLPMixer(
            patch_size=8,
            num_mixers_layers=2,
            hidden_size=16,
            channels_dim=16,
            tokens_dim=16,
            attach_head=True,
            num_classes=5,
        ),
        image(),
        deterministic=True,
    )


@model("jax-models", "PatchConvNet", moved=True, mixes=True)
def jax_models_patchconvnet():
    from jax_models.models.patchconvnet import PatchConvNet

    return linen(PatchConvNet(depth=2, dim=16, num_classes=5), image(), deterministic=True)


@model("bottleneck-transformer-flax", "BoTNet", doubles=False)
def botnet():
    from bottleneck_transformer_flax.botnet import BoTNet, BoTNetConfig

    return linen(
        BoTNet(
            config=BoTNetConfig(stage_sizes=[1, 1, 1, 1], num_classes=5, initial_filters=8, num_heads=2, head_dim=8)
        ),
        image(size=64),
        train=False,
    )


@model("transformer-in-transformer-flax", "TNT", doubles=False)
def tnt():
    from transformer_in_transformer_flax.tnt import TNTConfig, TransformerInTransformer

    return linen(
        TransformerInTransformer(
            config=TNTConfig(
                num_classes=5,
                depth=2,
                image_size=32,
                inner_dim=8,
                inner_heads=2,
                inner_dim_head=4,
                outer_dim=16,
                outer_heads=2,
                outer_dim_head=8,
            )
        ),
        image(),
    )


@model("flaxmodels", "ResNet18", doubles=False)
def flaxmodels_resnet():
    import flaxmodels

    return linen(
        flaxmodels.ResNet18(output="logits", pretrained=None, normalize=False, num_classes=5), image(), train=False
    )


@model("flaxmodels", "VGG16", "the output is a dict of activations", doubles=False)
def flaxmodels_vgg():
    import flaxmodels

    return linen(
        flaxmodels.VGG16(output="activations", pretrained=None, normalize=False, include_head=False),
        image(),
        train=False,
    )


@model("audax", "ResNet on spectrograms", doubles=False)
def audax_resnet():
    from audax.models.resnet import ResNet, ResNetBlock

    return linen(
        ResNet(stage_sizes=[1, 1], block_cls=ResNetBlock, num_classes=5, num_filters=8), image(channels=1), train=False
    )


@model("audax", "ConvNeXt")
def audax_convnext():
    from audax.models.convnext import ConvNeXt

    return linen(ConvNeXt(num_classes=5, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), image(channels=1), train=False)


@model("cax", "neural cellular automaton")
def cax_nca():
    from cax.core.perceive import ConvPerceive
    from cax.core.update import NCAUpdate
    from flax import nnx

    class NCA(nnx.Module):
        def __init__(self, rngs):
            self.perceive = ConvPerceive(channel_size=8, perception_size=16, rngs=rngs)
            self.update = NCAUpdate(
                channel_size=8,
                perception_size=16,
                hidden_layer_sizes=(16,),
                cell_dropout_rate=0.5,
                zeros_init=False,
                rngs=rngs,
            )

        def __call__(self, x):
            for _ in range(3):
                x = self.update(x, self.perceive(x))
            return x

    m = NCA(nnx.Rngs(0))
    m.eval()
    return live(m, jax.nn.sigmoid(normal(4, 8, 8, 8)))


@model("flaxdiff", "diffusion U-Net with text")
def flaxdiff_unet():
    from flaxdiff.models.simple_unet import Unet

    m = Unet(
        output_channels=3,
        emb_features=16,
        feature_depths=(8, 16),
        attention_configs=({"heads": 2}, {"heads": 2}),
        num_res_blocks=1,
        norm_groups=4,
    )
    return linen(m, (image(size=16), jnp.linspace(0, 1, 4), normal(4, 7, 16)), spread="args")


@model("flaxdiff", "DiT", moved=True)
def flaxdiff_dit():
    from flaxdiff.models.simple_dit import SimpleDiT

    return linen(
        SimpleDiT(patch_size=4, emb_features=16, num_layers=2, num_heads=2),
        (image(size=16), jnp.linspace(0, 1, 4), normal(4, 7, 16)),
        spread="args",
    )


@model("flaxdiff", "UViT", moved=True)
def flaxdiff_uvit():
    from flaxdiff.models.simple_vit import UViT

    return linen(
        UViT(patch_size=4, emb_features=16, num_layers=2, num_heads=2),
        (image(size=16), jnp.linspace(0, 1, 4), normal(4, 7, 16)),
        spread="args",
    )


@model("x-mlps", "gMLP")
def x_mlps_gmlp():
    import haiku as hk
    import x_mlps

    def net(x):
        return x_mlps.XMLP(
            num_patches=16,
            dim=16,
            depth=2,
            block=x_mlps.gmlp_block_factory,
            normalization=lambda num_patches, dim, depth, name=None, **kw: hk.LayerNorm(-1, True, True, name=name),
            num_classes=5,
        )(x, is_training=False)

    return haiku(net, normal(4, 16, 12))
