"""A wide ReLU layer at initialisation against the arc-cosine kernel (Cho & Saul, NeurIPS 2009).

For unit vectors at angle θ and ``w ~ N(0, I)``, the term ``t = relu(w·x1) relu(w·x2)`` of the kernel has
``E t = J1(θ) / 2π`` and ``E t² = J2(θ) / 2π``, with ``J1 = sin θ + (π−θ) cos θ`` and
``J2 = 3 sin θ cos θ + (π−θ)(1 + 2 cos²θ)``. A kernel entry is the mean of ``width`` independent terms.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp

SEEDS = 256
ANGLES = np.array([0.0, 0.3, 0.7, 1.2, 1.9, 2.4])


class Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(self.width, use_bias=False, kernel_init=nn.initializers.normal(1.0))(x))


def inputs():
    """Unit vectors in a plane of 4-dimensional space that is none of the axes' planes."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 2)))
    return np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1) @ basis.T


def mean_and_variance(theta):
    j1 = np.sin(theta) + (np.pi - theta) * np.cos(theta)
    j2 = 3 * np.sin(theta) * np.cos(theta) + (np.pi - theta) * (1 + 2 * np.cos(theta) ** 2)
    mean = j1 / (2 * np.pi)
    return mean, j2 / (2 * np.pi) - mean**2


def moment(theta, power):
    """``E t^power`` by quadrature over the angle φ of w, both factors being positive for θ−π/2 < φ < π/2."""
    phi = np.linspace(theta - np.pi / 2, np.pi / 2, 10_001)
    integral = np.trapezoid((np.cos(phi) * np.cos(phi - theta)) ** power, phi, axis=0)
    return 2**power * math.factorial(power) * integral / (2 * np.pi)  # ∫ r^(2p+1) e^(−r²/2) dr = 2^p p!


THETA = np.abs(ANGLES[:, None] - ANGLES)
MEAN, VARIANCE = mean_and_variance(THETA)
UPPER = np.triu_indices(len(ANGLES))


def test_the_closed_forms_agree_with_quadrature():
    np.testing.assert_allclose(MEAN, moment(THETA, 1), rtol=1e-6)
    np.testing.assert_allclose(VARIANCE, moment(THETA, 2) - MEAN**2, rtol=1e-6)


@pytest.mark.parametrize("width", [64, 512, 4096])
def test_a_wide_relu_layer_has_the_arc_cosine_kernel(width):
    x = jnp.asarray(inputs(), jnp.float32)
    layer = Layer(width)
    kernel_fn = nngp.empirical_nngp_fn(nngp.from_linen(layer))
    draw = jax.jit(jax.vmap(lambda key: kernel_fn(x, None, layer.init(key, x)["params"])))
    kernels = np.asarray(draw(jax.random.split(jax.random.key(0), SEEDS)), np.float64)

    z = ((kernels - MEAN) / np.sqrt(VARIANCE / width))[:, *UPPER]
    assert np.abs(np.sqrt(SEEDS) * z.mean(axis=0)).max() < 5

    # z² has mean 1 and variance κ − 1, where κ = 3 + (κ_t − 3) / width for a mean of `width` terms t
    m1, m2, m3, m4 = (moment(THETA, power) for power in (1, 2, 3, 4))
    kurtosis = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / VARIANCE**2
    deviation = np.sqrt((2 + (kurtosis - 3) / width) / SEEDS)[UPPER]
    assert np.abs(((z**2).mean(axis=0) - 1) / deviation).max() < 5
