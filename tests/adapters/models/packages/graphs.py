"""Graphs and games."""

import jax
import jax.numpy as jnp

from .common import haiku, image, linen, live, model, normal

RING = jnp.stack([jnp.arange(6), (jnp.arange(6) + 1) % 6])


@model("rejax", "dueling Q-network")
def rejax_dueling():
    from rejax.networks import DuelingQNetwork

    return linen(DuelingQNetwork(hidden_layer_sizes=(16, 16), activation=jax.nn.relu, action_dim=3), normal(6, 4))


@model("rejax", "Gaussian policy", "the output is a distrax distribution")
def rejax_gaussian():
    from rejax.networks import GaussianPolicy

    return linen(
        GaussianPolicy(action_dim=3, action_range=(-1.0, 1.0), hidden_layer_sizes=(16, 16), activation=jax.nn.relu),
        normal(6, 4),
        method="_action_dist",
    )


@model("jumanji", "TSP transformer torso")
def jumanji_tsp():
    from jumanji.training.networks.tsp.actor_critic import TSPTorso

    return haiku(
        lambda c, m: TSPTorso(2, 2, 8, [16])(c, m), (normal(4, 6, 2), jnp.ones((4, 1, 6, 6), bool)), spread="args"
    )


@model("jumanji", "FlatPack U-Net")
def jumanji_unet():
    from jumanji.training.networks.flat_pack.actor_critic import UNet

    return haiku(lambda g: UNet(16)(g), normal(4, 11, 11))


@model("evojax", "CNN policy")
def evojax_cnn():
    from evojax.policy.convnet import CNN

    return linen(CNN(), image(4, 28, 1))


@model("evojax", "MLP policy")
def evojax_mlp():
    from evojax.policy.mlp import MLP

    return linen(MLP(feat_dims=(16, 16), out_dim=3, out_fn="tanh"), normal(6, 4))


@model("jraphx", "GAT", mixes=True)
def jraphx_gat():
    from flax import nnx
    from jraphx.nn.models import GAT

    m = GAT(4, 16, num_layers=3, out_features=5, heads=2, norm="layer_norm", jk="cat", rngs=nnx.Rngs(0))
    m.eval()
    return live(m, normal(6, 4), call={"edge_index": RING})


@model("jraphx", "GIN, batch norm", mixes=True)
def jraphx_gin():
    from flax import nnx
    from jraphx.nn.models import GIN

    m = GIN(4, 16, num_layers=3, out_features=5, norm="batch_norm", rngs=nnx.Rngs(0))
    m.eval()
    return live(m, normal(6, 4), call={"edge_index": RING})


@model("haiku-geometric", "GCN", mixes=True)
def haiku_gcn():
    from haiku_geometric.nn import GCNConv

    def net(x, senders, receivers):
        x = jax.nn.relu(GCNConv(8)(x, senders, receivers))
        return GCNConv(3)(x, senders, receivers)

    return haiku(
        net,
        normal(6, 4),
        init={"senders": RING[0], "receivers": RING[1]},
        call={"senders": RING[0], "receivers": RING[1]},
    )


@model("haiku-geometric", "GAT", mixes=True)
def haiku_gat():
    from haiku_geometric.nn import GATConv

    def net(x, senders, receivers):
        return GATConv(8, heads=2, add_self_loops=False)(x, senders, receivers)

    return haiku(
        net,
        normal(6, 4),
        init={"senders": RING[0], "receivers": RING[1]},
        call={"senders": RING[0], "receivers": RING[1]},
    )


@model("jraph", "GraphNetwork", "a GraphsTuple in and out", mixes=True)
def jraph_gn():
    import flax.linen as nn
    import jraph

    class Net(nn.Module):
        @nn.compact
        def __call__(self, g):
            def mlp(n):
                return jraph.concatenated_args(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(8)], name=n))

            return jraph.GraphNetwork(mlp("edge"), mlp("node"), mlp("global"))(g)

    g = jraph.GraphsTuple(
        nodes=normal(6, 4),
        edges=normal(6, 2),
        senders=RING[0],
        receivers=RING[1],
        n_node=jnp.array([3, 3]),
        n_edge=jnp.array([3, 3]),
        globals=normal(2, 3),
    )
    return linen(Net(), g)


@model("pgx", "AlphaZero ResNet", doubles=False)
def pgx_alphazero():
    from pgx._src.baseline import _create_az_model_v0

    return haiku(
        lambda x, is_training=False: _create_az_model_v0(num_actions=9, num_channels=8, num_layers=2)(
            x, is_training, False
        ),
        normal(4, 3, 3, 2),
        with_state=True,
        init={"is_training": True},
    )
