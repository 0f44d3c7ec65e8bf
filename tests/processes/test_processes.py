"""Processes of jax.distributed on this machine give the numbers of one process, and do not need each other to write."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp

from . import jobs


def start(forks, path, count, **options):
    """The exit codes of the processes."""
    path.mkdir(exist_ok=True)
    forks.start(path, count=count, **options)
    assert forks.wait() == 0, forks.errors()
    return json.loads((path / "codes.json").read_text())


def check(forks, path, count):
    codes = start(forks, path, count)
    assert codes == [0] * count, forks.errors()
    failures = [json.loads((path / f"{index}.json").read_text()) for index in range(count)]
    assert not any(any(of_one.values()) for of_one in failures), "\n".join(
        f"{index}: {failure}" for index, of_one in enumerate(failures) for failure in of_one.values() if failure
    )
    assert all(len(of_one) == len(jobs.CASES) for of_one in failures)
    hidden = np.tanh(jobs.X.astype(float) @ jobs.W) / np.sqrt(8)
    for found, expected in (
        (nngp.open_features(path / "phi")["hidden"], hidden),
        (nngp.open_kernel(path / "k")["hidden"], hidden @ hidden.T),
    ):
        np.testing.assert_allclose(found[...], expected, rtol=0, atol=1e-6)


@pytest.mark.once
def test_two_processes(forks, tmp_path):
    check(forks, tmp_path, 2)


@pytest.mark.once
@pytest.mark.exhaustive
def test_four_processes(forks, tmp_path):
    check(forks, tmp_path, 4)


@pytest.mark.once
@pytest.mark.exhaustive
def test_one_of_four_dies(forks, tmp_path):
    """The tiles of the others are there, and the next run finishes."""
    codes = start(forks, tmp_path, 4, kind="one dies")
    assert codes == [0, -9, 0, 0], forks.errors()
    store = nngp.open_kernel(tmp_path / "k")
    assert 0.7 < store.fraction < 1
    store.verify()
    kernel_fn = nngp.empirical_nngp_fn(lambda w, x: jnp.tanh(x @ w))
    options = {"batch_size": 2, "tile_size": 2, "progress": False}
    store = nngp.write_kernel(kernel_fn, jobs.X, None, jobs.W, tmp_path / "k", **options)
    np.testing.assert_allclose(store[...], jobs.expected(jobs.X), rtol=0, atol=1e-6)
