"""Monte Carlo over initialisations against NumPy over the same draws, and against kernels of infinite width."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

pytestmark = pytest.mark.once

KEY = jax.random.key(3)
X1, X2 = normal(0, 4, 6), normal(1, 3, 6)


class Normed(nn.Module):
    """A network with a state, an own argument of init, and noise."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return {"a": nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x), "b": nn.Dense(2)(x)}


def mlp(width, depth=1, activation=nn.relu, **dense):
    layers = [layer for _ in range(depth) for layer in (nn.Dense(width, **dense), activation)]
    return nngp.from_linen(nn.Sequential([*layers, nn.Dense(width, **dense)]))


def one_by_one(kernel_fn, f, x1, x2, n):
    """The kernels of n networks, each from ``fold_in(key, i)``."""
    kernels, init = [], jax.jit(f.init)
    for i in range(n):
        params, state = init(jax.random.fold_in(KEY, i), x1)
        kernels.append(kernel_fn(x1, x2, params, **({"state": state} if state else {})))
    return jax.tree.map(lambda *k: np.stack(k).astype(np.float64), *kernels)


def assert_same(estimate, kernels):
    n = len(jax.tree.leaves(kernels)[0])
    assert estimate.n == n
    mean = jax.tree.map(lambda k: k.mean(axis=0), kernels)
    error = jax.tree.map(lambda k: k.std(axis=0, ddof=1) / np.sqrt(n), kernels)
    assert jax.tree.structure(estimate.mean) == jax.tree.structure(mean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), estimate.mean, mean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), estimate.standard_error, error)


@pytest.mark.parametrize(("x2", "at_once"), [(None, 4), (X2, None)], ids=["symmetric", "cross"])
def test_mean_and_standard_error_are_those_of_the_draws(x2, at_once):
    f = nngp.from_linen(Normed())
    estimate = nngp.monte_carlo_kernel_fn(f, KEY, 7, cross_terms=True, trace_axes=(), inits_at_once=at_once)(X1, x2)
    kernel_fn = jax.jit(nngp.empirical_nngp_fn(f, (), cross_terms=True))
    assert_same(estimate, one_by_one(kernel_fn, f, X1, x2, 7))


def test_batches_and_functions_give_the_same():
    f = mlp(5)
    expected = nngp.monte_carlo_kernel_fn(f, KEY, 5)(X1, X2)
    batched = nngp.monte_carlo_kernel_fn(f, KEY, 5, batch_size=2)(X1, X2)
    np.testing.assert_allclose(batched.mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(batched.standard_error, expected.standard_error, rtol=1e-4)
    plain = nngp.monte_carlo_kernel_fn(lambda p, x: f(p, x), KEY, 5, init=lambda key, x: f.init(key, x)[0])(X1, X2)
    np.testing.assert_allclose(plain.mean, expected.mean, rtol=1e-6)


def test_one_pass_keeps_the_digits_of_a_small_spread():
    """The difference of a mean of squares and a squared mean would be rounding error alone."""
    f = nngp.from_callable(
        lambda params, x: 1000 + params[None] * x, lambda key, x: jax.random.normal(key, (1,)) * 1e-3
    )
    estimate = nngp.monte_carlo_kernel_fn(f, KEY, 100)(np.ones((1, 1), np.float32))
    draws = [1000 + 1e-3 * float(jax.random.normal(jax.random.fold_in(KEY, i), (1,))[0]) for i in range(100)]
    expected = np.std(np.square(draws), ddof=1) / 10
    np.testing.assert_allclose(estimate.standard_error, expected, rtol=0.05)


def test_noise_is_drawn_anew_for_each_network():
    f = nngp.from_callable(lambda params, x, rng: jax.random.normal(rng, (len(x), 1)) * params, lambda key, x: 1.0)
    estimate = nngp.monte_carlo_kernel_fn(f, KEY, 200)(X1, rng=jax.random.key(9))
    np.testing.assert_allclose(np.diag(estimate.mean), 1, atol=5 * np.sqrt(2 / 200))
    assert (np.diag(estimate.standard_error) > 0.5 * np.sqrt(2 / 200)).all()


def test_several_numbers_of_draws_and_going_on():
    f = mlp(5)
    means = list(nngp.monte_carlo_kernel_fn(f, KEY, {40, 3, 1})(X1))
    assert [estimate.n for estimate in means] == [1, 3, 40]
    assert np.isnan(means[0].standard_error).all()
    assert np.isnan(means[0].relative_error)
    whole = nngp.monte_carlo_kernel_fn(f, KEY, 40)
    for estimate in (means[2], whole(X1, resume=means[1])):
        np.testing.assert_allclose(estimate.mean, whole(X1).mean, rtol=1e-6)
        np.testing.assert_allclose(estimate.standard_error, whole(X1).standard_error, rtol=1e-5)
    moved = dataclasses.replace(means[1], mean=means[1].mean + 1)
    np.testing.assert_allclose(whole(X1, resume=moved).mean, whole(X1).mean + 3 / 40, rtol=1e-5)  # the first 3 stay
    with pytest.raises(ValueError, match="resume= was drawn from another key or other inputs"):
        whole(X1 + 1, resume=means[1])
    with pytest.raises(ValueError, match="resume= holds 40 draws, more than n_samples=3"):
        nngp.monte_carlo_kernel_fn(f, KEY, 3)(X1, resume=means[2])


def test_tolerance():
    f = mlp(64)
    estimate = nngp.monte_carlo_kernel_fn(f, KEY, 5000, tolerance=0.05)(X1)
    assert 16 <= estimate.n < 5000
    assert estimate.relative_error <= 0.05
    largest = np.max(estimate.standard_error) / np.sqrt(np.mean(np.square(estimate.mean)))
    np.testing.assert_allclose(estimate.relative_error, largest, rtol=1e-5)
    with pytest.warns(RuntimeWarning, match=r"n_samples=20 draws gave a relative error of 0\..*, more than tolerance"):
        assert nngp.monte_carlo_kernel_fn(f, KEY, 20, tolerance=1e-3)(X1).n == 20


def test_covers_the_closed_form():
    """For one hidden layer the mean has no bias at any width, so errors are those of a Student's t of 39 degrees.

    Its 95 % interval is 2.02 standard errors. Entries of one kernel are correlated, so that 60 repeats of 10 entries
    count as at least 60 draws: 95 ± 5 times 2.8 % would be four deviations; the seed is fixed.
    """
    f = mlp(32, kernel_init=nn.initializers.variance_scaling(1.5, "fan_in", "normal"))
    kernel = nngp.closed_form.dense(1, "relu", 1.5)(X1)
    runs = [nngp.monte_carlo_kernel_fn(f, jax.random.key(seed), 40)(X1) for seed in range(60)]
    upper = np.triu_indices(len(X1))
    errors = np.stack([((run.mean - kernel) / run.standard_error)[upper] for run in runs])
    assert 0.9 <= np.mean(np.abs(errors) < 2.02) <= 0.985
    assert np.abs(errors.mean(axis=0)).max() < 4.5 / np.sqrt(60)


def signs(key, shape, dtype=jnp.float32):
    """Weights of an output, of which only the variance matters; they are drawn faster than Gaussian ones."""
    return jnp.where(jax.random.bits(key, shape, jnp.uint8) < 128, 1, -1).astype(dtype) * np.sqrt(1.5 / shape[-2])


def network(widths, activation, layer=nn.Dense):
    """Hidden layers with Gaussian weights of variance 1.5 / inputs, and 32 outputs."""
    gaussian = nn.initializers.variance_scaling(1.5, "fan_in", "normal")
    hidden = [part for width in widths for part in (layer(width, kernel_init=gaussian), activation)]
    return nngp.from_linen(nn.Sequential([*hidden, layer(32, kernel_init=signs)]))


def scaled_errors(f, kernel, seeds, x, **options):
    """How many standard errors each entry of each repeat is off, ``(repeats, 10)``."""
    # Random bits of this kind take a third of the time.
    runs = [nngp.monte_carlo_kernel_fn(f, jax.random.key(seed, impl="rbg"), 32, **options)(x) for seed in seeds]
    mean, error = (np.stack(column).reshape(-1, 4, 4) for column in zip(*map(moments, runs), strict=True))
    return ((mean - kernel) / error)[:, *np.triu_indices(4)]


def moments(run):
    return run.mean, run.standard_error


@pytest.mark.exhaustive
def test_five_architectures_have_their_closed_forms():
    """95 ± 2 % of the entries lie within 2.04 standard errors, the 95 % interval of a Student's t of 31 degrees.

    The first hidden layer has 2,048 units. Networks with one hidden layer have no bias at any width. With a second one
    it is c / (units of the first) to leading order, whatever the width of the second, as the kernel is linear in what
    its units add. With 32 units it would be 64 times as large, and is bounded there. Entries of a kernel depend on each
    other, so that the 300 kernels count as between 300 and 3,000 draws; 2 % are three deviations of 1,000. Seeds are
    fixed; those of five runs gave 94.3 to 96.1 %.
    """
    x, first = normal(3, 4, 2), 0
    pixel = partial(nn.Conv, kernel_size=(1, 1))
    gelu = partial(nn.gelu, approximate=False)
    errors = []
    for name, activation, widths, layer in [
        ("relu", nn.relu, (2048,), nn.Dense),
        ("erf", jax.lax.erf, (2048,), nn.Dense),
        ("gelu", gelu, (2048,), nn.Dense),
        ("relu", nn.relu, (2048,), pixel),
        ("erf", jax.lax.erf, (2048, 8), nn.Dense),
    ]:
        kernel = np.asarray(nngp.closed_form.dense(len(widths), name, 1.5)(x))
        options = {"diagonal_axes": (1, 2)} if layer is pixel else {}
        inputs = x.reshape(4, 1, 1, 2) if layer is pixel else x
        error = scaled_errors(network(widths, activation, layer), kernel, range(first, first + 60), inputs, **options)
        first += 60
        assert np.abs(error.mean(axis=0)).max() < 4.5 / np.sqrt(60)
        errors.append(error)
    assert 0.93 <= np.mean(np.abs(errors) < 2.04) <= 0.97
    narrow = nngp.monte_carlo_kernel_fn(network((32, 8), jax.lax.erf), KEY, 2000)(x)
    bias = (np.abs(narrow.mean - kernel) + 4 * narrow.standard_error) * 32 / 2048
    assert (bias < 0.02 * narrow.standard_error * np.sqrt(2000 / 32)).all()


def test_the_error_falls_with_the_root_of_the_number_of_draws():
    counts = 2 ** np.arange(5, 12)
    means = nngp.monte_carlo_kernel_fn(mlp(16), KEY, counts)(X1)
    slope = np.polyfit(np.log(counts), [np.log(np.mean(m.standard_error)) for m in means], 1)[0]
    assert -0.53 < slope < -0.47


def test_metrics_over_inits():
    f, x = mlp(6).layers("layers_0", "output"), normal(2, 12, 6)

    def metric(grams):
        cka = nngp.metrics.cka(grams["layers_0"], grams["output"])
        return {"cka": cka, "rank": nngp.metrics.effective_rank(grams["output"])}

    estimate = nngp.over_inits(metric, f, x, KEY, 5)
    measure = jax.jit(lambda key: metric(jax.tree.map(nngp.metrics.gram_of, f(f.init(key, x)[0], x))))
    values = [measure(jax.random.fold_in(KEY, i)) for i in range(5)]
    assert_same(estimate, jax.tree.map(lambda *v: np.stack(v).astype(np.float64), *values))
    assert nngp.over_inits(metric, f, x, KEY, 5, resume=nngp.over_inits(metric, f, x, KEY, 2)).n == 5


def test_bad_input():
    f = mlp(5)
    with pytest.raises(TypeError, match=r"has no init; pass init=, a function init\(key, x\) -> params"):
        nngp.monte_carlo_kernel_fn(lambda params, x: x, KEY, 3)
    with pytest.raises(TypeError, match=r"init=3 is not a function"):
        nngp.monte_carlo_kernel_fn(f, KEY, 3, init=3)
    with pytest.raises(ValueError, match=r"n_samples=0 must be 1 or more"):
        nngp.monte_carlo_kernel_fn(f, KEY, 0)
    with pytest.raises(TypeError, match=r"n_samples=2.5 must be a whole number"):
        nngp.monte_carlo_kernel_fn(f, KEY, 2.5)
    with pytest.raises(ValueError, match=r"tolerance=-1 must be positive, and n_samples=3 the most draws"):
        nngp.monte_carlo_kernel_fn(f, KEY, 3, tolerance=-1)
    with pytest.raises(ValueError, match=r"inits_at_once=0 must be 1 or more"):
        nngp.monte_carlo_kernel_fn(f, KEY, 3, inits_at_once=0)
    with pytest.raises(ValueError, match=r"x1 with shape \(0, 6\) is an empty batch"):
        nngp.monte_carlo_kernel_fn(f, KEY, 3)(X1[:0])
    with pytest.raises(TypeError, match="a loop over networks cannot start inside jit"):
        jax.jit(nngp.monte_carlo_kernel_fn(f, KEY, 3))(jnp.asarray(X1))
