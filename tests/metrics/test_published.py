"""Numbers that anyone can reproduce: linear CKA of two fixed random matrices."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import kernel

from nngp_plugins.metrics import (
    DenseGram,
    FeatureGram,
    alignment,
    cka,
    cka_matrix,
    kernel_distance,
    minibatch_cka_matrix,
)

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def matrices():
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return x, rng.randn(100, 10) + x


@pytest.mark.parametrize(("debiased", "published"), [(False, 0.55761), (True, 0.51346)])
class TestLinearCKA:
    @pytest.mark.parametrize(
        "form",
        [FeatureGram, lambda phi: DenseGram(kernel(phi)), kernel],
        ids=["features", "dense", "array"],
    )
    def test_published(self, matrices, debiased, published, form):
        x, y = (form(jnp.asarray(m, jnp.float32)) for m in matrices)
        assert float(cka(x, y, debiased=debiased)) == pytest.approx(published, abs=1e-5)

    def test_offset_of_1000_in_float32(self, matrices, debiased, published):
        # centring the kernel in place of the features gives 0.48 for 0.5576 here
        x, y = (FeatureGram(jnp.asarray(m + 1000, jnp.float32)) for m in matrices)
        assert float(cka(x, y, debiased=debiased)) == pytest.approx(published, abs=2e-5)

    def test_offset_with_the_centred_kernel_at_hand(self, matrices, debiased, published):
        x, y = (FeatureGram(jnp.asarray(m + 1000, jnp.float32)) for m in matrices)
        x, y = (DenseGram(gram.dense(), gram.center().dense()) for gram in (x, y))
        assert float(cka(x, y, debiased=debiased)) == pytest.approx(published, abs=2e-5)

    def test_of_many_layers(self, matrices, debiased, published):
        x, y = ({"layer": FeatureGram(jnp.asarray(m, jnp.float32))} for m in matrices)
        assert float(cka_matrix(x, y, debiased=debiased)[0, 0]) == pytest.approx(published, abs=1e-5)
        assert float(minibatch_cka_matrix([(x, y)], debiased=debiased)[0, 0]) == pytest.approx(published, abs=1e-5)
        both = np.asarray(cka_matrix([*x.values(), *y.values()], debiased=debiased))
        np.testing.assert_allclose(both, [[1, published], [published, 1]], atol=1e-5)


def test_alignment_is_the_biased_one(matrices):
    x, y = (FeatureGram(jnp.asarray(m, jnp.float32)) for m in matrices)
    assert float(alignment(x, y)) == pytest.approx(0.55761, abs=1e-5)
    assert float(alignment(x, y, center=True)) == pytest.approx(0.55761, abs=1e-5)
    assert float(kernel_distance(x, y, center=True)) == pytest.approx(1 - 0.55761, abs=1e-5)
