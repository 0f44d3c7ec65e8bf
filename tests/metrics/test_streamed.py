"""Features that are read block by block give the numbers of features that are held, and of plain NumPy in float64."""

import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp
from nngp_plugins import metrics
from nngp_plugins.metrics import FeatureGram, StreamedGram

from . import oracles

N, D, E, C = 2500, 7, 5, 3


class Blocks:
    """Features that count how often each row is read; N is no multiple of the blocks."""

    block_rows = 300

    def __init__(self, phi):
        self.phi, self.shape, self.dtype, self.read = phi, phi.shape, phi.dtype, 0

    def __getitem__(self, rows):
        assert not isinstance(rows, slice) or rows.stop - rows.start <= 1200, "this is no block"
        self.read += len(self.phi[rows])
        return self.phi[rows]


@pytest.fixture(scope="module")
def data():
    """Two sets of features with means, and labels that the features know something about."""
    dice = np.random.default_rng(0)
    y = dice.integers(C, size=N)
    phi = dice.standard_normal((N, D)) * np.arange(1, D + 1) + 3 + dice.standard_normal((C, D))[y]
    psi = phi[:, :E] + 0.3 * dice.standard_normal((N, E))
    return phi.astype(np.float32), psi.astype(np.float32), y


@pytest.fixture(scope="module")
def streams(data):
    return StreamedGram(Blocks(data[0])), StreamedGram(Blocks(data[1]))


@pytest.fixture(scope="module")
def expected(data):
    """The metrics of features that are held, of one program."""

    @jax.jit
    def values(first, second):
        alone = {name: metric(first) for name, metric in ALONE.items()}
        centred = {name: ALONE[name](first.center()) for name in CENTRED}
        with_targets = {name: metric(first, data[2]) for name, metric in WITH_TARGETS.items()}
        of_two = {name: metric(first, second) for name, metric in OF_TWO.items()}
        return {"alone": alone, "centred": centred, "with targets": with_targets, "of two": of_two}

    return values(held(data[0]), held(data[1]))


ALONE = {
    "scale": metrics.scale,
    "effective_rank": metrics.effective_rank,
    "RankMe": lambda a: metrics.effective_rank(a, of="singular_values"),
    "von_neumann_entropy": metrics.von_neumann_entropy,
    "participation_ratio": metrics.participation_ratio,
    "stable_rank": metrics.stable_rank,
    "condition_number": metrics.condition_number,
    "spectrum": metrics.spectrum,
    "two eigenvalues": lambda a: metrics.spectrum(a, 2),
    "power_law_exponent": lambda a: metrics.power_law_exponent(a, (1, D)),
    "trace": lambda a: a.trace(),
    "frobenius": lambda a: a.frobenius(),
    "diagonal": lambda a: a.diagonal(),
    "matvec": lambda a: a.matvec(jnp.cos(jnp.arange(2.0 * N)).reshape(N, 2) / N),
    "some examples": lambda a: a.take(jnp.arange(5)).dense(),
    "singular_values": lambda a: a.singular_values(),
    "leading direction": lambda a: jnp.abs(metrics.spectrum(a, 1, vectors=True)[1]),
}
# All that a centred stream computes itself, and one metric that reads it.
CENTRED = [
    "effective_rank",
    "spectrum",
    "trace",
    "frobenius",
    "diagonal",
    "matvec",
    "some examples",
    "singular_values",
    "leading direction",
]
WITH_TARGETS = {
    "target_alignment": metrics.target_alignment,
    "class_block_means": metrics.class_block_means,
    "class_separation": metrics.class_separation,
    "regression_accuracy": metrics.regression_accuracy,
    "log_marginal_likelihood": metrics.log_marginal_likelihood,
}
OF_TWO = {
    "cka": metrics.cka,
    "biased cka": lambda a, b: metrics.cka(a, b, debiased=False),
    "alignment": lambda a, b: metrics.alignment(a, b, center=False),
    "kernel_distance": metrics.kernel_distance,
    "centred kernel_distance": lambda a, b: metrics.kernel_distance(a, b, center=True),
    "relative_change": metrics.relative_change,
    "inner": lambda a, b: a.inner(b),
    "bures_distance": metrics.bures_distance,
    "centred bures_distance": lambda a, b: metrics.bures_distance(a.center(), b.center()),
    "gulp": metrics.gulp,
    "eigenvector_overlap": lambda a, b: metrics.eigenvector_overlap(a, b, k=2),
}


def held(phi):
    """The features in the float of the highest precision, as the suite runs in both."""
    return FeatureGram(jnp.asarray(phi))


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALONE)
def test_metrics_of_one_kernel(streams, expected, name):
    close(ALONE[name](streams[0]), expected["alone"][name])


@pytest.mark.parametrize("name", CENTRED)
def test_metrics_of_a_centred_kernel(streams, expected, name):
    close(ALONE[name](streams[0].center()), expected["centred"][name])


@pytest.mark.parametrize("name", WITH_TARGETS)
def test_metrics_with_targets(data, streams, expected, name):
    close(WITH_TARGETS[name](streams[0], data[2]), expected["with targets"][name])


@pytest.mark.parametrize("name", OF_TWO)
def test_metrics_of_two_kernels(streams, expected, name):
    close(OF_TWO[name](*streams), expected["of two"][name])


def test_against_float64(data, streams):
    """The numbers themselves, of kernels that are formed."""
    close(metrics.cka(*streams), oracles.cka_of_features(*(phi.astype(float) for phi in data[:2])))
    kernels = [phi.astype(float) @ phi.T.astype(float) for phi in data[:2]]
    close(metrics.relative_change(*streams), np.linalg.norm(kernels[0] - kernels[1]) / np.linalg.norm(kernels[1]))
    cosine = np.sum(kernels[0] * kernels[1]) / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
    close(metrics.kernel_distance(*streams), 1 - cosine)


def test_a_memmap_and_features_that_are_held_beside_it(data, expected, tmp_path):
    mapped = np.memmap(tmp_path / "phi", np.float32, "w+", shape=(N, D))
    mapped[:] = data[0]
    close(metrics.cka(StreamedGram(mapped), held(data[1])), expected["of two"]["cka"])


def test_one_pass_serves_all_metrics(data):
    blocks = Blocks(data[0])
    stream = StreamedGram(blocks)
    for metric in ALONE.values():
        if metric not in (ALONE["diagonal"], ALONE["matvec"], ALONE["some examples"], ALONE["leading direction"]):
            metric(stream)
    metrics.effective_rank(stream.center())
    assert blocks.read == N
    # The sums with the targets serve them all, and one metric looks at each example again.
    for metric in WITH_TARGETS.values():
        metric(stream, data[2])
    assert blocks.read == 3 * N
    other = StreamedGram(Blocks(data[1]))
    for metric in (metrics.cka, metrics.alignment, lambda a, b: metrics.cka(a, b, debiased=False)):
        metric(stream, other)
    assert (blocks.read, other.phi.read) == (4 * N, N)


@pytest.mark.parametrize(("spread", "passes"), [(1, 1), (1e-4, 2)])
def test_classes_that_collapse_are_looked_at_again(data, spread, passes):
    dice, y = np.random.default_rng(3), data[2]
    phi = dice.standard_normal((C, D))[y] + spread * dice.standard_normal((N, D))
    blocks = Blocks(phi.astype(np.float32))
    found = metrics.class_separation(StreamedGram(blocks), y)
    np.testing.assert_allclose(float(found), oracles.nc1(blocks.phi.astype(float), y), rtol=1e-3)
    assert blocks.read == passes * N


@pytest.mark.parametrize("change", [1e-6, 1e-3])
def test_small_changes_keep_their_digits(data, change):
    dice = np.random.default_rng(1)
    psi = data[0].astype(float)
    phi = psi + change * dice.standard_normal(psi.shape)
    stream, other = StreamedGram(phi), StreamedGram(psi)
    moved = phi @ phi.T - psi @ psi.T
    base = psi @ psi.T
    aside = moved - np.sum(moved * base) / np.sum(base**2) * base
    close(metrics.relative_change(stream, other), np.linalg.norm(moved) / np.linalg.norm(base))
    sine = np.linalg.norm(aside) / np.linalg.norm(base + moved)
    expected = sine**2 / (1 + np.sqrt(1 - sine**2))
    np.testing.assert_allclose(float(metrics.kernel_distance(stream, other)), expected, rtol=1e-3)


def test_a_rotation_is_no_change(data):
    q, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((D, D)))
    phi = data[0].astype(float)
    assert float(metrics.kernel_distance(StreamedGram(phi @ q), StreamedGram(phi))) < 1e-12
    assert float(metrics.cka(StreamedGram(phi @ q), StreamedGram(phi))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [1e-15, 1e12])
def test_features_of_any_size(data, expected, size):
    stream, other = StreamedGram(np.float32(size) * data[0]), StreamedGram(data[1])
    close(metrics.cka(stream, other), expected["of two"]["cka"])
    close(metrics.effective_rank(stream), expected["alone"]["effective_rank"])


@pytest.mark.parametrize("case", ["little is known", "much is known", "one class", "ties"])
def test_who_is_right_without_itself(case):
    """Against kernels in float64: where bounds of leverages decide, where they do not, and where two classes tie."""
    n, d, dice = 1500, 40, np.random.default_rng(5)
    labels = np.zeros(n, int) if case == "one class" else dice.integers(3, size=n)
    phi = dice.standard_normal((n, d)) + (case == "much is known") * 0.3 * dice.standard_normal((3, d))[labels]
    if case == "ties":
        # The prediction for an example whose features are zero is the same for all classes, and the first one wins.
        phi[::2] = 0
    phi = phi.astype(np.float32)
    kernel, y = phi.astype(float) @ phi.T, np.eye(labels.max() + 1)[labels]
    inverse = np.linalg.inv(kernel + 1e-3 * np.trace(kernel) / n * np.eye(n))
    left_out = y - (inverse @ y) / np.diag(inverse)[:, None]
    if case == "ties":
        left_out[::2] = 0
    expected = np.mean(left_out.argmax(1) == labels)
    assert case == "one class" or 0.3 < expected < 1
    found = metrics.regression_accuracy(StreamedGram(phi), labels)
    np.testing.assert_allclose(float(found), expected, atol=1e-6)


def test_only_arrays_that_say_so_are_read_by_several_threads_at_once(data):
    class Careful(Blocks):
        reading, most = 0, 0

        def __getitem__(self, rows):
            self.reading += 1
            self.most = max(self.most, self.reading)
            time.sleep(0.01)
            self.reading -= 1
            return super().__getitem__(rows)

    class Careless(Careful):
        by_threads = True

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for kind, is_alone in ((Careful, True), (Careless, cores == 1)):
        blocks = kind(data[0])
        metrics.scale(StreamedGram(blocks))
        assert (blocks.most == 1) == is_alone


def test_constant_and_zero_features_are_nan():
    for phi in (np.full((N, 3), 1.7, np.float32), np.zeros((N, 3), np.float32)):
        stream = StreamedGram(phi)
        assert np.isnan(metrics.cka(stream, stream))
        assert np.isnan(metrics.class_separation(stream, np.arange(N) % 2))
    assert np.isnan(metrics.effective_rank(stream))
    assert np.isnan(metrics.regression_accuracy(stream, np.arange(N) % 2))
    assert np.isnan(metrics.log_marginal_likelihood(stream, np.arange(N) % 2))
    assert np.isnan(metrics.kernel_distance(stream, stream))


def test_what_needs_the_kernel_itself_is_refused(data, streams):
    message = r"this needs the kernel of all N=2,500 examples, 25 MB, which features .*; take some of the examples"
    for call in (
        streams[0].dense,
        lambda: np.asarray(streams[0]),
        lambda: metrics.rsa(*streams),
        lambda: metrics.distance_correlation(*streams),
        lambda: metrics.mutual_knn(*streams),
        lambda: metrics.permutation_test(streams[:1], streams[1:], 9, jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"compared with other features only; pass a StreamedGram or a FeatureGram"):
        metrics.cka(streams[0], jnp.eye(N))
    with pytest.raises(ValueError, match=r"on the same examples, got N=2500 and N=10"):
        metrics.cka(streams[0], StreamedGram(data[0][:10]))
    with pytest.raises(ValueError, match=r"features have shape \(N, D\), got \(3,\)"):
        StreamedGram(np.ones(3))


def test_stored_features(data, tmp_path):
    def f(params, x):
        return {"a": x, "b": {"c": jnp.tanh(x)}}

    options, x = {"batch_size": 100, "block_size": 200, "progress": False}, data[0][:300]
    store = nngp.write_features(f, x, {}, tmp_path / "phi.zarr", **options)
    grams = nngp.gram(store)
    expected = nngp.gram(f, x, {})
    assert jax.tree.structure(grams) == jax.tree.structure({"a": 0, "b": {"c": 0}})
    close(metrics.cka(grams["a"], grams["b"]["c"]), metrics.cka(expected["a"], expected["b"]["c"]))
    close(metrics.effective_rank(grams["b"]["c"]), metrics.effective_rank(expected["b"]["c"]))
    half = nngp.write_features(f, x, {}, tmp_path / "half.zarr", dtype=jnp.bfloat16, **options)
    assert float(metrics.cka(nngp.gram(half)["a"], grams["a"])) == pytest.approx(1, abs=1e-4)
    with pytest.raises(TypeError, match=re.escape("pass nngp.gram(store) alone")):
        nngp.gram(store, data[0])


def test_in_the_way_of_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    n, dice = 1100, np.random.default_rng(1)
    phi, psi, labels = *(dice.standard_normal((n, d)).astype(np.float32) for d in (300, 7)), np.arange(n) % 3
    a, b = StreamedGram(phi), StreamedGram(psi)
    k, l = (y.astype(float) @ y.T for y in (phi - phi.mean(0), psi - psi.mean(0)))  # noqa: E741
    cosine = np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l))
    np.testing.assert_allclose(metrics.cka(a, b, debiased=False), cosine, rtol=1e-4)
    kernel, y = phi.astype(float) @ phi.T, np.eye(3)[labels]
    inverse = np.linalg.inv(kernel + 0.1 * np.trace(kernel) / n * np.eye(n))
    left_out = y - (inverse @ y) / np.diag(inverse)[:, None]
    accuracy = np.mean(left_out.argmax(1) == labels)
    np.testing.assert_allclose(metrics.regression_accuracy(a, labels, nugget=0.1), accuracy, atol=1.1 / n)
