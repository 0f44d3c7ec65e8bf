"""What can be asked of a Gram, of features and dense, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers.arrays import close
from scipy.sparse.linalg import LinearOperator, cg, eigsh

from nngp_plugins.metrics import DenseGram, FeatureGram, Gram

FORMS = {
    "features": lambda phi: FeatureGram(jnp.asarray(phi)),
    "dense": lambda phi: DenseGram(jnp.asarray(phi @ phi.T)),
    "by entries": jax.jit(lambda phi: FeatureGram(phi).by_entries()),
}


@jax.jit
def numbers(gram):
    """What can be asked of a Gram, of one program."""
    examples = jnp.array([3, 0, 0, 5])
    some, own, twice = gram.take(examples), gram.center(), gram.center().center()
    return {
        "dense": gram.dense(),
        "diagonal": gram.diagonal(),
        "trace": gram.trace(),
        "top_eigh": gram.top_eigh(2),
        "some": some.dense(),
        "some centred": some.center().dense(),
        "trace of some": some.trace(),
        "centred": [each.dense() for each in (own, twice, gram.take(jnp.arange(gram.n)).center())],
    }


@pytest.fixture(params=[(14, 4), (6, 11)], ids=["N>D", "N<D"])
def phi(request):
    return np.random.default_rng(0).normal(size=request.param) + 0.5


def centred(phi):
    return phi - phi.mean(axis=0)


@jax.jit
def centre(gram):
    return gram.center()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("center", [lambda gram: gram, centre], ids=["as it is", "centred"])
class TestGram:
    @pytest.fixture
    def gram(self, phi, form, center):
        return center(FORMS[form](np.float32(phi)))

    @pytest.fixture
    def kernel(self, phi, center):
        phi = centred(phi) if center is centre else phi
        return phi @ phi.T

    @pytest.mark.every(3)
    def test_numbers(self, gram, kernel):
        found = jax.device_get(numbers(gram))
        close(found["dense"], kernel)
        close(found["diagonal"], np.diagonal(kernel))
        close(found["trace"], np.trace(kernel))
        values, vectors = (part.astype(float) for part in found["top_eigh"])
        close(values, np.linalg.eigvalsh(kernel)[::-1][:2])
        close(kernel @ vectors, vectors * values, atol=1e-3)
        examples = np.array([3, 0, 0, 5])
        some = kernel[np.ix_(examples, examples)]
        close(found["some"], some)
        # the mean of some examples is not that of all
        h = np.eye(4) - 1 / 4
        close(found["some centred"], h @ some @ h)
        close(found["trace of some"], np.trace(some))
        h = np.eye(len(kernel)) - 1 / len(kernel)
        for again in found["centred"]:
            close(again, h @ kernel @ h)
            close(again.sum(axis=0), 0)

    @pytest.mark.every(6)
    def test_entries(self, gram, kernel):
        assert isinstance(gram, Gram)
        assert gram.n == len(kernel)
        close(np.asarray(gram), kernel)
        assert np.asarray(gram).dtype == np.float32
        assert np.asarray(gram, dtype=np.float64).dtype == np.float64
        close(np.linalg.eigvalsh(gram), np.linalg.eigvalsh(kernel))
        assert type(gram.take(np.array([3, 0]))) is type(gram)

    def test_scipy(self, gram, kernel):
        operator = gram.as_scipy()
        assert isinstance(operator, LinearOperator)
        assert operator.shape == kernel.shape
        assert operator.dtype == np.float32
        v = np.random.default_rng(1).normal(size=(len(kernel), 3))
        for times in (operator, operator.T, operator.H):
            close(times @ v, kernel @ v)
            close(times @ v[:, 0], kernel @ v[:, 0])
            close(times @ v[:, :1], kernel @ v[:, :1])
        close(v.T @ operator, v.T @ kernel)
        close(gram.matvec(jnp.asarray(v, jnp.float32)), kernel @ v)
        close(gram.matvec(jnp.asarray(v[:, 0], jnp.float32)), kernel @ v[:, 0])
        values, vectors = eigsh(operator, k=2, v0=np.ones(len(kernel), np.float32) + v[:, 0].astype(np.float32))
        close(values, np.linalg.eigvalsh(kernel)[-2:])
        close(kernel @ vectors, vectors * values, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_conjugate_gradients_of_scipy(form, phi):
    gram, kernel = FORMS[form](np.float32(phi)), phi @ phi.T
    b = kernel @ np.random.default_rng(1).normal(size=len(kernel))
    x, info = cg(gram.as_scipy(), b.astype(np.float32), rtol=1e-5, maxiter=100)
    assert info == 0
    np.testing.assert_allclose(kernel @ x, b, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("form", FORMS)
def test_lineax(form):
    lx = pytest.importorskip("lineax")
    phi = np.random.default_rng(0).normal(size=(6, 11))
    gram, kernel = FORMS[form](np.float32(phi)), phi @ phi.T
    operator = gram.as_lineax()
    assert lx.is_positive_semidefinite(operator)
    close(operator.as_matrix(), kernel, atol=1e-3)
    b = np.random.default_rng(1).normal(size=6)

    @jax.jit
    def solved(gram, b):
        return lx.linear_solve(gram.as_lineax(), b, lx.CG(rtol=1e-6, atol=1e-6)).value

    close(solved(gram, jnp.asarray(b, jnp.float32)), scipy.linalg.solve(kernel, b), atol=1e-3)


def test_features_less_an_offset(phi):
    offset = np.arange(phi.shape[1]) * 0.1
    gram = FeatureGram(jnp.asarray(phi, jnp.float32), jnp.asarray(offset, jnp.float32))
    moved = phi - offset

    @jax.jit
    def found(gram):
        entries, own = gram.by_entries(), (gram.features, gram.dense(), gram.diagonal(), gram.eigvalsh())
        inner = gram.inner(gram), gram.inner(FeatureGram(gram.phi))
        return *own, gram.center().offset, entries.dense(), entries.center().dense(), *inner

    features, dense, diagonal, eigenvalues, mean, entries, of_centred, own, other = found(gram)
    close(features, moved)
    close(dense, moved @ moved.T)
    close(diagonal, np.sum(moved**2, axis=1))
    close(eigenvalues, np.sort(np.linalg.svd(moved, compute_uv=False)) ** 2, atol=1e-3)
    close(mean, phi.mean(axis=0))
    close(entries, moved @ moved.T)
    close(of_centred, centred(phi) @ centred(phi).T)
    assert float(own) == pytest.approx(np.sum((moved.T @ moved) ** 2), rel=1e-4)
    assert float(other) == pytest.approx(np.sum((moved.T @ phi) ** 2), rel=1e-4)


def test_entries_with_the_centred_form_keep_its_digits():
    # of H K H with entries of 1e6 only a digit or two would be left
    phi = np.random.default_rng(0).normal(size=(14, 4))
    entries = FORMS["by entries"](np.float32(phi + 1000))
    np.testing.assert_allclose(entries.center().dense(), centred(phi) @ centred(phi).T, atol=2e-3)
    np.testing.assert_allclose(entries.dense(), (phi + 1000) @ (phi + 1000).T, rtol=1e-6)


def test_a_protocol_that_others_can_fulfil():
    assert not isinstance(jnp.eye(3), Gram)
    assert isinstance(DenseGram(jnp.eye(3)), Gram)
