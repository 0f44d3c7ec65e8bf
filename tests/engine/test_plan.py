"""The dry run: what `nngp.plan` says a kernel costs is what it costs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp
from nngp_plugins.engine import Job, in_tiles


def scaled(params, x):
    return params * x


# the numbers


def test_a_symmetric_kernel_in_tiles():
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), tile_size=10)
    job = nngp.plan(kernel_fn, normal(0, 95, 8), None, 2.0, batch_size=20)
    assert (job.n1, job.n2, job.symmetric) == (95, None, True)
    assert (job.batch_rows, job.block_rows, job.tile_rows) == (20, 95, 10)
    assert job.row_bytes == 8 * 4
    assert job.forward_rows == 95
    assert job.output_bytes == 95 * 8 * 4
    assert job.kernel_bytes == 95 * 95 * 4
    assert job.tile_bytes == 10 * 10 * 4
    # 10 rows of tiles, the last of 5 examples: those on and above the diagonal
    assert job.tile_count == 10 * 11 / 2
    assert job.flops == 2 * 8 * (9 * 10 / 2 * 100 + 9 * 50 + 25)


def test_a_symmetric_kernel_takes_half_the_operations():
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), tile_size=10)
    x = normal(0, 1000, 8)
    half, full = nngp.plan(kernel_fn, x, None, 2.0), nngp.plan(kernel_fn, x, x, 2.0)
    assert full.flops == 2 * 8 * 1000**2
    assert half.flops == full.flops * (1 + 1 / 100) / 2  # and the diagonal tiles


def test_another_x2():
    x1, x2 = normal(0, 95, 8), normal(1, 42, 8)
    # Unless it is told otherwise, a kernel on the device is one tile, which need not be put together.
    for options, tile_rows, tile_count in [
        ({}, 95, 1),
        ({"tile_size": 10}, 10, 10 * 5),
        ({"tile_size": 10, "store_on_device": False}, 10, 10 * 5),
    ]:
        kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), 20, **options)
        job = nngp.plan(kernel_fn, x1, x2, 2.0)
        assert (job.n1, job.n2, job.symmetric) == (95, 42, False)
        assert (job.batch_rows, job.block_rows, job.tile_rows) == (20, 95, tile_rows)
        assert job.forward_rows == 95 + 42
        assert job.output_bytes == (95 + 42) * 8 * 4
        assert job.kernel_bytes == 95 * 42 * 4
        assert job.tile_bytes == tile_rows * min(tile_rows, 42) * 4
        assert job.tile_count == tile_count
        assert job.flops == 2 * 8 * 95 * 42


def test_the_fastest_tiles_are_many_only_for_large_kernels():
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), 20)
    small, large = (nngp.plan(kernel_fn, Refused(n, 8), None, 2.0) for n in (500, 20_000))
    assert (small.tile_rows, small.tile_count) == (500, 1)
    assert large.tile_rows < 5000
    assert large.flops < 0.65 * 2 * 8 * 20_000**2


def test_outputs_that_do_not_fit():
    options = {"store_on_device": False, "memory_budget": 2 * 30 * 32, "tile_size": 5}
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), 10, **options)
    x = normal(0, 100, 8)
    job = nngp.plan(kernel_fn, x, None, 2.0)
    assert (job.block_rows, job.tile_rows) == (30, 5)
    assert job.forward_rows == 100 + (70 + 40 + 10)  # blocks of 30, 30, 30 and 10
    assert job.output_bytes == 2 * 30 * 32
    assert job.tile_count == 20 * 21 / 2
    other = nngp.plan(kernel_fn, x, x[:50], 2.0)
    assert other.forward_rows == 100 + 4 * 50
    assert other.output_bytes == 2 * 30 * 32
    assert other.tile_count == 20 * 10
    assert other.flops == 2 * 8 * 100 * 50


OUTPUTS = {  # of an f with (N, 2, 6) float32 outputs "y" and (N,) complex64 outputs "z"
    "default": {},
    "all but the batch": {"trace_axes": nngp.all_but_batch},
    "nothing traced": {"trace_axes": ()},
    "cross terms": {"trace_axes": (), "cross_terms": True},
    "batch diagonal": {"trace_axes": (), "diagonal_axes": 0},
    "batch traced": {"trace_axes": 0},
}


def two_outputs(params, x):
    y = x.reshape(-1, 2, 6)
    return {"y": y} if params is None else {"y": y, "z": params * y[:, 0, 0]}


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("name", "other", "store_on_device"),
    [(name, other, (i + other) % 2 == 0) for i, name in enumerate(OUTPUTS) for other in (False, True)],
)
def test_bytes_and_tiles_are_those_of_the_call(name, other, store_on_device):
    # With the default axes, the batch is the only axis of a (N,) output that could be traced.
    params = None if name == "default" else np.complex64(1j)
    x1, x2 = normal(0, 8, 12), normal(1, 8, 12) if other else None
    kernel_fn = nngp.empirical_nngp_fn(two_outputs, **OUTPUTS[name])
    kernel_fn = nngp.batch(kernel_fn, 4, store_on_device=store_on_device, tile_size=3, check=False)
    job = nngp.plan(kernel_fn, x1, x2, params)
    sources, sink = kernel_fn.sources(x1, x2, params, {}), KeepTiles()
    in_tiles(Job(job, *sources, kernel_fn.backend(), [lambda done: None] * 2), sink)
    assert job.kernel_bytes == sum(k.nbytes for k in jax.tree.leaves(kernel_fn(x1, x2, params)))
    assert job.tile_count == len(sink.tiles)
    shapes = [leaf.shape for leaf in sources[0].outputs.leaves]
    assert job.flops == sum(operations(job, shapes, *tile) for tile in sink.tiles)
    assert job.tile_bytes == max(tile.nbytes for _, _, tile in sink.tiles)


class KeepTiles:
    """A sink that only takes note of the tiles."""

    def __init__(self):
        self.tiles = []

    def wants(self, pair, rows, columns):
        return True

    def write(self, pair, rows, columns, tile):
        self.tiles.append((pair, rows, tile))


def operations(job, shapes, pair, rows, tile):
    """Products and sums: two for each number of the tile and each term of its mean, over the examples of the tile."""
    traced = [job.orders[0][pair[0]][axis] for axis in job.pairs[pair].contraction.traced[0]]
    terms = [shapes[pair[0]][axis] if axis else rows[1] - rows[0] for axis in traced]
    return 2 * tile.size * int(np.prod(terms))


def test_the_batch_is_that_of_all_devices_and_no_larger_than_needed():
    kernel_fn = nngp.empirical_nngp_fn(scaled)
    for n, batch_size, rows in [(95, 0, 95), (95, 10, 10), (95, 200, 95), (1, 10, 1)]:
        options = {"batch_size": batch_size, "device_count": 1}
        assert nngp.batch(kernel_fn, **options).plan(normal(0, n, 8), None, 2.0).batch_rows == rows


@pytest.mark.parametrize("f", [scaled, lambda params, x: (params * x).astype(float)], ids=["integers", "floats"])
def test_the_width_of_numbers_may_change_while_a_process_runs(f):
    x, kernel_fn = np.arange(12, dtype=np.int32).reshape(4, 3), nngp.batch(nngp.empirical_nngp_fn(f), 2, check=False)
    for x64, dtype in ((False, "float32"), (True, "float64"), (False, "float32")):
        with jax.enable_x64(x64):
            kernel = kernel_fn(x, None, np.int32(2))
            assert nngp.plan(kernel_fn, x, None, np.int32(2)).kernel_bytes == kernel.nbytes
            assert kernel.dtype == dtype
            np.testing.assert_allclose(kernel, 4.0 * x @ x.T / 3, rtol=1e-6)


# the dry run


class Refused:
    """Inputs of which only the shape may be looked at."""

    def __init__(self, *shape):
        self.shape, self.dtype = shape, np.dtype("float32")

    def __getitem__(self, rows):
        raise AssertionError("inputs were read")


def test_nothing_is_read_and_nothing_computed():
    def f(params, x):
        jax.debug.callback(lambda: computed.append(x.shape))
        return x @ params

    computed = []
    job = nngp.plan(
        nngp.empirical_nngp_fn(f), Refused(10**6, 64), Refused(10**5, 64), np.ones((64, 500)), batch_size=100
    )
    jax.effects_barrier()
    assert not computed
    assert job.forward_rows == 1_100_000
    assert job.flops == 10**11 * 2 * 500
    assert job.kernel_bytes == 4 * 10**11


def test_the_options_of_a_batched_kernel_function():
    x = normal(0, 95, 8)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), 10, 1, False, memory_budget=2000)
    assert nngp.plan(kernel_fn, x, None, 2.0) == kernel_fn.plan(x, None, 2.0)
    assert nngp.plan(kernel_fn, x, None, 2.0).batch_rows == 10
    # batch_size= goes before its own, and the others stay
    job = nngp.plan(kernel_fn, x, None, 2.0, batch_size=5)
    assert job.batch_rows == 5
    assert job.output_bytes <= 2000
    assert nngp.plan(kernel_fn, x, None, 2.0, batch_size=0).batch_rows == 95


def test_keyword_arguments_reach_f():
    def f(params, x, rng, width, mask, state):
        assert mask.shape == (20, 8)
        return jnp.tile(x * mask + jax.random.normal(rng), width) + state["mean"]

    kwargs = {"rng": jax.random.key(0), "width": 3, "mask": normal(1, 95, 8), "state": {"mean": jnp.ones(())}}
    job = nngp.plan(nngp.empirical_nngp_fn(f), normal(0, 95, 8), None, None, batch_size=20, **kwargs)
    assert job.row_bytes == 3 * 8 * 4


def test_what_the_call_would_refuse():
    x, kernel_fn = normal(0, 95, 8), nngp.empirical_nngp_fn(scaled, trace_axes=(1, -1))
    with pytest.raises(TypeError, match=r"^kernel_fn=.* is not a kernel function"):
        nngp.plan(scaled, x, None, 2.0)
    with pytest.raises(ValueError, match=r"^batch_size=-1 must be"):
        nngp.plan(kernel_fn, x, None, 2.0, batch_size=-1)
    with pytest.raises(
        ValueError, match=r"^trace_axes=\(1, -1\) names axis 1 of the output with shape \(95, 8\) twice"
    ):
        nngp.plan(kernel_fn, x, None, 2.0)
    f = nngp.empirical_nngp_fn(lambda params, x: x if x.shape[1] == 8 else x.mean(), trace_axes=())
    with pytest.raises(ValueError, match=r"^the output of f has shape \(\) for a batch of 10 examples of x2"):
        nngp.plan(f, x, x[:, :4], 2.0, batch_size=10)


def test_the_work_of_a_process_falls_with_their_number():
    """Tiles and operations as 1 / P, on a logarithmic scale, and rows of a symmetric kernel as 1 / √P or faster."""
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), 10, tile_size=10)
    x, counts = Refused(640, 8), [4, 16, 64]
    plans = [[nngp.plan(kernel_fn, x, None, 2.0, part=(i, n)) for i in range(n)] for n in counts]
    whole = nngp.plan(kernel_fn, x, None, 2.0)
    for of_count in plans:
        assert sum(plan.tile_count for plan in of_count) == whole.tile_count
        assert sum(plan.flops for plan in of_count) == whole.flops

    def slope(work):
        return np.polyfit(np.log(counts), np.log([max(map(work, of_count)) for of_count in plans]), 1)[0]

    assert slope(lambda plan: plan.tile_count) == pytest.approx(-1, abs=0.1)
    assert slope(lambda plan: plan.flops) == pytest.approx(-1, abs=0.1)
    assert slope(lambda plan: plan.forward_rows) < -0.4


def test_the_time_is_measured(capsys):
    x = normal(0, 64, 8)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), 16, tile_size=32)
    plans = [nngp.plan(kernel_fn, x, None, 2.0, part=part, measure=True) for part in (None, (0, 3))]
    for plan in plans:
        assert min(plan.seconds) > 0
    rows = rows_of(plans[1])
    assert rows["part"] == "0 of 3"
    assert re.fullmatch(r"\S+ s for the network, \S+ s for the contraction", rows["time at the measured rate"])
    assert "time at the measured rate" not in rows_of(nngp.plan(kernel_fn, x, None, 2.0))


# the table


def rows_of(job):
    """The table as ``{first column: second column}``."""
    lines = [line.strip("│").split("│") for line in str(job).splitlines() if line.startswith("│")]
    return {name.strip(): value.strip() for name, value in lines}


def test_the_table():
    x1 = Refused(12_345, 50)
    options = {"store_on_device": False, "memory_budget": 10**9, "tile_size": 100}
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), 250, **options)
    assert rows_of(nngp.plan(kernel_fn, x1, None, 2.0)) == {
        "examples": "12,345, x2 = x1",
        "rows through the network": "12,345",
        "rows in a forward pass": "250",
        "outputs held": "2.47 MB",
        "contraction": "7.68 GFLOP",  # 123 full tiles a side, and one of 45
        "tiles": "7,750 of 100 rows, 40 kB",
        "features": "2.47 MB",
        "kernels": "610 MB",
    }
    rows = rows_of(nngp.plan(kernel_fn, x1, Refused(678, 50), 2.0))
    assert rows["examples"] == "12,345 and 678"
    assert rows["rows through the network"] == "13,023"


def test_the_table_says_that_outputs_do_not_fit(capsys):
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(scaled), 10, memory_budget=2 * 30 * 32)
    job = nngp.plan(kernel_fn, normal(0, 90, 8), None, 2.0)
    assert rows_of(job)["rows through the network"] == "180 (outputs do not fit: some run again)"
    print(job)  # noqa: T201
    assert capsys.readouterr().out == f"{job}\n"
    assert re.match("kernel job *\n", str(job))
