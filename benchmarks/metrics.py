"""The spectrum and every default metric of many examples, by their features."""

import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Contender, ratio


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


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


CASES = [
    Case(
        "the spectrum and every default metric, N={n}, D={d}",
        {
            "dense": Contender(dense_eigenvalues, "`eigvalsh` of the kernel by its entries"),
            "ours": Contender(every_metric, "`spectrum` and the thirteen default metrics of a `FeatureGram`, jitted"),
        },
        [ratio("dense", "ours", at_least=100)],
        sizes={"n": 4096, "d": 256},
        quick={"n": 200, "d": 60},
    ),
]
