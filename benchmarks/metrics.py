"""What metrics cost over the algebra in them: a spectrum, one CKA, every default metric of many layers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, Target, ratio


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def done(run):
    """Waits for what ``run`` returns, which is not that of the other contenders."""

    def wait():
        jax.block_until_ready(run())

    return wait


def metrics_with_targets(n):
    import nngp_plugins as nngp

    return {**nngp.metrics.DEFAULT, **nngp.metrics.of_targets(np.arange(n) % 10)}


def dense_eigenvalues(n, d):
    phi = normal(0, n, d)
    kernel = jax.jit(lambda phi: jnp.matmul(phi, phi.T, precision="highest"))(phi)
    eigenvalues = jax.jit(jnp.linalg.eigvalsh)
    return lambda: np.sort(eigenvalues(kernel).block_until_ready())[-d:]


def every_metric(n, d):
    from nngp_plugins.metrics import FeatureGram, spectrum

    metrics = metrics_with_targets(n)
    gram, reference = FeatureGram(normal(0, n, d)), FeatureGram(normal(0, n, d) + 0.1 * normal(1, n, d))

    @jax.jit
    def run(gram, reference):
        return spectrum(gram), {name: metric(gram, reference) for name, metric in metrics.items()}

    return lambda: jax.block_until_ready(run(gram, reference))[0][::-1]


def two_products(n, d):
    phi, psi = normal(0, n, d), normal(1, n, d)
    products = jax.jit(lambda a, b: [jnp.matmul(a.T, c, precision="highest") for c in (a, b)])
    return done(lambda: products(phi, psi))


def one_cka(n, d):
    from nngp_plugins.metrics import FeatureGram, cka

    a, b = FeatureGram(normal(0, n, d)), FeatureGram(normal(1, n, d))
    return done(lambda: cka(a, b))


def layers_of(n, layers):
    return [normal(i, n, 64 * (1 + i % 8)) for i in range(layers)]


def grams_and_eigenvalues(over_layers, n, layers):
    outputs = layers_of(n, layers)

    @jax.jit
    def run(outputs):
        kernels = jnp.stack([jnp.matmul(y, y.T, precision="highest") / y.shape[1] for y in outputs])
        return over_layers(jnp.linalg.eigvalsh, kernels)

    return done(lambda: run(outputs))


def every_metric_of_layers(n, layers):
    import time

    from nngp_plugins.callbacks._measure import layer_metrics, stacked_grams  # what a tracker runs

    outputs, metrics = dict(enumerate(layers_of(n, layers))), metrics_with_targets(n)
    references = stacked_grams({i: y + 0.1 * normal(99, *y.shape) for i, y in outputs.items()})

    def run(outputs, references):
        return layer_metrics(metrics, stacked_grams(outputs), references)[0]

    start = time.perf_counter()
    compiled = jax.jit(run).lower(outputs, references).compile()
    compilation = time.perf_counter() - start

    def measured():
        start = time.perf_counter()
        jax.block_until_ready(compiled(outputs, references))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "compilation": compilation}

    return measured


CASES = [
    Case(
        "the spectrum and every default metric, N={n}, D={d}",
        {
            "dense": Contender(dense_eigenvalues, "`eigvalsh` of the kernel by its entries"),
            "ours": Contender(every_metric, "`spectrum` and the twelve default metrics of a `FeatureGram`, jitted"),
        },
        [ratio("dense", "ours", at_least=100)],
        sizes={"n": 4096, "d": 256},
        quick={"n": 200, "d": 60},
    ),
    Case(
        "CKA of two sets of features, N={n}, D={d}",
        {
            "floor": Contender(two_products, "two jitted products, `a.T @ a` and `a.T @ b`"),
            "ours": Contender(one_cka, "`cka(a, b)`, debiased"),
        },
        [
            ratio("ours", "floor", at_most=1.3),
        ],
        sizes={"n": 50_000, "d": 512},
        quick={"n": 3000, "d": 16},
        rounds=15,
    ),
    Case(
        "memory of the first CKA of two sets of features, N={n}, D={d}",
        {"ours": Contender(one_cka, "`cka(a, b)`, with its compilation", warm=False, fresh=True)},
        [Target("beside the inputs", lambda numbers, _: numbers["ours"], "growth", "bytes", at_most=100e6)],
        sizes={"n": 50_000, "d": 512},
        quick={"n": 3000, "d": 16},
        rounds=3,
        shows="growth",
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
            "ours": Contender(every_metric_of_layers, "twelve metrics of each, jitted"),
        },
        [
            ratio("ours", "floor", at_most=1.3),
            Target("seconds to compile", lambda numbers, _: numbers["ours"], "compilation", at_most=10),
        ],
        sizes={"n": 512, "layers": 50},
        quick={"n": 60, "layers": 3},
    ),
]
