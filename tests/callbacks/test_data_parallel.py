"""Training on eight devices, in a process that has them: parameters replicated or sharded, a probe sharded."""

import os
import subprocess
import sys

BEGIN = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import nngp_plugins as nngp

assert jax.device_count() == 8
names = ("cka", "relative_change", "kernel_velocity", "effective_rank")
METRICS = {name: nngp.metrics.DEFAULT[name] for name in names}

def same(found, expected):
    assert found.steps.tolist() == expected.steps.tolist()
    assert found.layers == expected.layers == ["hidden", "square"]
    for metric in expected.metrics:
        np.testing.assert_allclose(found.metric(metric), expected.metric(metric), rtol=1e-4, atol=1e-6)
"""
EXPLICIT = """
def f(w, x):
    hidden = jnp.tanh(x @ w)
    return {"hidden": hidden, "square": hidden**2}

def history(x, batch_size=None):
    with nngp.KernelTracker(f, x, schedule=nngp.every(1), metrics=METRICS, batch_size=batch_size) as tracker:
        for step in range(3):
            tracker(step, (1 + step) * jnp.eye(8))
    return tracker.history

x = jax.random.normal(jax.random.key(0), (16, 8))
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
same(history(sharded), history(x))
kernels = [nngp.empirical_nngp_fn(f)(y, None, jnp.eye(8)) for y in (x, sharded)]
alone, spread = (nngp.metrics.cka(k["hidden"], k["square"]) for k in kernels)
np.testing.assert_allclose(alone, spread, rtol=1e-4)
try:
    nngp.KernelTracker(f, sharded, batch_size=8)
except ValueError as error:
    assert "batch_size=8 would cut probe_x, which is sharded over explicit axes" in str(error)
else:
    raise AssertionError("nothing refused")
print("a probe on an explicit mesh")
"""
NO_GATHER = """
# The profile names what devices exchange: pieces of features, and sums, and never all features of all examples.
import collections, pathlib, tempfile
for kind, batch_size in ((AxisType.Auto, None), (AxisType.Auto, 8), (AxisType.Explicit, None)):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            found = history(sharded, batch_size)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        names = collections.Counter(e.name.split(".")[0] for p in planes for line in p.lines for e in line.events)
    same(found, history(x))
    assert names["all-to-all"] >= 8 and not names["all-gather"], names
print("no device gets all features")
"""
TRAINING = """
def f(params, x):
    hidden = jnp.tanh(x @ params["w"])
    return {"hidden": hidden, "square": hidden @ params["v"]}

data, weights = np.random.default_rng(0), np.random.default_rng(1)
x, y = (data.normal(size=(64, d)).astype(np.float32) for d in (8, 16))
probe = data.normal(size=(24, 8)).astype(np.float32)
params = {"w": weights.normal(size=(8, 16)).astype(np.float32), "v": weights.normal(size=(16, 16)).astype(np.float32)}

def train(place, place_params, where):
    options = {"schedule": nngp.every(2) | nngp.at(1), "metrics": METRICS, "keep_kernels": True}
    hook, inner = (
        nngp.KernelTracker(f, place(probe), run=f"{where}/{name}", **options) for name in ("hook", "inner")
    )
    optimizer = optax.chain(optax.sgd(0.02), nngp.track_kernel(inner))
    carry = jax.tree.map(place_params, params)
    carry = carry, optimizer.init(carry)

    @jax.jit
    def step_fn(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((f(params, x)["square"] - y) ** 2))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for step in range(6):
        hook(step, carry[0])
        carry = step_fn(*carry, place(x), place(y))
    devices = len(carry[0]["w"].devices())
    inner.flush()
    hook.flush()
    return hook.history, inner.history, devices

import sys, tempfile
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
kinds = {
    "replicated": lambda a: jax.device_put(a, NamedSharding(mesh, P())),
    "sharded": lambda a: jax.device_put(a, NamedSharding(mesh, P(None, "data"))),
}
with tempfile.TemporaryDirectory() as folder:
    expected, _, devices = train(jnp.asarray, jnp.asarray, folder + "/one")
    assert devices == 1
    assert expected.metric("relative_change")[-1].min() > 0.01
    spread = lambda a: jax.device_put(a, NamedSharding(mesh, P("data")))
    for kind, place in kinds.items():
        hook, inner, devices = train(spread, place, folder + "/" + kind)
        assert devices == 8
        same(hook, expected)
        same(inner, expected)
        for layer in expected.layers:
            kernel = expected.kernel(layer, 4)
            np.testing.assert_allclose(hook.kernel(layer, 4), kernel, atol=1e-5 * abs(kernel).max(), err_msg=kind)
            np.testing.assert_allclose(inner.kernel(layer, 4), kernel, atol=1e-5 * abs(kernel).max(), err_msg=kind)
print("parameters replicated, and sharded")
"""


def test_on_eight_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", BEGIN + EXPLICIT + NO_GATHER + TRAINING]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (
        run.stdout == "a probe on an explicit mesh\nno device gets all features\nparameters replicated, and sharded\n"
    ), run.stderr
