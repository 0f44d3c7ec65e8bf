"""What tests/forks.py runs: processes of jax.distributed on this machine, which do the same and are compared."""

import json
import os
import re
import signal
import socket
import time
import traceback
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from forks import child
from helpers.arrays import normal
from helpers.oracles import u_centred
from jax.sharding import NamedSharding, PartitionSpec

import nngp_plugins as nngp
from nngp_plugins import metrics

X, X2, W = normal(0, 24, 5), normal(1, 8, 5), normal(2, 5, 8)
LABELS = np.arange(24) % 3
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def run(path, count, kind="cases"):
    """Starts processes, and waits for them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    pids = []
    for index in range(count):
        # JAX has started no backend yet, so the fork loses no threads.
        pid = os.fork()
        if not pid:
            # Gloo writes to where tests/forks.py talks.
            os.dup2(2, 1)
            child(one_of, {"address": address, "count": count, "index": index, "path": path, "kind": kind})
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    (Path(path) / "codes.json").write_text(json.dumps(codes))


def one_of(address, count, index, path, kind):
    """What each of the processes does."""
    begin(address, count, index)
    KINDS[kind](Path(path), index)


def begin(address, count, index):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, index)
    assert (jax.process_index(), jax.process_count()) == (index, count)


def all_cases(path, index):
    """Runs all cases; one that fails must not hide the others."""
    failures = {}
    for name, function in CASES.items():
        try:
            function(path)
            failures[name] = ""
        except Exception:  # noqa: BLE001
            failures[name] = traceback.format_exc()
    (path / f"{index}.json").write_text(json.dumps(failures))
    # Process 0 holds the service of jax.distributed, which ends the others when it is gone.
    end = time.monotonic() + 60
    while index == 0 and len(list(path.glob("[0-9].json"))) < jax.process_count() and time.monotonic() < end:
        time.sleep(0.01)


def one_dies(path, index):
    """Process 1 of 4 is killed as it writes, by the model that it runs."""

    def f(w, x):
        def die(x):
            if index == 1 and (path / "k").exists() and len(list((path / "k").rglob("c/*/*"))) > 8:
                os.kill(os.getpid(), signal.SIGKILL)

        jax.debug.callback(die, x)
        return jnp.tanh(x @ w)

    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), check=False)
    nngp.write_kernel(kernel_fn, X, None, W, path / "k", batch_size=2, tile_size=2, progress=False)
    (path / f"{index} is done").touch()
    # Process 0 holds the service of jax.distributed, which ends the others when it is gone, and waits for the dead one.
    while index == 0 and len(list(path.glob("* is done"))) < jax.process_count() - 1:
        time.sleep(0.01)
    os._exit(0)


KINDS = {"cases": all_cases, "one dies": one_dies}


def put(array, *spec):
    mesh = jax.make_mesh((jax.process_count(),), ("n",))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def hidden(w, x):
    return jnp.tanh(x @ w)


def network(w, x):
    return {"hidden": hidden(w, x), "wide": jnp.concatenate([x @ w] * 2, axis=1)}


def expected(x, y=None):
    a, b = (np.tanh(np.asarray(v, float) @ W) for v in (x, x if y is None else y))
    return a @ b.T / 8


def assert_rows(kernel, whole):
    """Each process has some rows of the kernel, which are those of the whole."""
    assert kernel.shape == whole.shape
    (shard,) = kernel.addressable_shards
    assert shard.data.shape[0] == len(whole) // jax.process_count()
    np.testing.assert_allclose(np.asarray(shard.data), whole[shard.index], rtol=0, atol=1e-5)


@case
def kernels_are_sharded_as_the_inputs(path):
    kernel_fn = nngp.empirical_nngp_fn(hidden)
    if jax.process_count() == 4:
        assert_rows(nngp.batch(kernel_fn)(put(X, "n"), None, put(W, None, "n")), expected(X))
    batched = nngp.batch(kernel_fn, 5)
    assert_rows(batched(put(X, "n"), None, put(W, None, "n")), expected(X))
    assert_rows(batched(put(X, "n"), X2, W), expected(X, X2))
    # What every process has as a whole is taken from there.
    np.testing.assert_allclose(batched(X, None, put(W)), expected(X), rtol=0, atol=1e-5)


@case
def a_batch_of_all_devices_has_a_key(path):
    def f(w, x, rng):
        return hidden(w, x) * jax.random.bernoulli(rng["dropout"], 0.5, (len(x), 8))

    def drawn(x, rows, *keys):
        """What one process computes of the rows of each batch."""
        y = np.zeros((len(x), 8))
        for rows_of_batch, key in zip(rows, keys, strict=True):
            y[rows_of_batch] = f(W, x[rows_of_batch], {"dropout": key})
        return y

    key, count = jax.device_put(jax.random.key(3), jax.local_devices()[0]), jax.process_count()
    shares = np.arange(24).reshape(count, -1)
    at_once = drawn(X, [np.arange(24)], key)
    # The last batch is filled up with the first examples of each share.
    shares = np.concatenate([shares, shares[:, : -shares.shape[1] % 5]], axis=1)
    batches = [batch.ravel() for batch in np.split(shares, shares.shape[1] // 5, axis=1)]
    keys = [jax.random.fold_in(key, i) for i in range(len(batches))]
    reverse = drawn(X, batches[::-1], *keys[::-1])
    kernel_fn, options = nngp.empirical_nngp_fn(f), {"rng": {"dropout": key}}
    x = put(X, "n")
    whole = nngp.batch(kernel_fn)
    assert_rows(whole(x, None, W, **options), at_once @ at_once.T / 8)
    assert_rows(whole(x, X, W, **options), at_once @ at_once.T / 8)
    other = drawn(X2, [np.arange(8)], jax.random.fold_in(key, 1))
    assert_rows(whole(x, X2, W, **options), at_once @ other.T / 8)
    assert_rows(nngp.batch(kernel_fn, 5)(x, None, W, **options), reverse @ reverse.T / 8)
    scale = metrics.scale(nngp.gram(f, x, W, batch_size=5, **options))
    np.testing.assert_allclose(float(scale), np.trace(reverse @ reverse.T) / 24 / 8, rtol=1e-5)


@case
def what_cannot_be_is_refused(path):
    batched = nngp.batch(nngp.empirical_nngp_fn(network))
    refusals = {
        r"params is sharded over several processes, and this one needs all of it": lambda: batched(X, None, sharded),
        r"params are on the devices of several processes, and probe_x is not": lambda: local(0, put(W)),
        r"schedule=EverySeconds(seconds=5) looks at the clock": lambda: tracker(schedule=nngp.every_seconds(5)),
        "track_kernel asks the host of one process": lambda: nngp.track_kernel(tracker()),
        r"the kernel of output 'hidden' overflows float32": lambda: batched(put(X, "n"), None, 1e25 * W),
        r"output 'hidden' of f depends on the other examples in the batch": lambda: normed(put(X, "n"), None, W),
        r"process 0 could not begin" if jax.process_index() else "is in use": lambda: begin_twice(),
    }
    sharded, local = put(W, None, "n"), nngp.KernelTracker(network, X)
    batched = nngp.batch(nngp.empirical_nngp_fn(lambda w, x: {"hidden": x @ w}))
    norm = nngp.empirical_nngp_fn(lambda w, x: {"hidden": (x - x.mean(0)) @ w})
    normed = nngp.batch(norm, batch_size=4)

    def tracker(**options):
        return nngp.KernelTracker(network, put(X, "n"), **options)

    def begin_twice():
        with tracker(run=path / "refused"):
            tracker(run=path / "refused")

    for message, call in refusals.items():
        try:
            call()
        except (ValueError, RuntimeError, OSError) as error:
            assert message in str(error), (message, error)  # noqa: PT017
        else:
            raise AssertionError(f"nothing refused: {message}")


@case
def grams_give_every_process_the_same_numbers(path):
    shared = nngp.gram(network, put(X, "n"), W, batch_size=5)
    y = X.astype(float) @ W
    cka = jax.jit(metrics.cka).lower(shared["hidden"], shared["wide"]).compile()
    kernels = (z @ z.T for z in (np.tanh(y), np.tile(y, 2)))
    k, l = (u_centred(kernel - np.diag(np.diag(kernel))) for kernel in kernels)  # noqa: E741
    expected = np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l))
    np.testing.assert_allclose(float(cka(shared["hidden"], shared["wide"])), expected, rtol=1e-4)
    # Sums over examples meet, and features do not.
    assert "all-reduce" in cka.as_text()
    assert "all-gather" not in cka.as_text()
    if jax.process_count() == 4:
        whole = nngp.gram(network, X, W)
        for name, metric in metrics.default_metrics(LABELS).items():
            both = (float(metric(gram["hidden"], gram["wide"])) for gram in (shared, whole))
            np.testing.assert_allclose(*both, rtol=1e-4, err_msg=name)
        f = nngp.from_linen(nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(40)])).layers()
        params, _ = f.init(jax.random.key(0), X[:1])
        both = [nngp.gram(f, x, params) for x in (put(X, "n"), X)]
        for name, of_one in both[1].items():
            found = metrics.effective_rank(both[0][name])
            np.testing.assert_allclose(float(found), float(metrics.effective_rank(of_one)), rtol=1e-4, err_msg=name)


@case
def a_flax_model_is_tracked(path):
    # Two processes run the documented training, and this takes as long again.
    if jax.process_count() == 2:
        return
    f = nngp.from_linen(nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(3)])).layers()
    params, _ = f.init(jax.random.key(0), X[:1])
    grow = jax.jit(lambda params, c: jax.tree.map(lambda leaf: leaf * c, params))
    shared = jax.tree.map(put, jax.tree.map(np.asarray, params))

    def track(probe, start, steps, **options):
        with nngp.KernelTracker(f, probe, schedule=nngp.every(2), metrics={"cka": metrics.cka}, **options) as tracker:
            for step in range(steps):
                tracker(step, grow(start, 1.0 + step), loss=jnp.float32(step))
        return tracker.history.rows

    first, second = (track(put(X, "n"), shared, steps, run=path / "run", batch_size=8) for steps in (3, 6))
    if jax.process_index():
        # It has only what was there when the run went on.
        assert (len(first), len(second)) == (0, 2)
        return
    assert [row["step"] for row in second] == [0, 2, 4, 5]
    for ours, reference in zip(second, track(X, params, 6), strict=True):
        for name in reference.keys() - {"seconds"}:
            np.testing.assert_allclose(ours[name], reference[name], rtol=1e-3, atol=1e-5, err_msg=name)


@case
def a_mesh_may_be_set(path):
    """``f`` is called within it."""

    def f(w, x):
        return network(w, jax.lax.with_sharding_constraint(x, PartitionSpec("n")))

    x, w = put(X, "n"), put(W)
    with jax.set_mesh(x.sharding.mesh):
        assert_rows(nngp.batch(nngp.empirical_nngp_fn(f), 5)(x, None, w)["hidden"], expected(X))
        found = metrics.effective_rank(nngp.gram(f, x, w)["wide"])
        with nngp.KernelTracker(f, x, schedule=nngp.every(1)) as tracker:
            tracker(0, w)
    np.testing.assert_allclose(float(found), float(metrics.effective_rank(expected_wide())), rtol=1e-4)
    if not jax.process_index():
        ranks = tracker.history.metric("effective_rank")[0]
        np.testing.assert_allclose(
            ranks, [float(metrics.effective_rank(k)) for k in (expected(X), expected_wide())], rtol=1e-4
        )


def expected_wide():
    return (X.astype(float) @ W) @ (X.astype(float) @ W).T / 8


@case
def the_documented_training(path):
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "make_mesh" in block)
    os.chdir(path)
    variables = {}
    exec(compile(code, "docs/scale.md", "exec"), variables)
    assert variables["tracker"].history.steps.tolist() == ([] if jax.process_index() else [0, 2, 4])


@case
def stores_are_shared_by_default(path):
    options = {"batch_size": 2, "progress": False}
    store = nngp.write_features(network, X, put(W), path / "phi", block_size=2, **options)
    kernel_fn = nngp.empirical_nngp_fn(network)
    nngp.write_kernel(kernel_fn, X, None, put(W), path / "k", tile_size=2, **options)
    own = f"ledger.{jax.process_index()}-of-{jax.process_count()}.jsonl"
    lines = (store.path / own).read_bytes().count(b"\n")
    assert lines == 2 * 12 // jax.process_count(), lines
    assert (path / "k" / own).exists()
