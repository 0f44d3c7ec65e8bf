"""A Haiku ResNet-18 in batches, its penultimate features: by hand, with this library, with neural-tangents."""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, ratio


def headless(next_call, args, kwargs, context):
    is_head = context.method_name == "__call__" and context.module.name == "logits"
    return args[0] if is_head else next_call(*args, **kwargs)


@hk.transform_with_state
def net(x, is_training):
    with hk.intercept_methods(headless):
        return hk.nets.ResNet18(10)(x, is_training)


def weights(net, x, rng):
    """Parameters and state, the same in every version of Haiku."""
    params, state = jax.eval_shape(partial(net.init, is_training=True), jax.random.PRNGKey(0), x[:1])

    def values(w):
        if w.ndim < 2:
            return np.ones(w.shape, w.dtype)
        return np.float32((2 / np.prod(w.shape[:-1])) ** 0.5) * rng.standard_normal(w.shape, np.float32)

    params = jax.tree_util.tree_map(values, params)
    # moving variances of one, moving means of zero
    state = {
        name: {key: np.full(leaf.shape, "var" in name, leaf.dtype) for key, leaf in leaves.items()}
        for name, leaves in state.items()
    }
    # Only now, because a GPU would compile a program for each shape.
    return jax.device_put((params, state))


def weights_and_images(n):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 32, 32, 3), np.float32)
    return *weights(net, x, rng), x


def resnet(n):
    """``f(params, x)`` with its parameters and images."""
    params, state, x = weights_and_images(n)
    return lambda params, x: net.apply(params, state, None, x, is_training=False)[0], params, x


def by_hand(n, batch_size):
    f, params, x = resnet(n)
    forward, product = jax.jit(f), jax.jit(lambda y: jnp.matmul(y, y.T, precision="highest") / y.shape[1])

    def run():
        y = [forward(params, x[i : i + batch_size]) for i in range(0, n, batch_size)]
        return product(jnp.concatenate(y)).block_until_ready()

    return run


def ours(n, batch_size):
    import nngp_plugins as nngp

    f, params, x = resnet(n)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), batch_size)
    return lambda: kernel_fn(x, None, params).block_until_ready()


def peer(n, batch_size):
    import neural_tangents as nt

    f, params, x = resnet(n)
    kernel_fn = nt.batch(nt.empirical_nngp_fn(f, trace_axes=(-1,)), batch_size)
    kernel_fn(x[: 2 * batch_size], None, params).block_until_ready()  # compiles all that it needs
    return lambda: kernel_fn(x, None, params).block_until_ready()


CASES = [
    Case(
        "Haiku ResNet-18, N={n}, 32×32 images, batch {batch_size}, penultimate features",
        {
            "hand-written": Contender(by_hand, "a jitted forward pass of each batch, one jitted `y @ y.T / D`"),
            "ours": Contender(ours, "`nngp.batch(nngp.empirical_nngp_fn(f), batch_size)`"),
            # minutes each
            "peer": Contender(peer, "`nt.batch(nt.empirical_nngp_fn(f), batch_size)`", peer=True, rounds=2, warm=False),
        },
        [ratio("ours", "hand-written", at_most=1.08), ratio("peer", "ours", at_least=25)],
        sizes={"n": 512, "batch_size": 32},
        quick={"n": 16, "batch_size": 4},
    )
]
