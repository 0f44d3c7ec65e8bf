"""Every layer: of a Haiku ResNet-18 from its forward pass, kernels apart; and the default metrics of fifty."""

import time
from functools import partial

import jax
import jax.numpy as jnp
from harness import Case, Contender, Target, ratio
from metrics import metrics_with_targets, normal
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


def layers_of(n, layers):
    return [normal(i, n, 64 * (1 + i % 8)) for i in range(layers)]


def grams_and_eigenvalues(over_layers, n, layers):
    outputs = layers_of(n, layers)

    @jax.jit
    def run(outputs):
        kernels = jnp.stack([jnp.matmul(y, y.T, precision="highest") / y.shape[1] for y in outputs])
        return over_layers(jnp.linalg.eigvalsh, kernels)

    def measured():
        jax.block_until_ready(run(outputs))

    return measured


def every_metric_of_layers(n, layers):
    """All layers in one program, and their eigenvalues in one thread."""
    from nngp_plugins.metrics import evaluate, stacked_grams, with_eigenvalues

    outputs, metrics = dict(enumerate(layers_of(n, layers))), metrics_with_targets(n)
    references = with_eigenvalues(stacked_grams({i: y + 0.1 * normal(99, *y.shape) for i, y in outputs.items()}))
    start = time.perf_counter()
    grams_of = jax.jit(stacked_grams).lower(outputs).compile()
    compiled = jax.jit(partial(evaluate, metrics)).lower(references, references, references, 1.0).compile()
    compilation = time.perf_counter() - start

    def measured():
        start = time.perf_counter()
        grams = with_eigenvalues(grams_of(outputs))
        jax.block_until_ready(compiled(grams, references, references, 1.0))
        return {"seconds": time.perf_counter() - start, "compilation": compilation}

    return measured


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
    ),
    Case(
        "every default metric of {layers} layers, N={n}",
        {
            "floor, batched": Contender(
                partial(grams_and_eigenvalues, lambda f, kernels: jax.vmap(f)(kernels)),
                "their kernels, and `eigvalsh` of all",
            ),
            "floor, in turn": Contender(
                partial(grams_and_eigenvalues, jax.lax.map), "their kernels, and `eigvalsh` of each in turn"
            ),
            "ours": Contender(every_metric_of_layers, "thirteen metrics of each, by `with_eigenvalues` and `evaluate`"),
        },
        [
            ratio("ours", "floor", at_most=1.3),
            Target("seconds to compile", lambda numbers, _: numbers["ours"], "compilation", at_most=10),
        ],
        sizes={"n": 512, "layers": 50},
        quick={"n": 60, "layers": 3},
    ),
]
