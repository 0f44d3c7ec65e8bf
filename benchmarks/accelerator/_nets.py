"""Haiku's ResNets with their weights, and images, on the device."""

from contextlib import nullcontext
from functools import lru_cache, partial

import haiku as hk
import jax
import numpy as np
from resnet18 import headless, weights

NETS = {
    "ResNet-18": hk.nets.ResNet18,
    "ResNet-50": hk.nets.ResNet50,
    # for a smoke test
    "small ResNet": partial(hk.nets.ResNet, (1, 1, 1, 1), channels_per_group=(16, 16, 16, 16)),
}


def network(name, classes, head=True):
    """Without its head, it returns the pooled features. ``weights`` fills a head, which Haiku leaves at zero."""

    @hk.transform_with_state
    def net(x, is_training):
        with nullcontext() if head else hk.intercept_methods(headless):
            return NETS[name](classes)(x, is_training)

    return net


def weights_of(net, side):
    return weights(net, np.zeros((1, side, side, 3), np.float32), np.random.default_rng(0))


# These hold gigabytes, so only the last ones stay.
@lru_cache(maxsize=1)
def images(n, side):
    """On the device, and made there."""
    return jax.jit(lambda key: jax.random.normal(key, (n, side, side, 3), np.float32))(jax.random.key(0))


@lru_cache(maxsize=1)
def images_on_host(n, side):
    return np.random.default_rng(0).random((n, side, side, 3), np.float32) - np.float32(0.5)


def forward_of(net):
    """The jitted forward pass, ``forward(params, state, x)``."""
    return jax.jit(lambda params, state, x: net.apply(params, state, None, x, is_training=False)[0])


def some_more(n):
    """A number of images near ``n``: XLA remembers what it tuned for a shape, so a compilation needs a new one."""
    return n + 8
