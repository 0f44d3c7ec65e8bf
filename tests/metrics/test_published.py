"""Numbers that anyone can reproduce: linear CKA of two fixed random matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from nngp_plugins.metrics import DenseGram, FeatureGram, cka


@pytest.fixture(scope="module")
def matrices():
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return x, rng.randn(100, 10) + x


@pytest.mark.parametrize(("debiased", "published"), [(False, 0.55761), (True, 0.51346)])
class TestLinearCKA:
    @pytest.mark.parametrize(
        "form",
        [FeatureGram, lambda phi: DenseGram(phi @ phi.T), lambda phi: phi @ phi.T],
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
