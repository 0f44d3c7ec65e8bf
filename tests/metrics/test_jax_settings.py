"""Every metric under every setting of JAX that users make to find mistakes in their own programs."""

import gc
from contextlib import contextmanager
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

from nngp_plugins import metrics
from nngp_plugins.metrics import DenseGram, FeatureGram

N = 12
Y = np.arange(N) % 3
ONE_HOT = np.eye(3)[Y]
CLASSIFIER, LOGITS = normal(5, 4, 3), normal(6, N, 3)


@contextmanager
def refusing(x64=False):
    """Everything that JAX can be told to refuse; each refuses it beside the others, too."""
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.transfer_guard("disallow"),
        jax.enable_x64(x64),
    ):
        yield


@contextmanager
def refusing_with_64_bits():
    with refusing(x64=True):
        yield


def products_at_bfloat16():
    return jax.default_matmul_precision("bfloat16")


OF_ONE = {
    "scale": metrics.scale,
    "effective_rank": metrics.effective_rank,
    "RankMe": lambda a: metrics.effective_rank(a, of="singular_values"),
    "entropy": metrics.von_neumann_entropy,
    "participation_ratio": metrics.participation_ratio,
    "stable_rank": metrics.stable_rank,
    "spectrum": lambda a: metrics.spectrum(a, 3),
    "power_law_exponent": lambda a: metrics.power_law_exponent(a, (1, 3)),
    "condition_number": metrics.condition_number,
    "target_alignment": lambda a: metrics.target_alignment(a, Y),
    "target_alignment of one-hot": lambda a: metrics.target_alignment(a, ONE_HOT),
    "class_block_means": lambda a: metrics.class_block_means(a, Y),
    "class_separation": lambda a: metrics.class_separation(a, Y),
    "neural_collapse": lambda a: metrics.neural_collapse(a, Y, logits=LOGITS),
    "regression_accuracy": lambda a: metrics.regression_accuracy(a, Y),
    "log_marginal_likelihood": lambda a: metrics.log_marginal_likelihood(a, Y),
    "minibatch_cka_matrix": lambda a: metrics.minibatch_cka_matrix([([a], None), ([a], None)]),
}
OF_TWO = {
    "cka": metrics.cka,
    "alignment": lambda a, b: metrics.alignment(a, b, center=False),
    "kernel_distance": metrics.kernel_distance,
    "centered_kernel_velocity": lambda a, b: metrics.centered_kernel_velocity(a, b, 2.0),
    "relative_change": metrics.relative_change,
    "bures_distance": metrics.bures_distance,
    "eigenvector_overlap": lambda a, b: metrics.eigenvector_overlap(a, b, 2),
    "cka_matrix": lambda a, b: metrics.cka_matrix({"a": a, "b": b}),
    "rsa": metrics.rsa,
    "distance_correlation": metrics.distance_correlation,
    "mutual_knn": lambda a, b: metrics.mutual_knn(a, b, 2),
    "gulp": metrics.gulp,
}


FEATURES = normal(0, N, 4) + 0.5, normal(1, N, 4) + 0.5
KERNELS = tuple(f @ f.T for f in (normal(3, N, 20), normal(4, N, 20)))
ARRAYS = FEATURES, KERNELS, normal(2, N, 5, 4), jax.random.key(0)


EVERY = {**metrics.DEFAULT, **metrics.of_targets(Y)}
del EVERY["kernel_velocity"]  # It divides by the steps, which are nan at the first snapshot.


def of_each(a, b):
    """The values of every metric of Grams of one form."""
    return {name: metric(a) for name, metric in OF_ONE.items()} | {name: m(a, b) for name, m in OF_TWO.items()}


def some_values(features, kernels, wide, key):
    """The values of every metric of features, and what else the room does."""
    a, b = map(FeatureGram, features)
    return {
        "features": of_each(a, b),
        "array": (metrics.cka(*kernels), metrics.effective_rank(kernels[0])),
        "NC3": metrics.neural_collapse(a, Y, classifier=CLASSIFIER),
        "bootstrap": metrics.bootstrap(metrics.cka, (a, b), 5, key),
        "evaluate_layer": metrics.evaluate_layer(EVERY, a, b, b, 1.0),
    }


def all_values(features, kernels, wide, key):
    """The values of kernels and of stacked layers, too."""
    grams = [metrics.stacked_grams({"wide": wide})] * 3
    found = {"dense": of_each(*map(DenseGram, kernels)), "stacked": metrics.evaluate(EVERY, *grams, 1.0)}
    return some_values(features, kernels, wide, key) | found


def eager(values):
    """Eager calls with features and kernels in host memory."""
    features, kernels, wide, key = ARRAYS
    return values(features, kernels, jax.device_put(wide), key)


def at_once(values):
    """One program: what JAX refuses or chooses when it traces, it does within a program, too."""
    return jax.jit(values)(*jax.device_put(ARRAYS))


@cache
def expected(values):
    return jax.device_get(at_once(values))


def test_no_tracer_is_left_behind():
    """It comes first, as JAX does not trace again what it has traced."""
    # JAX collects garbage after each function, and need not look through what was there before.
    gc.collect()
    gc.freeze()
    with jax.checking_leaks():
        jax.eval_shape(all_values, *ARRAYS)


def assert_equal(found, expected):
    # Which examples are drawn, and so the standard error, depends on the width of integers.
    found, expected = ({**of, "bootstrap": of["bootstrap"][0]} for of in (found, expected))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, value), want in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, want, rtol=2e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("setting", "run", "values"),
    [
        pytest.param(refusing, eager, some_values, id="all that refuse something"),
        pytest.param(refusing_with_64_bits, at_once, all_values, id="64 bits", marks=pytest.mark.exhaustive),
        pytest.param(jax.disable_jit, eager, all_values, id="no jit", marks=pytest.mark.exhaustive),
        pytest.param(
            products_at_bfloat16, at_once, all_values, id="products at bfloat16", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_every_metric(setting, run, values):
    want = expected(values)
    with setting():
        found = jax.device_get(run(values))
    assert 0 < found["bootstrap"][1] < 1
    assert_equal(found, want)


def test_gradients_of_metrics_with_64_bits_and_strict_dtypes():
    """Features in float32 stay in float32 where JAX's floats have 64 bits."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        phi, psi = (jnp.asarray(normal(seed, N, 4)) for seed in (0, 1))
        for metric in (metrics.cka, metrics.relative_change, metrics.kernel_distance):
            gradient = jax.jit(jax.grad(lambda f, metric=metric: metric(FeatureGram(f), FeatureGram(psi))))(phi)
            assert gradient.dtype == np.float32
            assert np.isfinite(gradient).all()
