"""Physics, flows and function approximation."""

import jax
import jax.numpy as jnp

from .common import haiku, image, linen, live, model, normal

RING = jnp.stack([jnp.arange(6), (jnp.arange(6) + 1) % 6])


def spins(n=6, sites=8):
    return jax.random.choice(jax.random.key(1), jnp.array([-1.0, 1.0]), (n, sites))


@model("e3x", "equivariant message passing", mixes=True)
def e3x_mp():
    import e3x
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, positions, dst, src):
            x = e3x.nn.Embed(num_embeddings=10, features=8)(jnp.arange(6) % 3)
            basis = e3x.nn.basis(
                positions[src] - positions[dst],
                num=4,
                max_degree=1,
                radial_fn=e3x.nn.reciprocal_bernstein,
                cutoff_fn=lambda r: e3x.nn.smooth_cutoff(r, cutoff=5.0),
            )
            y = e3x.nn.MessagePass()(x, basis, dst_idx=dst, src_idx=src)
            x = e3x.nn.add(x, e3x.nn.Dense(8)(e3x.nn.silu(e3x.nn.Dense(8)(y))))
            return nn.Dense(1)(x[:, 0, 0, :])

    return linen(Net(), normal(6, 3), init={"dst": RING[0], "src": RING[1]}, call={"dst": RING[0], "src": RING[1]})


@model("e3nn-jax", "equivariant MLP", "outputs are IrrepsArrays")
def e3nn_linen():
    import e3nn_jax as e3nn
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = e3nn.flax.Linear("8x0e + 4x1o")(e3nn.spherical_harmonics("0e + 1o", x, normalize=True))
            x = e3nn.flax.Linear("8x0e + 4x0e + 4x1o")(x)
            return e3nn.flax.Linear("2x0e + 1x1o")(e3nn.gate(x))

    return linen(Net(), normal(6, 3))


@model("jax-md", "NequIP energy model", "the energy of the graph; layers of atoms have another batch axis", mixes=True)
def jaxmd_nequip():
    import jraph
    from jax_md._nn.nequip import NequIPEnergyModel

    pos = normal(6, 3)
    s, r = jnp.array([(i, j) for i in range(6) for j in range(6) if i != j]).T
    g = jraph.GraphsTuple(
        nodes=jax.nn.one_hot(jnp.arange(6) % 2, 2),
        edges=pos[r] - pos[s],
        senders=s,
        receivers=r,
        n_node=jnp.array([6]),
        n_edge=jnp.array([30]),
        globals=None,
    )
    m = NequIPEnergyModel(
        graph_net_steps=2,
        use_sc=True,
        nonlinearities={"e": "raw_swish", "o": "tanh"},
        n_elements=2,
        hidden_irreps="8x0e + 4x1o",
        sh_irreps="1x0e + 1x1o",
        n_neighbors=5.0,
    )
    return linen(m, g)


@model("netket", "RBM")
def netket_rbm():
    import netket as nk

    return linen(nk.models.RBM(alpha=2, param_dtype=jnp.float32), spins())


@model("netket", "complex RBM with modulus and phase")
def netket_rbm_phase():
    import netket as nk

    return linen(nk.models.RBMModPhase(alpha=2, param_dtype=jnp.float32), spins())


@model("netket", "group CNN", "complex output")
def netket_gcnn():
    import netket as nk

    g = nk.graph.Chain(8)
    return linen(nk.models.GCNN(symmetries=g, layers=2, features=4, param_dtype=jnp.float32), spins())


@model("netket", "autoregressive masked convolutions")
def netket_arnn():
    import netket as nk

    return linen(
        nk.models.ARNNConv1D(
            hilbert=nk.hilbert.Spin(0.5, 8), layers=2, features=4, kernel_size=3, param_dtype=jnp.float32
        ),
        spins(),
    )


@model("netket", "fast autoregressive network", "its cache is state")
def netket_fast_arnn():
    import netket as nk

    return linen(
        nk.models.FastARNNConv1D(
            hilbert=nk.hilbert.Spin(0.5, 8), layers=2, features=4, kernel_size=3, param_dtype=jnp.float32
        ),
        spins(),
    )


@model("netket", "LSTM wave function", doubles=False)
def netket_rnn():
    import netket as nk

    return linen(
        nk.models.LSTMNet(hilbert=nk.hilbert.Spin(0.5, 8), layers=2, features=4, param_dtype=jnp.float32)
        if hasattr(nk.models, "LSTMNet")
        else nk.experimental.models.LSTMNet(
            hilbert=nk.hilbert.Spin(0.5, 8), layers=2, features=4, param_dtype=jnp.float32
        ),
        spins(),
    )


@model("netket", "DeepSet")
def netket_deepset():
    import netket as nk

    return linen(nk.models.DeepSetMLP(features_phi=(8,), features_rho=(8,), param_dtype=jnp.float32), normal(6, 8, 2))


@model("jaxkan", "Kolmogorov-Arnold network, splines")
def jaxkan_kan():
    from jaxkan.models.KAN import KAN

    return live(KAN([3, 8, 2], "spline", {"k": 3, "G": 5}), jnp.tanh(normal(6, 3)))


@model("jaxkan", "Chebyshev KAN")
def jaxkan_cheby():
    from jaxkan.models.KAN import KAN

    return live(KAN([3, 8, 2], "chebyshev", {"D": 4}), jnp.tanh(normal(6, 3)))


@model("bijx", "residual network of a flow")
def bijx_resnet():
    from bijx.nn.nets import ResNet
    from flax import nnx

    return live(ResNet(3, 5, width=16, depth=2, rngs=nnx.Rngs(0)), normal(6, 3))


@model("bijx", "periodic conv net")
def bijx_conv():
    from bijx.nn.nets import ConvNet
    from flax import nnx

    return live(ConvNet(1, 2, rngs=nnx.Rngs(0)), image(4, 8, 1))


@model("bijx", "lattice-symmetric convolution")
def bijx_conv_sym():
    from bijx.nn.conv import ConvSym
    from flax import nnx

    return live(ConvSym(1, 3, (3, 3), rngs=nnx.Rngs(0)), image(4, 8, 1))


@model("surjectors", "MADE")
def surjectors_made():
    from surjectors.nn import MADE

    return haiku(lambda x: MADE(3, [16, 16], 2)(x), normal(6, 3))


@model("ott-jax", "input-convex network")
def ott_icnn():
    from ott.neural.networks.icnn import ICNN

    return linen(ICNN(dim_data=3, dim_hidden=[16, 16]), normal(6, 3))


@model("jaxkit", "residual MLP, batch norm and dropout")
def jaxkit_fc():
    from flax import nnx
    from jaxkit import FullyConnected

    m = FullyConnected([8, 16, 16, 16, 4], rngs=nnx.Rngs(0))
    m.eval()
    return live(m, normal(6, 8))


@model("ott-jax", "velocity-field MLP")
def ott_velocity():
    from flax import nnx
    from ott.neural.networks.velocity_field.mlp import MLP

    m = MLP(3, hidden_dims=[16, 16], rngs=nnx.Rngs(0))
    m.eval()
    return live(m, (jnp.linspace(0, 1, 6), normal(6, 3)), spread="args")


@model("ott-jax", "velocity-field U-Net", moved=True)
def ott_unet():
    from flax import nnx
    from ott.neural.networks.velocity_field.unet import UNet

    m = UNet(
        shape=(16, 16, 3),
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_heads=2,
        channel_mult=(1, 2),
        rngs=nnx.Rngs(0),
    )
    m.eval()
    return live(m, (jnp.linspace(0, 1, 4), image(size=16)), spread="args")
