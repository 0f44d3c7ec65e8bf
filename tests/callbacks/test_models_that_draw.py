"""Models that draw at every call, in every framework: with `rng=` each snapshot has the same noise; errors name it."""

from functools import cache

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import normal

import nngp_plugins as nngp

PROBE = normal(0, 8, 3)
KEY = jax.random.key(5)


class LinenVAE(nn.Module):
    @nn.compact
    def __call__(self, x):
        mean = nn.Dense(4, name="mean")(x)
        return nn.Dense(6, name="decoder")(mean + jax.random.normal(self.make_rng("noise"), mean.shape))


def linen():
    f = nngp.from_linen(LinenVAE(), rngs=("noise",))
    return f, jax.jit(f.init)(jax.random.key(1), PROBE)[0]


class NNXVAE(nnx.Module):
    def __init__(self, rngs):
        self.mean, self.decoder, self.rngs = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 6, rngs=rngs), rngs

    def __call__(self, x):
        mean = self.mean(x)
        return self.decoder(mean + jax.random.normal(self.rngs.noise(), mean.shape))


def from_nnx():
    model = NNXVAE(nnx.Rngs(0, noise=1))
    return nngp.from_nnx(model), model


def haiku():
    def vae(x):
        mean = hk.Linear(4, name="mean")(x)
        return hk.Linear(6, name="decoder")(hk.dropout(hk.next_rng_key(), 0.5, mean))

    f = nngp.from_haiku(hk.transform(vae))
    return f, jax.jit(f.init)(jax.random.key(1), PROBE)[0]


class EquinoxVAE(eqx.Module):
    mean: eqx.nn.Linear
    decoder: eqx.nn.Linear

    def __init__(self, key):
        self.mean, self.decoder = eqx.nn.Linear(3, 4, key=key), eqx.nn.Linear(4, 6, key=key)

    def __call__(self, x, *, key=None):
        mean = self.mean(x)
        return self.decoder(mean + jax.random.normal(key, mean.shape))


class EquinoxRequired(EquinoxVAE):
    def __call__(self, x, key):
        return super().__call__(x, key=key)


def equinox(kind):
    model = kind(jax.random.key(1))
    return nngp.from_equinox(model), model


def from_keras(noise=None, **options):
    keras = pytest.importorskip("keras")

    class Sampling(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.seed_generator = keras.random.SeedGenerator(3)

        def call(self, mean):
            return mean + keras.random.normal(keras.ops.shape(mean), seed=self.seed_generator)

    middle = Sampling() if noise is None else keras.layers.Dropout(noise)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), middle, keras.layers.Dense(6)])
    return nngp.from_keras(model, **options), model


METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("relative_change", "scale")}
MODELS = {
    "linen": linen,
    "nnx": from_nnx,
    "haiku": haiku,
    "equinox": lambda: equinox(EquinoxVAE),
    "equinox, key required": lambda: equinox(EquinoxRequired),
    "keras": lambda: from_keras(),
    "keras, training mode": lambda: from_keras(0.5, training=True),
}
LIVE = ("nnx", "keras", "keras, training mode")
every_model = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.usefixtures("full_precision")


@cache
def made(name):
    """A model of all tests, and what it returns for the key; live models move their own random state alone."""
    f, params = MODELS[name]()
    return f, params, np.asarray(f(params, PROBE, rng=KEY), np.float64)


@pytest.mark.every(3)
@every_model
def test_every_snapshot_draws_the_noise_of_the_key(name):
    f, params, y = made(name)
    with nngp.KernelTracker(f, PROBE, rng=KEY, schedule=nngp.every(1), metrics=METRICS) as tracker:
        for step in range(3):
            tracker(step, params)
            if name in LIVE:
                params(PROBE)  # Training draws from the live model in between, which moves its own random state.
    np.testing.assert_allclose(tracker.history.metric("scale"), (y**2).mean(), rtol=1e-4)
    np.testing.assert_allclose(tracker.history.metric("relative_change"), 0, atol=1e-6)


@pytest.mark.every(3)
@every_model
def test_a_gram_draws_the_noise_of_the_key(name):
    f, params, y = made(name)
    kernels = [np.asarray(nngp.gram(f, PROBE, params, rng=rng).dense()) for rng in (KEY, jax.random.key(6))]
    np.testing.assert_allclose(kernels[0], y @ y.T / 6, rtol=1e-4, atol=1e-5)
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


@pytest.mark.every(3)
@every_model
def test_without_a_key_the_error_names_the_argument(name):
    f, params, _ = made(name)
    told = r"rng=None, but .* (draws random numbers|requires a key).*; pass rng=jax\.random\.key\(0\)"
    tracker = nngp.KernelTracker(f.layers(), PROBE, metrics=METRICS)
    for call in (
        lambda: f(params, PROBE),
        lambda: jax.jit(lambda x: f.layers()(f.variables(params)[0], x))(PROBE),
        lambda: nngp.gram(f, PROBE, params),
        lambda: tracker(0, params),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_models_in_their_inference_mode_need_no_key():
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(6), keras.layers.Dropout(0.5)])
    with nngp.KernelTracker(nngp.from_keras(model), PROBE, metrics=METRICS) as tracker:
        tracker(0, model)
    y = np.asarray(model(PROBE), np.float64)
    np.testing.assert_allclose(tracker.history.metric("scale")[0], (y**2).mean(), rtol=1e-4)
