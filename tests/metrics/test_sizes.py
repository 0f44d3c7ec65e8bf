"""Features as small or as large as float32 holds them: metrics that do not depend on their size stay."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins import metrics
from nngp_plugins.metrics import DenseGram, FeatureGram, OfStep, Product, product_from_first

from . import oracles

pytestmark = pytest.mark.once

N = 14
Y = np.arange(N) % 3
REAL = np.random.default_rng(9).normal(size=(N, 1))
SIZES = [1e-35, 1e-20, 1e-10, 1e10, 1e20, 1e35]
SHAPES = {"N>D": (N, 4), "N<D": (N, 20)}
by_entries = jax.jit(lambda phi: FeatureGram(phi).by_entries())
FORMS = {"features": lambda phi: FeatureGram(jnp.asarray(phi)), "by entries": by_entries}
# Of a kernel that float32 holds; features have the square root of its size.
ENTRIES = {"dense": lambda phi: DenseGram(jnp.asarray(phi @ phi.T))}
# Entries have one shape, whatever features they are of.
EACH = pytest.mark.parametrize(
    ("shape", "form"),
    [
        ("N>D", "features"),
        ("N<D", "by entries"),
        pytest.param("N<D", "features", marks=pytest.mark.exhaustive),
    ],
)

OF_ONE = {
    "effective_rank": metrics.effective_rank,
    "RankMe": partial(metrics.effective_rank, of="singular_values"),
    "entropy": metrics.von_neumann_entropy,
    "participation_ratio": metrics.participation_ratio,
    "stable_rank": metrics.stable_rank,
    "power_law_exponent": partial(metrics.power_law_exponent, window=(1, 3)),
    "condition_number": metrics.condition_number,
    "target_alignment": partial(metrics.target_alignment, y=Y),
    "class_separation": partial(metrics.class_separation, y=Y),
    "neural_collapse": lambda a: metrics.neural_collapse(a, Y, logits=np.eye(3)[Y]),
    "regression_accuracy": partial(metrics.regression_accuracy, y=Y),
}
OF_TWO = {
    "cka": metrics.cka,
    "biased cka": partial(metrics.cka, debiased=False),
    "alignment": partial(metrics.alignment, center=False),
    "kernel_distance": metrics.kernel_distance,
    "centered_kernel_velocity": lambda a, b: metrics.centered_kernel_velocity(a, b, 2.0),
    "eigenvector_overlap": partial(metrics.eigenvector_overlap, k=2),
    "cka_matrix": lambda a, b: metrics.cka_matrix([a, b], [b]),
}


@jax.jit
def both_kinds(a, b):
    """The metrics that do not depend on the size, and those that do, of one program."""
    invariant = {name: metric(a) for name, metric in OF_ONE.items()} | {name: m(a, b) for name, m in OF_TWO.items()}
    pair = {"relative_change": metrics.relative_change(a, b), "bures_distance": metrics.bures_distance(a, b)}
    return invariant, pair | {"scale": metrics.scale(a), "spectrum": metrics.spectrum(a), "trace": a.trace()}


def invariant(a, b):
    return both_kinds(a, b)[0]


def of_size(a, b):
    return jax.device_get(both_kinds(a, b)[1])


def pair_of(shape, form, size_a=1.0, size_b=1.0):
    phi, psi = both(shape)
    return form(np.float32(size_a * phi)), form(np.float32(size_b * psi))


def both(shape):
    rng = np.random.default_rng(0)
    psi = rng.normal(size=SHAPES[shape]) + 0.5
    return psi + 0.3 * rng.normal(size=psi.shape), psi


def assert_same(measured, expected):
    for (path, value), want in zip(
        jax.tree_util.tree_leaves_with_path(measured), jax.tree.leaves(expected), strict=True
    ):
        # Sizes that are no powers of two round the features once more.
        np.testing.assert_allclose(value, want, rtol=2e-3, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@jax.jit
def likelihood(gram, y):
    return metrics.log_marginal_likelihood(gram, y, nugget=0.01)


@partial(jax.jit, static_argnums=0)
def gradients(form, phi, psi, size):
    form = {**FORMS, "features": FeatureGram}[form]

    def of(metric):
        return jax.grad(lambda f: metric(form(f), form(psi * size)))(phi * size) * size

    return {m.__name__: of(m) for m in (metrics.cka, metrics.relative_change, metrics.kernel_distance)}


@EACH
class TestFeatures:
    def test_what_is_invariant_stays(self, shape, form):
        expected = invariant(*pair_of(shape, FORMS[form]))
        phi, psi = both(shape)
        assert float(expected["biased cka"]) == pytest.approx(
            oracles.cka_oracle(oracles.hsic_biased)(phi, psi), rel=1e-4
        )
        of_its_own = ((1e-35, 1e35), (1e35, 1e-35), (1.0, 1e-30), (1e20, 1.0))
        for sizes in (*((size, size) for size in SIZES), *of_its_own):
            assert_same(invariant(*pair_of(shape, FORMS[form], *sizes)), expected)

    def test_what_is_relative_is_right_if_float32_holds_it(self, shape, form):
        phi, psi = both(shape)
        for size in SIZES:
            for factor in (1.0, 1e-9, 30.0, 1e9):
                if not 1e-36 < factor * size < 1e36:
                    continue
                measured = of_size(*pair_of(shape, FORMS[form], factor * size, size))
                expected = oracles.relative_change(factor * phi, psi)
                assert float(measured["relative_change"]) == pytest.approx(expected, rel=1e-3), (size, factor)
                expected = oracles.procrustes(factor * phi, psi) * size
                assert float(measured["bures_distance"]) == pytest.approx(expected, rel=1e-3), (size, factor)

    def test_what_counts_the_size_is_that_of_the_kernel(self, shape, form):
        phi, _ = both(shape)
        eigenvalues = np.linalg.eigvalsh(phi @ phi.T)[::-1]
        for size in (1e-15, 1e-10, 1e10, 1e15):
            measured = of_size(*pair_of(shape, FORMS[form], size, 1.0))
            np.testing.assert_allclose(measured["scale"], np.mean(np.sum(phi**2, axis=1)) * size**2, rtol=1e-4)
            np.testing.assert_allclose(measured["trace"], np.sum(phi**2) * size**2, rtol=1e-4)
            np.testing.assert_allclose(measured["spectrum"][:4], eigenvalues[:4] * size**2, rtol=1e-3)
        # These are not among the numbers of float32.
        assert float(of_size(*pair_of(shape, FORMS[form], 1e-30, 1.0))["scale"]) == 0
        assert float(of_size(*pair_of(shape, FORMS[form], 1e30, 1.0))["scale"]) == np.inf

    def test_likelihood(self, shape, form):
        phi, _ = both(shape)

        def expected(size, y):
            k = (size * phi) @ (size * phi).T
            k += 0.01 * np.trace(k) / N * np.eye(N)
            log_det = np.linalg.slogdet(k / size**2)[1] + 2 * N * np.log(size)
            return -0.5 * (np.sum(y * np.linalg.solve(k, y)) + log_det + N * np.log(2 * np.pi))

        for size, of_targets in ((1e-20, 1e-20), (1e20, 1e20), (1e-10, 1.0), (1e20, 1.0), (1e-35, 1e-35)):
            y = REAL * of_targets
            gram = pair_of(shape, FORMS[form], size)[0]
            measured = likelihood(gram, np.float32(y))
            assert float(measured) == pytest.approx(expected(size, y), rel=1e-3), (size, of_targets)

    def test_gradients(self, shape, form):
        """Those of c times the features are a c-th of those of the features."""
        phi, psi = map(np.float32, both(shape))
        expected = gradients(form, phi, psi, 1.0)
        for size in (1e-15, 1e15):
            for name, measured in gradients(form, phi, psi, size).items():
                np.testing.assert_allclose(measured, expected[name], rtol=1e-2, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_by_their_entries(shape):
    expected = invariant(*pair_of(shape, ENTRIES["dense"]))
    for sizes in ((1e-17, 1e-17), (1e18, 1e18), (1e-17, 1e18), (1e18, 1e-17)):
        assert_same(invariant(*pair_of(shape, ENTRIES["dense"], *sizes)), expected)


@pytest.mark.parametrize("form", [*FORMS, *ENTRIES])
def test_float64(form):
    phi, psi = both("N>D")
    make = (FORMS | ENTRIES)[form]
    two = jax.jit(lambda a, b: (metrics.cka(a, b), metrics.participation_ratio(a)))
    with jax.enable_x64(True):
        expected = [float(value) for value in two(make(phi), make(psi))]
        for size in (1e-120, 1e120) if form in ENTRIES else (1e-300, 1e-120, 1e120, 1e300):
            values = [float(value) for value in two(make(size * phi), make(size * psi))]
            assert values == pytest.approx(expected, rel=1e-9)


def test_batches_of_other_sizes_count_as_they_are():
    """The sums over batches are those of HSIC, whatever powers the kernels of each batch were divided by."""
    rng = np.random.default_rng(3)
    phi, psi = rng.normal(size=(2, 30, 3))
    sizes = np.repeat([0.0, 1.0, 700.0], 10)[:, None]  # The first batch is zero.
    for size in (1e-30, 1.0, 1e30):
        batches = [
            (
                [FORMS["features"](np.float32(size * (sizes * phi)[i : i + 10]))],
                [FORMS["features"](np.float32((sizes * psi)[i : i + 10]))],
            )
            for i in (0, 10, 20)
        ]
        hsic = [
            sum(oracles.hsic_debiased(*(f[i : i + 10] @ f[i : i + 10].T for f in pair)) for i in (0, 10, 20))
            for pair in ((sizes * phi, sizes * psi), (sizes * phi,) * 2, (sizes * psi,) * 2)
        ]
        expected = hsic[0] / np.sqrt(hsic[1] * hsic[2])
        assert float(np.asarray(metrics.minibatch_cka_matrix(batches))[0, 0]) == pytest.approx(expected, rel=1e-3)


@jax.jit
def mean_of_products(steps):
    total = Product(jnp.zeros((N, N)), jnp.zeros((), jnp.int32))
    for step in steps:
        total = OfStep.add(total, product_from_first(step), len(steps))
    return metrics.grams_of_products(Product(total.matrix[None], total.exponent[None]))


@pytest.mark.parametrize("size", [1e-33, 1.0, 1e33])
def test_the_mean_of_products_of_steps(size):
    """Steps of a scan over time may have products of very different sizes, the first of them zero."""
    steps = [0 * both("N<D")[0], 1e-9 * both("N<D")[0], 1e3 * both("N<D")[1], both("N<D")[0]]
    steps = [np.asarray(size * step, np.float32) for step in steps]
    grams = mean_of_products(steps)
    kernel = metrics.undivided(np.asarray(grams.matrix), np.asarray(grams.exponent))[0]
    wide = [np.asarray(step, np.float64) / np.sqrt(20) for step in steps]
    expected = sum(phi @ phi.T for phi in wide) / 4
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_methods_give_numbers_of_the_kernel_itself():
    phi = np.asarray(both("N<D")[0] * 1e-12, np.float32)  # Its kernel has entries of 1e-23, held in units of about 1.
    gram, kernel = by_entries(phi), phi.astype(float) @ phi.astype(float).T
    assert int(gram.exponent) < -30
    assert 0.1 < np.abs(gram.matrix).max() < 100

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

    @jax.jit
    def numbers(gram):
        some, (unit, exponent) = gram.take(jnp.array([1, 1, 3])), gram.normalised()
        whole = gram.dense(), gram.diagonal(), gram.trace(), gram.matvec(jnp.ones(N)), gram.center().dense()
        return (
            *whole,
            gram.eigvalsh(),
            gram.singular_values(),
            gram.top_eigh(2)[0],
            some.dense(),
            unit.dense(),
            exponent,
        )

    *found, exponent = jax.device_get(numbers(gram))
    values, centred = np.linalg.eigvalsh(kernel), phi.astype(float) - phi.astype(float).mean(axis=0)
    expected = [kernel, np.diagonal(kernel), np.trace(kernel), kernel.sum(axis=1), centred @ centred.T]
    expected += [values, np.linalg.svd(phi.astype(float), compute_uv=False)[:N], values[::-1][:2]]
    expected += [kernel[np.ix_([1, 1, 3], [1, 1, 3])], np.ldexp(kernel, -2 * int(exponent))]
    for number, want in zip(found, expected, strict=True):
        close(number, want)
    close(np.asarray(gram), kernel)


@pytest.mark.parametrize("n", [3, 1100])
def test_powers_round_nothing(n):
    """Features times a power of two give the same bits, of any metric."""
    features = np.float32(np.random.default_rng(0).normal(size=(2, n + 1, 5)))
    several = {m.__name__: m for m in (metrics.alignment, metrics.relative_change, metrics.kernel_distance)}
    values = jax.jit(lambda a, b: {name: metric(a, b) for name, metric in several.items()})
    powers = (1.0, 2.0**-90, 2.0**100)
    first, *others = (jax.device_get(values(*map(FORMS["features"], np.float32(p) * features))) for p in powers)
    assert others == [first, first]
