"""What it costs to have every layer of a Haiku ResNet-18 from the forward pass, kernels apart."""

import jax
from harness import Case, Contender, ratio
from resnet18 import net, weights_and_images


def floor(n):
    params, state, x = weights_and_images(n)
    forward = jax.jit(lambda params, state, x: net.apply(params, state, None, x, is_training=False)[0])
    return lambda: forward(params, state, x).block_until_ready()


def ours(n):
    import nngp_plugins as nngp

    params, state, x = weights_and_images(n)
    f = nngp.from_haiku(net, is_training=False).layers()
    forward = jax.jit(lambda params, state, x: f(params, x, state=state))

    return lambda: list(jax.block_until_ready(forward(params, state, x)).values())[-1]


CASES = [
    Case(
        "every layer of Haiku ResNet-18, {n} images of 32×32",
        {
            "floor": Contender(floor, "jitted forward pass without capture"),
            "ours": Contender(ours, "jitted `f.layers()(params, x, state=state)`"),
        },
        [ratio("ours", "floor", at_most=1.05)],
        sizes={"n": 128},
        quick={"n": 4},
        rounds=15,
    )
]
