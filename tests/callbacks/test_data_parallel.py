"""A probe on a mesh with explicit axes, in a process with eight devices."""

import os
import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import nngp_plugins as nngp

def f(w, x):
    hidden = jnp.tanh(x @ w)
    return {"hidden": hidden, "square": hidden**2}

def history(x):
    with nngp.KernelTracker(f, x, schedule=nngp.every(1)) as tracker:
        for step in range(3):
            tracker(step, (1 + step) * jnp.eye(8))
    return tracker.history

x = jax.random.normal(jax.random.key(0), (16, 8))
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
for metric in nngp.metrics.DEFAULT:
    np.testing.assert_allclose(history(sharded).metric(metric), history(x).metric(metric), rtol=1e-4, atol=1e-6)
kernels = [nngp.empirical_nngp_fn(f)(y, None, jnp.eye(8)) for y in (x, sharded)]
alone, spread = (nngp.metrics.cka(k["hidden"], k["square"]) for k in kernels)
np.testing.assert_allclose(alone, spread, rtol=1e-4)
print("ok")
"""


def test_a_probe_sharded_over_an_explicit_mesh():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout == "ok\n", run.stderr
