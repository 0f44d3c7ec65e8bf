"""Batches side by side on eight devices, which JAX must be told of before it starts: in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, normal
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nngp_plugins as nngp

HERE = Path(__file__).parent


# What holds on one device must hold on eight. What only eight can show is in functions named on_eight_*, which pytest
# collects only in the process that this test starts.
@pytest.mark.parametrize(
    "file",
    [
        "test_batch_devices.py",
        pytest.param("test_batch.py", marks=pytest.mark.exhaustive),
        pytest.param("test_batch_symmetric.py", marks=pytest.mark.exhaustive),
    ],
)
def test_with_eight_devices(file):
    names = "on_eight_*" if file == Path(__file__).name else "test_*"
    command = [sys.executable, "-m", "pytest", "-m", "not exhaustive", "-o", f"python_functions={names}"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    # A plugin that the tests do not ask for may warn, and warnings are errors.
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*command, HERE / file], env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


X = normal(0, 50, 6)


def kernel(f, batch_size, device_count=-1, x=X, check=False, **kwargs):
    return nngp.batch(nngp.empirical_nngp_fn(f), batch_size, device_count, check=check)(x, None, 2.0, **kwargs)


@pytest.mark.parametrize(
    ("batch_size", "device_count", "size", "runs"),
    [(3, -1, 3, 3 * 8), (3, 2, 3, 9 * 2), (0, -1, 7, 8), (0, 3, 17, 3), (40, -1, 7, 8), (1, 8, 1, 7 * 8)],
)
def on_eight_each_device_runs_a_batch(batch_size, device_count, size, runs):
    def f(params, x):
        jax.debug.callback(lambda x: sizes.append(x.shape[0]), x)
        return params * x

    sizes = []
    assert_close(kernel(f, batch_size, device_count), 4 * gram(X))
    jax.effects_barrier()
    assert sizes == [size] * runs
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), batch_size, device_count)
    job = nngp.plan(kernel_fn, X, None, 2.0)
    assert job.batch_rows == size * (8 if device_count == -1 else device_count)
    assert job.forward_rows == 50


@pytest.mark.parametrize("batch_size", [1, 4, 60])
def on_eight_the_noise_is_that_of_one(batch_size):
    def f(params, x, rng):
        return params * x * jax.random.bernoulli(rng, 0.5, x.shape)

    one, three, eight = (np.asarray(kernel(f, batch_size, n, rng=jax.random.key(3))) for n in (1, 3, 8))
    np.testing.assert_allclose(three, one, rtol=0, atol=1e-5)
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
    assert np.abs(one - 4 * gram(X)).max() > 1


def on_eight_the_kernel_is_on_the_first_of_them():
    assert kernel(lambda params, x: x, 3).devices() == {jax.devices()[0]}


def on_eight_inputs_may_be_on_all_of_them():
    mesh = jax.make_mesh((8,), ("examples",), axis_types=(AxisType.Explicit,))
    x = jax.device_put(X[:48], NamedSharding(mesh, PartitionSpec("examples")))
    params = jax.device_put(jnp.float32(2), NamedSharding(mesh, PartitionSpec()))
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x, shift: params * x + shift), 5)
    assert_close(kernel_fn(x, None, params, shift=x), gram(3 * X[:48]))


@pytest.mark.parametrize("kwargs", [{}, {"rng": jax.random.key(3)}], ids=["no key", "key"])
@pytest.mark.parametrize("batch_size", [0, 1, 2, 5])
def on_eight_batch_statistics_are_refused(batch_size, kwargs):
    # each device has its own, even with all examples at once
    with pytest.raises(ValueError, match=r"^the output of f depends on the other examples in the batch"):
        kernel(lambda params, x, rng=None: x - x.mean(axis=0), batch_size, check=True, **kwargs)


def on_eight_outputs_without_a_row_for_each_example_are_refused():
    with pytest.raises(ValueError, match=r"^the output of f has shape \(1, 6\) for a batch of 3 examples of x1"):
        kernel(lambda params, x: x[:1], 3)


def on_eight_a_kernel_is_written_to_the_disk(tmp_path):
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: jnp.tanh(x @ params))
    options = {"batch_size": 2, "tile_size": 7, "progress": False}
    store = nngp.write_kernel(kernel_fn, X, None, normal(1, 6, 9), tmp_path / "k.zarr", **options)
    assert_close(store[...], gram(np.tanh(X.astype(np.float64) @ normal(1, 6, 9))))
