"""Batches side by side on eight devices, which JAX must be told of before it starts: in a process of their own."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, normal
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nngp_plugins as nngp

HERE = Path(__file__).parent
EIGHT_ONLY = ["test_batch_devices.py", "test_sharding.py"]


# What holds on one device must hold on eight. What only eight can show is in functions named on_eight_*, which pytest
# collects only in the process that this test starts.
@pytest.mark.parametrize(
    ("files", "which"),
    [
        (EIGHT_ONLY, "not exhaustive"),
        pytest.param(EIGHT_ONLY[:1], "exhaustive", marks=pytest.mark.exhaustive),
        pytest.param(["test_batch.py", "test_batch_symmetric.py"], "not exhaustive", marks=pytest.mark.exhaustive),
    ],
    ids=["what needs eight", "more of it", "what holds on one"],
)
def test_with_eight_devices(files, which):
    names = "on_eight_*" if files[0] == EIGHT_ONLY[0] else "test_*"
    command = [sys.executable, "-m", "pytest", "-m", which, "-o", f"python_functions={names}"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    # A plugin that the tests do not ask for may warn, and warnings are errors.
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    files = [HERE / file for file in files]
    done = subprocess.run([*command, *files], env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


X = normal(0, 50, 6)


def kernel(f, batch_size, device_count=-1, x=X, check=False, **kwargs):
    return nngp.batch(nngp.empirical_nngp_fn(f), batch_size, device_count, check=check)(x, None, 2.0, **kwargs)


@pytest.mark.parametrize(
    ("batch_size", "device_count", "size", "runs"),
    [(3, 2, 3, 9 * 2), (0, 3, 17, 3), (40, -1, 7, 8), (1, 8, 1, 7 * 8)],
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
    devices = 8 if device_count == -1 else device_count
    assert job.devices == (devices, devices)
    share = {8: 7, 2: 25, 3: 17}[devices]
    assert re.search(rf"each of {devices} devices +│ +{share} rows, \S+ kFLOP │", str(job)), str(job)


@pytest.mark.parametrize("batch_size", [4, 60])
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


WIDE, NARROW = normal(2, 8, 16), normal(3, 16, 8)
EIGHT, TWENTY = normal(4, 48, 8), normal(5, 20, 8)


def two_layers(params, x):
    hidden = jnp.tanh(x @ params[0])
    return {"hidden": hidden, "output": hidden @ params[1]}


def by_hand(x):
    hidden = np.tanh(x.astype(np.float64) @ WIDE)
    return {"hidden": hidden, "output": hidden @ NARROW}


PARAMS = {
    "replicated": (PartitionSpec(), PartitionSpec()),
    "fully sharded": (PartitionSpec("data"), PartitionSpec("data")),
    "tensor-parallel": (PartitionSpec(None, "model"), PartitionSpec("model")),
}
INPUTS = {
    "by examples": PartitionSpec("data"),
    "by both axes": PartitionSpec(("model", "data")),
    "by features": PartitionSpec(None, "model"),
    "whole": PartitionSpec(),
    "on the host": None,
}


@pytest.mark.parametrize(
    ("placed", "kind"),
    [
        ("by examples", "tensor-parallel"),
        pytest.param("by both axes", "replicated", marks=pytest.mark.exhaustive),
        ("by features", "fully sharded"),
        pytest.param("whole", "tensor-parallel", marks=pytest.mark.exhaustive),
        pytest.param("on the host", "fully sharded", marks=pytest.mark.exhaustive),
    ],
)
def on_eight_inputs_and_parameters_stay_on_the_mesh(placed, kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params = [jax.device_put(w, NamedSharding(mesh, s)) for w, s in zip((WIDE, NARROW), PARAMS[kind], strict=True)]
    spec = INPUTS[placed]
    x = EIGHT if spec is None else jax.device_put(EIGHT, NamedSharding(mesh, spec))
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(two_layers), 5)
    kernels, others = kernel_fn(x, None, params), kernel_fn(x, TWENTY, params)
    for name, y in by_hand(EIGHT).items():
        assert_close(kernels[name], gram(y))
        assert_close(others[name], y @ by_hand(TWENTY)[name].T / y.shape[1])
        assert np.array_equal(kernels[name], kernels[name].T)
        if spec is not None and len(spec) == 1:
            assert kernels[name].sharding.is_equivalent_to(x.sharding, 2)


@pytest.mark.parametrize("n", [7, 1301])
def on_eight_kernels_of_any_number_of_examples(n):
    x = normal(6, n, 3)
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: {"a": x, "b": jnp.tanh(x) * params}, cross_terms=True)
    batched = nngp.batch(kernel_fn, 9)
    assert nngp.plan(batched, x, None, 2.0) == batched.plan(x, None, 2.0)
    kernels = batched(x, None, 2.0)
    a, b = x.astype(np.float64), 2 * np.tanh(x.astype(np.float64))
    assert_close(kernels["a"]["a"], gram(a))
    assert_close(kernels["a"]["b"], a @ b.T / 3)
    assert np.array_equal(kernels["a"]["b"], kernels["b"]["a"].T)
    assert np.array_equal(kernels["b"]["b"], kernels["b"]["b"].T)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def on_eight_f_runs_on_the_mesh_that_is_set(kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    placed = jax.sharding.reshard if kind == AxisType.Explicit else jax.lax.with_sharding_constraint

    def f(params, x):
        # Without the mesh, JAX does not know its axes.
        return two_layers(params, placed(x, PartitionSpec("data")))

    with jax.set_mesh(mesh):
        kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), 3)
        kernels, grams = kernel_fn(EIGHT, None, [WIDE, NARROW]), nngp.gram(f, EIGHT, [WIDE, NARROW])
        # on numbers of one device, and of all of them
        similarity = [float(nngp.metrics.cka(of["hidden"], of["output"], debiased=False)) for of in (kernels, grams)]
        assert jax.sharding.get_mesh() == mesh
    centered = {name: gram(y - y.mean(axis=0)) for name, y in by_hand(EIGHT).items()}
    for name, y in by_hand(EIGHT).items():
        assert_close(kernels[name], gram(y))
    a, b = centered.values()
    np.testing.assert_allclose(similarity, np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)), rtol=1e-5)


def on_eight_sums_and_diagonals_over_examples():
    y = np.tanh(X.astype(np.float64))
    for axes, expected in [({"trace_axes": (0, 1)}, np.mean(y * y)), ({"diagonal_axes": 0}, np.mean(y * y, axis=1))]:
        found = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: jnp.tanh(x), **axes), 3)(X, None, None)
        assert_close(found, expected)


def on_eight_axes_that_stay_are_paired():
    y = normal(7, 30, 4, 3)
    kernel = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x), 2)(y, None, None)
    assert_close(kernel, np.einsum("nhc,mgc->nmhg", *[y.astype(np.float64)] * 2) / 3)
    assert np.array_equal(kernel, kernel.transpose(1, 0, 3, 2))


def on_eight_given_outputs_give_a_kernel_where_they_are():
    mesh = jax.make_mesh((8,), ("examples",), axis_types=(AxisType.Explicit,))
    y1, y2 = (jax.device_put(y, NamedSharding(mesh, PartitionSpec("examples"))) for y in (EIGHT, EIGHT[:16]))
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(two_layers))
    for second in (None, y2):
        found = kernel_fn.contract(y1, second)
        assert_close(found, EIGHT.astype(np.float64) @ (EIGHT if second is None else EIGHT[:16]).T / 8)
        assert found.sharding == NamedSharding(mesh, PartitionSpec("examples"))


@pytest.mark.exhaustive
def on_eight_no_device_gets_all_features(tmp_path):
    # The profile names what devices exchange. Features travel block by block, and no program gathers an array.
    mesh = jax.make_mesh((8,), ("examples",), axis_types=(AxisType.Auto,))
    y = normal(8, 64, 100)
    x = jax.device_put(y, NamedSharding(mesh, PartitionSpec("examples")))
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: params * x), 4)
    with jax.profiler.trace(tmp_path):
        kernels = [jax.block_until_ready(kernel_fn(inputs, None, 2.0)) for inputs in (x, y)]
        jax.block_until_ready(nngp.empirical_nngp_fn(lambda params, x: params * x)(x, None, 2.0))
    (path,) = tmp_path.rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
    names = Counter(event.name.split(".")[0] for p in profile.planes for line in p.lines for event in line.events)
    assert [kernel.sharding.is_fully_replicated for kernel in kernels] == [False, True]
    assert names["ppermute"] >= 2 * 8 * 4
    # the kernel without batches does gather, so that this check can see it
    assert names["all-gather"] == 8
    for kernel in kernels:
        assert_close(kernel, 4 * gram(y))


@pytest.mark.exhaustive
def on_eight_narrow_features_of_a_gram_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("examples",), axis_types=(AxisType.Explicit,))
    x = jax.device_put(EIGHT, NamedSharding(mesh, PartitionSpec("examples")))
    for batch_size in (0, 4):
        found = nngp.gram(lambda params, x: jnp.tanh(x @ params), x, NARROW[:8], batch_size=batch_size)
        assert {shard.data.shape for shard in found.phi.addressable_shards} == {(6, 8)}
        y = np.tanh(EIGHT.astype(np.float64) @ NARROW[:8])
        assert_close(found.dense(), gram(y))
        alone = nngp.metrics.FeatureGram(jnp.asarray(y / np.sqrt(8), jnp.float32))
        np.testing.assert_allclose(nngp.metrics.effective_rank(found), nngp.metrics.effective_rank(alone), rtol=1e-4)


@pytest.mark.parametrize(
    ("batch_size", "kwargs"), [(0, {}), (1, {"rng": jax.random.key(3)}), (5, {})], ids=["all", "one and a key", "five"]
)
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
