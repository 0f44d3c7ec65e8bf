"""A Haiku ResNet-50 in batches: the kernel of its features, and those of every layer."""

import time
from collections import Counter
from functools import lru_cache, partial
from math import prod

import jax
import jax.numpy as jnp
from _device import compilations, jitted
from harness import Case, Contender, Target, ratio

from ._nets import forward_of, images, images_on_host, network, some_more, weights_of


@lru_cache(maxsize=1)
def features(net, side):
    """The network without its head, with its weights; one for both places of the images, so that it compiles once."""
    import nngp_plugins as nngp

    net = network(net, 1000, head=False)
    f = nngp.from_haiku(net, is_training=False)
    return *weights_of(net, side), forward_of(net), f


def by_hand(source, net, side, n, batch_size):
    params, state, forward, _ = features(net, side)
    x = source(n, side)
    product = jitted(lambda y: jnp.matmul(y, y.T, precision="highest") / y.shape[1])

    def run():
        y = [forward(params, state, x[i : i + batch_size]) for i in range(0, n, batch_size)]
        return product(jnp.concatenate(y)).block_until_ready()

    return run


def ours(source, net, side, n, batch_size):
    import nngp_plugins as nngp

    params, state, _, f = features(net, side)
    x, kernel_fn = source(n, side), nngp.batch(nngp.empirical_nngp_fn(f), batch_size)
    return lambda: kernel_fn(x, None, params, state=state).block_until_ready()


def case_of_outputs(where, source):
    return Case(
        f"Haiku {{net}}, {{n}} images of {{side}}² {where}, batch {{batch_size}}, pooled features",
        {
            "hand-written": Contender(
                partial(by_hand, source), "a jitted forward pass of each batch, one jitted `y @ y.T / D`"
            ),
            "ours": Contender(partial(ours, source), "`nngp.batch(nngp.empirical_nngp_fn(f), batch_size)`"),
        },
        [ratio("ours", "hand-written", at_most=1.05)],
        sizes={"net": "ResNet-50", "side": 224, "n": 2048, "batch_size": 128},
        quick={"net": "small ResNet", "side": 32, "n": 16, "batch_size": 4},
        rounds=5,
    )


OUTPUTS = [case_of_outputs("on the device", images), case_of_outputs("on the host", images_on_host)]


@lru_cache(maxsize=1)
def with_layers(net, side, batch_size):
    """The whole network with its weights, and the kernel function of all layers."""
    import nngp_plugins as nngp

    net = network(net, 1000)
    f = nngp.from_haiku(net, is_training=False).layers()
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch), batch_size)
    return net, *weights_of(net, side), f, kernel_fn


def compilation_of_forward(net, side, n, batch_size):
    _, params, state, f, _ = with_layers(net, side, batch_size)
    x = jax.ShapeDtypeStruct((some_more(batch_size), side, side, 3), jnp.float32)
    forward = jax.jit(lambda params, state, x: f(params, x, state=state))

    def run():
        with compilations() as made:
            forward.lower(params, state, x).compile()
        return {"seconds": made.seconds, "notes": f"programs {made.programs}"}

    return run


def compilation_of_kernels(net, side, n, batch_size):
    kernels = kernels_of_layers(net, side, n, batch_size)

    def run():
        with compilations() as made:
            kernels()
        return {"seconds": made.seconds, "programs": made.programs}

    return run


def pass_and_products(net, side, n, batch_size):
    """Random outputs of one shape at a time, because those of all layers do not fit on the device."""
    net, params, state, f, _ = with_layers(net, side, batch_size)
    x, forward = images(n, side), forward_of(net)
    shapes = f.layer_shapes(params, x[:1], state=state).values()
    layers = Counter(prod(shape.shape[1:]) for shape in shapes)
    product = jitted(lambda y: jnp.matmul(y, y.T, precision="highest") / y.shape[1])
    normal = jax.jit(lambda key, d: jax.random.normal(key, (n, d), jnp.float32), static_argnums=1)

    def run():
        start = time.perf_counter()
        jax.block_until_ready([forward(params, state, x[i : i + batch_size]) for i in range(0, n, batch_size)])
        seconds = time.perf_counter() - start
        for d, times in layers.items():
            y = normal(jax.random.key(d), d).block_until_ready()
            start = time.perf_counter()
            jax.block_until_ready([product(y) for _ in range(times)])
            seconds += time.perf_counter() - start
        return {"seconds": seconds, "notes": f"layers {layers.total()}, of {len(layers)} sizes"}

    return run


def kernels_of_layers(net, side, n, batch_size):
    _, params, state, _, kernel_fn = with_layers(net, side, batch_size)
    x = images(n, side)

    def run():
        jax.block_until_ready(kernel_fn(x, None, params, state=state))

    return run


case = partial(
    Case,
    sizes={"net": "ResNet-50", "side": 224, "n": 768, "batch_size": 64},
    quick={"net": "small ResNet", "side": 32, "n": 12, "batch_size": 4},
)
LAYERS = [
    # Nothing of this batch size may be compiled before this one.
    case(
        "compilation of the kernels of every layer of Haiku {net}, {n} images of {side}², batch {batch_size}",
        {
            "floor": Contender(
                compilation_of_forward, "that of the forward pass with every layer, of a few more images", warm=False
            ),
            "ours": Contender(compilation_of_kernels, "that of all programs of the first call", warm=False),
        },
        [ratio("ours", "floor", at_most=3), Target("programs", lambda numbers, _: numbers["ours"], "programs")],
        rounds=1,
    ),
    case(
        "kernels of every layer of Haiku {net}, {n} images of {side}², batch {batch_size}",
        {
            "floor": Contender(
                pass_and_products, "the jitted forward pass of each batch, and one product a layer of random outputs"
            ),
            "ours": Contender(kernels_of_layers, "`nngp.batch(kernel_fn of f.layers(), batch_size)`, all but N traced"),
        },
        [ratio("ours", "floor", at_most=1.5)],
        rounds=3,
    ),
]
