"""Every example goes through the network once, and ``f`` is compiled once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

pytestmark = pytest.mark.once

TILE = 4


batch = partial(nngp.batch, tile_size=TILE)


class Counted:
    """An apply function that counts its traces, and the rows of each time it runs."""

    def __init__(self):
        self.traces, self.runs, self.first = 0, [], []

    def __call__(self, params, x):
        self.traces += 1
        jax.debug.callback(self._ran, x[:, 0])
        return params * x

    def _ran(self, column):
        self.runs.append(len(column))
        self.first.extend(np.asarray(column).tolist())

    def rows_of(self, kernel_fn, *args):
        """The rows of each run in a call."""
        self.runs, self.first = [], []
        jax.block_until_ready(kernel_fn(*args))
        jax.effects_barrier()
        return self.runs


# The tests that do not look at traces share one function, and so its programs.
F = Counted()

ONCE = [  # n1, n2, batch_size, axes, runs
    (12, None, 4, {}, [4] * 3),
    (12, 12, 0, {}, [12] * 2),
    (12, None, 0, {"trace_axes": (0, 1)}, [12]),
    (4, None, 9, {}, [4]),
    (5, None, 1, {"diagonal_axes": 0}, [1] * 5),
    (10, 5, 4, {}, [4] * 5),  # the last are filled up
    (10, None, 4, {"diagonal_axes": 0}, [4] * 3),
    (10, None, 4, {"trace_axes": (0, 1)}, [4] * 3),
    (97, 60, 10, {}, [10] * 16),
]


@pytest.mark.every(2)
@pytest.mark.parametrize(("n1", "n2", "batch_size", "axes", "runs"), ONCE)
def test_every_example_runs_once(n1, n2, batch_size, axes, runs):
    x1, x2 = normal(0, n1, 3), None if n2 is None else normal(1, n2, 3)
    kernel_fn = batch(nngp.empirical_nngp_fn(F, **axes), batch_size, check=False)
    assert F.rows_of(kernel_fn, x1, x2, 2.0) == runs
    every = np.concatenate([x1, x1[:0] if n2 is None else x2])[:, 0]
    assert set(F.first) == set(every.tolist())
    assert nngp.plan(kernel_fn, x1, x2, 2.0).forward_rows == len(every)


@pytest.mark.parametrize("batch_size", [1, 6])
def test_the_check_runs_a_few_rows_more(batch_size):
    f = Counted()
    kernel_fn = batch(nngp.empirical_nngp_fn(f), batch_size)
    x1, x2 = normal(0, 12, 3), normal(1, 6, 3)
    assert 12 < sum(f.rows_of(kernel_fn, x1, None, 2.0)) <= 12 + 6
    # once for f and these shapes
    assert sum(f.rows_of(kernel_fn, x1, None, 3.0)) == 12
    assert sum(f.rows_of(kernel_fn, x1, x2, 2.0)) == 18
    # all at once, there is nothing to check
    assert f.rows_of(batch(nngp.empirical_nngp_fn(f)), x1, None, 2.0) == [12]


ROW_BYTES = 12  # 3 float32


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("n1", "n2", "batch_size", "block", "rows", "on_device"),
    [
        (24, None, 4, 8, 24 + 16 + 8, True),  # N (b + 1) / 2 with 3 blocks
        (24, 16, 4, 8, 24 + 3 * 16, True),  # N + b M
        (16, 24, 4, 8, 16 + 2 * 24, False),
        (24, None, 24, 24, 24, False),
        (16, None, 8, 2, 16 + 8, True),  # the outputs of a batch do not fit, which there are anyway
    ],
)
def test_where_outputs_do_not_fit_the_others_run_again(n1, n2, batch_size, block, rows, on_device):
    options = {"check": False, "memory_budget": 2 * block * ROW_BYTES, "store_on_device": on_device}
    kernel_fn = batch(nngp.empirical_nngp_fn(F), batch_size, **options)
    args = normal(0, n1, 3), None if n2 is None else normal(1, n2, 3), 2.0
    planned = nngp.plan(kernel_fn, *args).forward_rows
    assert sum(F.rows_of(kernel_fn, *args)) == planned == rows


@pytest.mark.parametrize("axes", [{"diagonal_axes": 0}, {"trace_axes": 0}], ids=str)
def test_where_no_two_examples_meet_none_runs_again(axes):
    kernel_fn = batch(nngp.empirical_nngp_fn(F, **axes), 4, check=False, memory_budget=16 * ROW_BYTES)
    assert sum(F.rows_of(kernel_fn, normal(0, 24, 3), None, 2.0)) == 24
    assert sum(F.rows_of(kernel_fn, normal(0, 24, 3), normal(1, 24, 3), 2.0)) == 48


def test_f_is_traced_once():
    f = Counted()

    def kernel(n, n2=None, params=2.0, batch_size=4, check=False, **options):
        kernel_fn = batch(nngp.empirical_nngp_fn(f, **options), batch_size, check=check)
        x2 = None if n2 is None else normal(1, n2, 3)
        return kernel_fn(normal(0, n, 3), x2, params)

    kernel(11)
    assert f.traces == 1
    # values, numbers of examples, axes and sides are no reason to trace again
    kernel(11)
    kernel(6, params=jnp.asarray(3.0))
    kernel(7, 11, trace_axes=())
    assert f.traces <= 2  # a Python number and an array are two types
    traces = f.traces
    kernel(11, 6)
    assert f.traces == traces
    # the check runs another size of batch, once
    kernel(11, check=True)
    kernel(23, 9, check=True)
    assert f.traces == traces + 1


def test_a_model_made_again_is_not_traced_again():
    import flax.linen as nn

    traces = []

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(x.shape)
            return nn.Dense(4)(x)

    params = Net().init(jax.random.key(0), normal(0, 1, 3))["params"]
    traces.clear()
    for _ in range(3):
        batch(nngp.empirical_nngp_fn(nngp.from_linen(Net())), 4, check=False)(normal(0, 10, 3), None, params)
    assert traces == [(4, 3)]


def test_nothing_is_compiled_in_a_second_call(caplog):
    kernel_fn = batch(nngp.empirical_nngp_fn(lambda params, x, rng: x * jax.random.uniform(rng)), 5)
    args = normal(0, 33, 3), normal(1, 17, 3), None
    kernel_fn(*args, rng=jax.random.key(0))
    with jax.log_compiles(True):
        kernel_fn(*args, rng=jax.random.key(1))
        assert [record.message for record in caplog.records if "Compiling" in record.message] == []
        kernel_fn(normal(0, 33, 2), None, None, rng=jax.random.key(1))
    # so that the logs would have said so
    assert [record.message for record in caplog.records if "Compiling" in record.message] != []
