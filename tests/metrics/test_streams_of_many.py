"""Metrics of many layers, many resamples and a trained classifier, from features that are read block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins import metrics
from nngp_plugins.metrics import FeatureGram, StreamedGram

from . import oracles

N = 1300


class Counted:
    """Features that count how often each row is read."""

    block_rows = 400

    def __init__(self, phi):
        self.phi, self.shape, self.dtype, self.read = phi, phi.shape, phi.dtype, 0

    def __getitem__(self, rows):
        self.read += len(self.phi[rows])
        return self.phi[rows]


def layers_of(widths, seed=0):
    """Related features of several widths and sizes, with means."""
    dice = np.random.default_rng(seed)
    hidden = dice.standard_normal((N, 6))
    return [
        (10.0**size * (2 + hidden @ dice.standard_normal((6, d)) + dice.standard_normal((N, d)))).astype(np.float32)
        for size, d in zip((0, -12, 10, 0), widths, strict=False)
    ]


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_of_layers(debiased):
    phis = layers_of((3, 5, 8))
    expected = [[oracles.cka_of_features(a, b, debiased) for b in scaled(phis)] for a in scaled(phis)]
    counted = [Counted(phi) for phi in phis]
    layers = {str(k): StreamedGram(phi) for k, phi in enumerate(counted)}
    np.testing.assert_allclose(metrics.cka_matrix(layers, debiased=debiased), expected, atol=1e-5)
    assert [phi.read for phi in counted] == [N] * 3, "one pass serves all pairs"
    others = [StreamedGram(phis[1]), FeatureGram(jnp.asarray(phis[2]))]
    found = metrics.cka_matrix(list(layers.values())[:2], others, debiased)
    np.testing.assert_allclose(found, np.array(expected)[:2, 1:], atol=1e-5)


def scaled(phis):
    return [phi.astype(float) / np.abs(phi).max() for phi in phis]


def test_layers_of_many_features_are_read_in_groups():
    """Two layers have more than 2,048 features together, so that each is a group, which is read beside the others."""
    phis = [np.tile(phi, (1, 180)) for phi in layers_of((6, 6, 6))]
    counted = [Counted(phi) for phi in phis]
    found = metrics.cka_matrix([StreamedGram(phi) for phi in counted])
    expected = [[oracles.cka_of_features(a, b) for b in scaled(phis)] for a in scaled(phis)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert [phi.read for phi in counted] == [2 * N, 2 * N, 2 * N]


def test_blocks_are_those_of_the_widest_features():
    """A block of 16 MB of narrow features has as many rows as many blocks of wide ones."""
    sizes = []

    class Wide(np.ndarray):
        def __getitem__(self, rows):
            sizes.append(rows.stop - rows.start)
            return np.asarray(self)[rows]

    wide = np.ones((100_000, 64), np.float32).view(Wide)
    metrics.cka(StreamedGram(np.ones((100_000, 1), np.float32)), StreamedGram(wide))
    assert len(sizes) > 1
    assert max(sizes) * 65 * 4 < 20e6


def test_batches_of_streams_add_up():
    phis = layers_of((3, 5))
    halves = slice(0, 600), slice(600, N)
    batches = [([StreamedGram(phi[rows]) for phi in phis], None) for rows in halves]

    def hsic(phi, psi):
        return sum(len(phi[rows]) * oracles.hsic_of_features(phi[rows], psi[rows]) for rows in halves)

    first, second = scaled(phis)
    across = hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))
    np.testing.assert_allclose(metrics.minibatch_cka_matrix(batches), [[1, across], [across, 1]], atol=1e-5)


def test_features_that_are_nearly_turned_onto_each_other():
    """Roots of eigenvalues of float32 products would have an error as large as this distance."""
    phi = layers_of((5,))[0]
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((5, 5)))[0]
    psi = (phi @ turn + 1e-4 * np.random.default_rng(5).standard_normal(phi.shape)).astype(np.float32)
    u, _, vt = np.linalg.svd(psi.T.astype(float) @ phi)
    expected = np.linalg.norm(phi - psi.astype(float) @ u @ vt)
    found = metrics.bures_distance(StreamedGram(phi), StreamedGram(psi))
    np.testing.assert_allclose(float(found), expected, rtol=0.02)


@pytest.mark.parametrize("size", [1, 1e12, 1e-14])
def test_neural_collapse(size):
    dice = np.random.default_rng(1)
    y = dice.integers(3, size=N)
    phi = (size * (dice.standard_normal((3, 7))[y] + 0.5 * dice.standard_normal((N, 7)) + 2)).astype(np.float32)
    last = {"classifier": dice.standard_normal((7, 3)), "logits": np.eye(3)[y] + dice.standard_normal((N, 3))}
    found = metrics.neural_collapse(StreamedGram(phi), y, **last)
    expected = metrics.neural_collapse(FeatureGram(jnp.asarray(phi)), y, **last)
    assert list(found) == list(expected) == ["nc1", "nc2_norms", "nc2_angles", "nc3", "nc4"]
    for name, value in expected.items():
        np.testing.assert_allclose(float(found[name]), float(value), rtol=1e-4, err_msg=name)
    with pytest.raises(ValueError, match=r"classifier of shape \(3, 3\) must be \(D, C\) with D=7 features"):
        metrics.neural_collapse(StreamedGram(phi), y, classifier=np.eye(3))
    nothing = metrics.neural_collapse(StreamedGram(0 * phi), y, **last)
    assert all(np.isnan(value) for value in nothing.values())


def test_what_is_not_finite_is_nan():
    phi = layers_of((4,))[0]
    phi[5, 1] = np.nan
    stream = StreamedGram(phi)
    for metric in (metrics.bures_distance, metrics.gulp):
        assert np.isnan(metric(stream, stream))
    assert np.isnan(metrics.cka_matrix([stream])).all()


def test_lineax_calls_back():
    lx = pytest.importorskip("lineax")
    phi = layers_of((4,))[0]
    ones = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(jnp.ones(N, phi.dtype)), lx.positive_semidefinite_tag)
    ridged = lx.TaggedLinearOperator(StreamedGram(phi).as_lineax() + ones, lx.positive_semidefinite_tag)
    b = np.cos(np.arange(N, dtype=np.float32))
    found = jax.jit(lambda b: lx.linear_solve(ridged, b, lx.CG(rtol=1e-4, atol=1e-4)).value)(b)
    expected = np.linalg.solve(phi.astype(float) @ phi.T + np.eye(N), b)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def resamples(phi, psi, y, n):
    """Metrics of as many draws of examples, by NumPy and by features that are held."""
    dice, found = np.random.default_rng(3), []
    for _ in range(n):
        rows = dice.integers(len(phi), size=len(phi))
        means = np.stack([phi[rows][y[rows] == k].mean(0) for k in range(2)])
        found.append((oracles.cka_of_features(phi[rows], psi[rows]), np.sum(means[0] * means[1]) / phi.shape[1]))
    return np.array(found)


def test_bootstrap_by_chunks():
    """As the examples are independent draws, chunks of them and single ones have the same standard error."""
    dice = np.random.default_rng(2)
    y = dice.integers(2, size=N)
    phi = dice.standard_normal((N, 3)) * (3, 2, 1) + dice.standard_normal((2, 3))[y] + 1
    psi = phi[:, :2] + dice.standard_normal((N, 2))
    a, b = (StreamedGram(Counted(features.astype(np.float32))) for features in (phi, psi))
    expected, key = resamples(phi, psi, y, 400).std(axis=0, ddof=1), jax.random.key(0)
    value, error = metrics.bootstrap(metrics.cka, (a, b), 300, key)
    np.testing.assert_allclose(value, oracles.cka_of_features(phi, psi), atol=1e-5)
    np.testing.assert_allclose(error, expected[0], rtol=0.2)
    assert a.phi.read == b.phi.read == 2 * N, "one pass for all resamples, and one for the value"

    def of_means(gram, one_hot):
        return metrics.class_block_means(gram, one_hot)[0, 1] / 3

    error = metrics.bootstrap(of_means, (a, np.eye(2)[y]), 60, key).standard_error
    np.testing.assert_allclose(error, expected[1], rtol=0.35)
