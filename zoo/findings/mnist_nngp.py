"""Lee et al. 2018: the Gaussian process of an infinitely wide network classifies MNIST."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import nngp_plugins as nngp

from ..data import load
from . import Verdict

PUBLISHED, TOLERANCE = 0.93, 0.012


def measure(train: int = 1000, test: int = 4000) -> Verdict:
    """Trains with the paper's depth and variances on ``train`` of the 5,000 images, and tests on ``test`` others.

    The paper has 0.9279 on the 10,000 test images of MNIST.
    """
    data = load("mnist")
    x = np.concatenate([data.train_x, data.test_x])
    y = np.concatenate([data.train_y, data.test_y])
    order = np.random.default_rng(0).permutation(len(y))
    seen, held_out = order[:train], order[train : train + test]
    with jax.enable_x64(True):
        kernel_fn = nngp.closed_form.dense(20, "relu", w_var=1.45, b_var=0.28)
        images = jnp.asarray(x, jnp.float64)
        posterior = nngp.gp.fit(kernel_fn(images[seen]), y[seen], nugget=1e-6)
        predicted = posterior.predict(kernel_fn(images[held_out], images[seen]))
    accuracy = float(np.mean(predicted == y[held_out]))
    said = f"test accuracy {accuracy:.4f} from {train} images; {PUBLISHED} ± {TOLERANCE} was expected"
    return Verdict(abs(accuracy - PUBLISHED) <= TOLERANCE, [said], {"accuracy": accuracy})
