"""Snapshots that queue: no call waits for the numbers of earlier ones, unless they take too much memory."""

import gc
import os
import subprocess
import sys
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

pytestmark = pytest.mark.once

PROBE = 2 * normal(1, 8, 3)
SNAPSHOT = 2 * (8 * 8 + 1) * 4  # bytes of the products of both layers, and of their exponents
PATIENCE = 60  # seconds until a test fails that would wait for ever


def two_layers(w, x):
    return {"first": w * x, "second": 2 * w * x}


class Held:
    """A metric, the scale of a layer, whose callback waits until it is released."""

    def __init__(self):
        self.released = threading.Event()

    def __call__(self, gram, reference):
        return jax.pure_callback(self._wait, jax.ShapeDtypeStruct((), jnp.float32), gram.trace() / gram.n)

    def _wait(self, scale):
        assert self.released.wait(PATIENCE)
        return np.float32(scale)


@pytest.fixture
def held():
    metric = Held()
    yield metric
    metric.released.set()  # so that a test that fails leaves no thread behind


def tracker(metric, **options):
    return nngp.KernelTracker(two_layers, PROBE, schedule=nngp.every(1), metrics={"held": metric}, **options)


def assert_rows(history, steps):
    """Every snapshot in order, with its own numbers."""
    assert [row["step"] for row in history.rows] == steps
    assert [row["loss"] for row in history.rows] == [step / 4 for step in steps]
    scale = np.mean(PROBE**2) * (1.0 + np.array(steps)) ** 2
    np.testing.assert_allclose(history.metric("held"), np.stack([scale, 4 * scale], axis=1), rtol=1e-5)


def test_ten_calls_return_before_the_first_has_its_numbers(held):
    seen = tracker(held)
    for step in range(10):
        seen(step, jnp.float32(1 + step), loss=jnp.float32(step / 4))
    assert len(seen.history) == 0
    held.released.set()
    seen.flush()
    assert_rows(seen.history, list(range(10)))
    seen.close()


class Calls:
    """A training in a thread of its own, and how far it has come."""

    def __init__(self, seen, steps):
        self._thread = threading.Thread(target=self._run, args=(seen, steps))
        self.done, self.warned = 0, []
        self._thread.start()

    def _run(self, seen, steps):
        with warnings.catch_warnings(record=True) as self.warned:
            warnings.simplefilter("always")
            for step in range(steps):
                seen(step, jnp.float32(1 + step), loss=step / 4)
                self.done += 1

    def join(self, patience=PATIENCE):
        """Whether the training has ended."""
        self._thread.join(patience)
        return not self._thread.is_alive()


def test_a_full_queue_makes_calls_wait_and_warns_once(held):
    seen = tracker(held, queue_bytes=2 * SNAPSHOT)
    calls = Calls(seen, 6)
    last = time.monotonic() + PATIENCE
    while calls.done < 2:
        assert time.monotonic() < last
        time.sleep(0.01)
    assert not calls.join(0.3)
    assert calls.done == 2
    held.released.set()
    assert calls.join()
    seen.flush()
    assert_rows(seen.history, list(range(6)))
    seen.close()
    (warned,) = calls.warned
    assert f"take {2 * SNAPSHOT:,} bytes of queue_bytes={2 * SNAPSHOT:,}, so the call at step 2 wait" in str(
        warned.message
    )
    assert "Measure at fewer steps, fewer layers or a smaller probe, or pass a larger queue_bytes" in str(
        warned.message
    )


def test_a_snapshot_larger_than_the_queue_is_measured(held):
    held.released.set()
    seen = tracker(held, queue_bytes=1)
    for step in range(3):
        seen(step, jnp.float32(1 + step), loss=step / 4)
        seen.flush()
    assert_rows(seen.history, [0, 1, 2])
    seen.close()


def test_a_compiled_loop_does_not_wait_and_is_told(held):
    seen = tracker(held, queue_bytes=2 * SNAPSHOT)
    optimizer = optax.chain(optax.scale(-1.0), nngp.track_kernel(seen))

    @jax.jit
    def train(w, opt_state):
        def step(carry, step):
            w, opt_state = carry
            updates, opt_state = optimizer.update(jnp.float32(-1), opt_state, w, loss=step / 4)
            return (w + updates, opt_state), None

        return jax.lax.scan(step, (w, opt_state), jnp.arange(5.0))[0]

    w, _ = jax.block_until_ready(train(jnp.float32(1), optimizer.init(jnp.float32(1))))
    assert float(w) == 6
    assert len(seen.history) == 0
    held.released.set()
    with pytest.warns(UserWarning, match="step 2 waits on the disk, because a compiled loop must not wait") as warned:
        seen.close()
    assert len(warned) == 1
    assert_rows(seen.history, [0, 1, 2, 3, 4])


class Failing:
    """A metric that fails at the second kernel."""

    def __call__(self, gram, reference):
        return jax.pure_callback(self._checked, jax.ShapeDtypeStruct((), jnp.float32), gram.trace() / gram.n)

    def _checked(self, scale):
        if 3 < scale / np.mean(PROBE**2) < 5:
            raise ArithmeticError("this kernel is not for me")
        return np.float32(scale)


@pytest.mark.parametrize("later", ["call", "flush", "close"])
def test_an_error_of_a_metric_is_raised_later_and_the_other_rows_are_there(later):
    seen = nngp.KernelTracker(
        lambda w, x: w * x, PROBE, schedule=nngp.every(1), metrics={"failing": Failing()}, queue_bytes=1
    )
    for step in (0, 1):  # With room for one, the call at step 1 returns when step 0 is recorded.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen(step, jnp.float32(1 + step))

    def call():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen(2, jnp.float32(3))

    with pytest.raises(Exception, match="this kernel is not for me"):
        {"call": call, "flush": seen.flush, "close": seen.close}[later]()
    seen.close()
    assert [row["step"] for row in seen.history.rows] == [0]


def test_a_measurement_is_one_array_of_all_layers_and_one_of_exponents():
    measurement = tracker(Held()).measurement
    measured = measurement(jnp.float32(2), None, on_shape=lambda products: None)
    assert [leaf.shape for leaf in jax.tree.leaves(measured)] == [(2, 8, 8), (2,)]
    from_first = PROBE.copy()
    from_first[1:] -= from_first[0]
    np.testing.assert_allclose(measured.products.matrix[0], 4 * from_first @ from_first.T / 3, rtol=1e-5, atol=1e-6)


def test_the_device_holds_no_snapshot_that_waits(held):
    seen = tracker(held)
    for step in range(5):
        seen(step, jnp.float32(1 + step), loss=jnp.float32(step / 4))
    last = time.monotonic() + PATIENCE
    while products := [array for array in jax.live_arrays() if array.shape == (2, 8, 8)]:
        # A thread fetches them; the metrics, which wait, do not let go of them.
        assert time.monotonic() < last, products
        del products
        time.sleep(0.01)
        gc.collect()
    assert len(seen.history) == 0
    held.released.set()
    seen.flush()
    assert_rows(seen.history, list(range(5)))
    seen.close()


@pytest.mark.parametrize("value", [2e9, "2 GiB", True, None])
def test_a_size_of_the_queue_that_is_no_integer(value):
    with pytest.raises(
        TypeError, match=r"^queue_bytes=.* is not a number of bytes; pass an int, such as queue_bytes=2"
    ):
        tracker(Held(), queue_bytes=value)


@pytest.mark.parametrize("value", [0, -1])
def test_a_size_of_the_queue_that_is_not_positive(value):
    with pytest.raises(ValueError, match=f"^queue_bytes={value} must be positive; with queue_bytes=1, each snapshot"):
        tracker(Held(), queue_bytes=value)


SCRIPT = """
import sys, jax, jax.numpy as jnp, nngp_plugins as nngp
x = jax.random.normal(jax.random.key(0), (64, 3))
seen = nngp.KernelTracker(lambda w, x: (w * x, x), x, schedule=nngp.every(1), run=sys.argv[1])
for step in range(6):
    seen(step, 1.0 + step)
"""


def test_a_script_that_ends_without_close_leaves_all_snapshots(tmp_path):
    """The interpreter starts no thread when it ends, and the worker then does without the pool."""
    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "run"], check=True, cwd=tmp_path)
    assert nngp.History.load(tmp_path / "run").steps.tolist() == list(range(6))


def test_a_tracker_of_another_process_is_an_error_at_once():
    seen = tracker(lambda gram, reference: gram.trace())
    seen(0, jnp.float32(1))
    for call, message in [(lambda: seen(1, jnp.float32(2)), "a call"), (seen.flush, "flush()")]:
        assert in_fork(call).startswith(f"RuntimeError: {message} of a tracker that another process made")
    assert in_fork(seen.close) == ""
    seen(1, jnp.float32(2))
    seen.close()
    assert seen.history.steps.tolist() == [0, 1]


def in_fork(call):
    """What a call raises in a forked process, as text."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX and Python warn of forks, which data loaders make all the same
        child = os.fork()
    if not child:
        said = ""
        try:
            call()
        except BaseException as error:  # noqa: BLE001
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def test_a_metric_that_flushes_the_tracker_does_not_wait_for_itself():
    def flushes(gram, reference):
        if begun:
            seen.flush()
        return gram.trace()

    begun = []
    seen = tracker(flushes)
    begun.append(True)
    seen(0, jnp.float32(1))
    with pytest.raises(RuntimeError, match=r"flush\(\) was called by a metric, in the tracker's own thread, which"):
        seen.close()
