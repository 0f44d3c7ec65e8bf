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
    "features": FeatureGram,
    "dense": lambda phi: DenseGram(jnp.matmul(phi, phi.T, precision="highest")),
    "by entries": lambda phi: FeatureGram(phi).by_entries(),
}


@pytest.fixture(params=[(14, 4), (6, 11)], ids=["N>D", "N<D"])
def phi(request):
    return np.random.default_rng(0).normal(size=request.param) + 0.5


def centred(phi):
    return phi - phi.mean(axis=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("center", [lambda gram: gram, lambda gram: gram.center()], ids=["as it is", "centred"])
class TestGram:
    @pytest.fixture
    def gram(self, phi, form, center):
        return center(FORMS[form](jnp.asarray(phi, jnp.float32)))

    @pytest.fixture
    def kernel(self, phi, center):
        phi = centred(phi) if center(FeatureGram(jnp.zeros((2, 1)))).offset is not None else phi
        return phi @ phi.T

    @pytest.mark.every(6)
    def test_entries(self, gram, kernel):
        assert isinstance(gram, Gram)
        assert gram.n == len(kernel)
        close(np.asarray(gram), kernel)
        assert np.asarray(gram).dtype == np.float32
        assert np.asarray(gram, dtype=np.float64).dtype == np.float64
        close(np.linalg.eigvalsh(gram), np.linalg.eigvalsh(kernel))
        close(gram.dense(), kernel)
        close(gram.diagonal(), np.diagonal(kernel))
        close(gram.trace(), np.trace(kernel))

    def test_matvec(self, gram, kernel):
        v = np.random.default_rng(1).normal(size=(len(kernel), 3))
        close(gram.matvec(jnp.asarray(v, jnp.float32)), kernel @ v)
        close(gram.matvec(jnp.asarray(v[:, 0], jnp.float32)), kernel @ v[:, 0])

    def test_top_eigh(self, gram, kernel):
        values, vectors = (np.asarray(part, float) for part in gram.top_eigh(2))
        close(values, np.linalg.eigvalsh(kernel)[::-1][:2])
        close(kernel @ vectors, vectors * values, atol=1e-3)

    @pytest.mark.every(6)
    def test_take(self, gram, kernel):
        examples = np.array([3, 0, 0, 5])
        taken = gram.take(jnp.asarray(examples))
        assert type(taken) is type(gram)
        close(taken.dense(), kernel[np.ix_(examples, examples)])
        # the mean of some examples is not that of all
        h = np.eye(4) - 1 / 4
        close(taken.center().dense(), h @ kernel[np.ix_(examples, examples)] @ h)
        close(
            jax.jit(lambda gram, examples: gram.take(examples).trace())(gram, examples),
            kernel[examples, examples].sum(),
        )

    @pytest.mark.every(6)
    def test_center(self, gram, kernel):
        h = np.eye(len(kernel)) - 1 / len(kernel)
        for again in (gram.center(), gram.center().center(), gram.take(jnp.arange(gram.n)).center()):
            close(again.dense(), h @ kernel @ h)
            close(again.dense().sum(axis=0), 0)

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
        values, vectors = eigsh(operator, k=2, v0=np.ones(len(kernel), np.float32) + v[:, 0].astype(np.float32))
        close(values, np.linalg.eigvalsh(kernel)[-2:])
        close(kernel @ vectors, vectors * values, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_conjugate_gradients_of_scipy(form, phi):
    gram, kernel = FORMS[form](jnp.asarray(phi, jnp.float32)), phi @ phi.T
    b = kernel @ np.random.default_rng(1).normal(size=len(kernel))
    x, info = cg(gram.as_scipy(), b.astype(np.float32), rtol=1e-5, maxiter=100)
    assert info == 0
    np.testing.assert_allclose(kernel @ x, b, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("form", FORMS)
def test_lineax(form):
    lx = pytest.importorskip("lineax")
    phi = np.random.default_rng(0).normal(size=(6, 11))
    gram, kernel = FORMS[form](jnp.asarray(phi, jnp.float32)), phi @ phi.T
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
    close(gram.features, moved)
    close(gram.dense(), moved @ moved.T)
    close(gram.diagonal(), np.sum(moved**2, axis=1))
    close(gram.eigvalsh(), np.sort(np.linalg.svd(moved, compute_uv=False)) ** 2, atol=1e-3)
    close(gram.center().offset, phi.mean(axis=0))
    close(gram.by_entries().dense(), moved @ moved.T)
    close(gram.by_entries().center().dense(), centred(phi) @ centred(phi).T)
    for other in (gram, FeatureGram(gram.phi)):
        expected = np.sum((moved.T @ np.asarray(other.features, float)) ** 2)
        assert float(gram.inner(other)) == pytest.approx(expected, rel=1e-4)


def test_entries_with_the_centred_form_keep_its_digits():
    # of H K H with entries of 1e6 only a digit or two would be left
    phi = np.random.default_rng(0).normal(size=(14, 4))
    entries = FeatureGram(jnp.asarray(phi + 1000, jnp.float32)).by_entries()
    np.testing.assert_allclose(entries.center().dense(), centred(phi) @ centred(phi).T, atol=2e-3)
    np.testing.assert_allclose(entries.dense(), (phi + 1000) @ (phi + 1000).T, rtol=1e-6)


def test_a_protocol_that_others_can_fulfil():
    assert not isinstance(jnp.eye(3), Gram)
    assert isinstance(DenseGram(jnp.eye(3)), Gram)
