"""How many programs a kernel compiles and starts, which costs more on an accelerator than the kernel itself."""

from collections import Counter
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_close, gram, normal

import nngp_plugins as nngp

# Forward passes in batches of two sizes differ by what TF32 rounds, where that is the default.
pytestmark = [pytest.mark.once, pytest.mark.usefixtures("full_precision")]

COMPILED, TRACED = "/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_trace_duration"


@pytest.fixture(scope="module")
def counted():
    """Counts what JAX traces and compiles."""
    counts = Counter()

    def count(name, seconds, **kwargs):
        counts[name] += 1

    @contextmanager
    def during():
        counts.clear()
        yield counts

    jax.monitoring.register_event_duration_secs_listener(count)
    yield during
    jax.monitoring.unregister_event_duration_listener(count)


def network(layers):
    """Layers of several widths, so that no two of them share a program."""
    weights = [normal(i, 6, 4 + i) / 6 for i in range(layers)]

    def f(params, x, tanh=jnp.tanh):
        y, outputs = params * x, {}
        for i, weight in enumerate(weights):
            outputs[f"layer {i}"] = tanh(y @ weight)
            y = y + outputs[f"layer {i}"][:, :1]
        return outputs

    return f


PLACES = {"on the device": {}, "on the host": {"store_on_device": False}}


def programs(counted, layers, n, on_device=True, batch_size=50, **options):
    """The programs that the first kernel of a network compiles, and those that the second one traces or compiles."""
    f, x = network(layers), normal(0, n, 6)
    x = jnp.asarray(x) if on_device else x
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), batch_size, **options)
    with counted() as counts:
        first = jax.block_until_ready(kernel_fn(x, None, 2.0))
        compiled = counts[COMPILED]
    with counted() as counts:
        kernel_fn(x, None, 2.0)
        again = counts[COMPILED] + counts[TRACED]
    name = f"layer {layers - 1}"
    assert_close(first[name], gram(f(2.0, np.asarray(x, np.float64), np.tanh)[name]))
    return compiled, again


@pytest.mark.parametrize("place", PLACES)
def test_as_many_programs_for_any_number_of_layers_and_of_examples(counted, place):
    few, again = programs(counted, 2, 210, **PLACES[place])
    assert few <= 9
    assert again == 0
    assert programs(counted, 5, 210, **PLACES[place])[0] <= few
    # whole, ragged and mirrored tiles; with more than one row of tiles there are those apart from the diagonal
    assert programs(counted, 2, 1450, **PLACES[place])[0] <= few + 3


def test_given_outputs_are_one_program(counted):
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(network(3)))
    outputs = {name: jnp.asarray(normal(i, 130, 7 + i)) for i, name in enumerate("abc")}
    with counted() as counts:
        kernel_fn.contract(outputs)
        assert counts[COMPILED] == 1
    with counted() as counts:
        kernel_fn.contract(outputs)
        assert counts[COMPILED] == counts[TRACED] == 0


def dispatches(layers, tmp_path):
    """How many programs JAX starts for a kernel, by its own profile."""
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(network(layers)), 50)
    x = normal(0, 210, 6)
    jax.block_until_ready(kernel_fn(x, None, 2.0))
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(kernel_fn(x, None, 2.0))
    (path,) = tmp_path.rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
    names = [event.name for plane in profile.planes for line in plane.lines for event in line.events]
    return sum("ExecuteHelper" in name for name in names)


def test_a_start_for_each_batch_and_block_whatever_the_number_of_layers(tmp_path):
    few, many = (dispatches(layers, tmp_path / str(layers)) for layers in (1, 4))
    # five batches run and are written, into one array a layer that one program makes; one program contracts
    assert few == many == 2 * 5 + 2


# the check is remembered, unless it could not tell


def centered(params, x):
    return params * (x - x.mean(axis=0))


def test_zero_outputs_tell_nothing_of_other_parameters():
    kernel_fn, x = nngp.batch(nngp.empirical_nngp_fn(centered), 4), normal(0, 12, 3)
    assert not np.any(kernel_fn(x, None, 0.0))
    with pytest.raises(ValueError, match="depends on the other examples in the batch"):
        kernel_fn(x, None, 1.0)


# groups of outputs that do not fit together

WIDTHS = (4, 5, 6, 7, 8, 15)


class Layers:
    """A network that counts the rows of each run, by the layer."""

    def __init__(self, widths=WIDTHS):
        self.runs, self.widths = Counter(), widths

    def __call__(self, params, x):
        outputs = self.outputs(x)
        for i in self.widths:
            jax.debug.callback(lambda y, i=i: self.runs.update({i: len(y)}), outputs[f"layer {i:02}"])
        return outputs

    def outputs(self, x, tanh=jnp.tanh):
        outputs = {}
        for i in self.widths:
            outputs[f"layer {i:02}"] = x = tanh(x @ normal(i, x.shape[1], i))
        return outputs


X40 = normal(0, 40, 3)


@pytest.mark.parametrize("place", PLACES)
def test_groups_of_layers_run_fewer_rows_than_blocks_of_examples(place):
    f, x = Layers(), X40
    kernel_fn = nngp.empirical_nngp_fn(f)
    options = {"check": False, "memory_budget": 4 * 15 * 40, **PLACES[place]}
    batched = nngp.batch(kernel_fn, 2, **options)
    plan = nngp.plan(batched, x, None, None)
    # widths 4 + 5 + 6, 7 + 8 and 15
    assert [len(group.leaves) for group in plan.groups] == [3, 2, 1]
    assert plan.output_bytes <= options["memory_budget"]
    assert "groups of outputs, held in turn" in str(plan)
    kernels = jax.block_until_ready(batched(x, None, None))
    jax.effects_barrier()
    assert f.runs[WIDTHS[0]] == plan.forward_rows == 3 * 40
    for name, y in f.outputs(x.astype(np.float64), np.tanh).items():
        assert_close(kernels[name], gram(y))
    # With few columns, blocks of rows are cheaper: the columns alone run again.
    assert len(nngp.plan(batched, x, x[:16], None).groups) == 1


def test_a_layer_that_does_not_fit_alone_is_in_blocks():
    f, x = Layers(), X40
    batched = nngp.batch(nngp.empirical_nngp_fn(f), 2, check=False, memory_budget=4 * 8 * 40)
    plan = nngp.plan(batched, x, None, None)
    assert [(len(group.leaves), group.block_rows) for group in plan.groups] == [(1, 40)] * 5 + [(1, 6)]
    kernels = batched(x, None, None)
    for name, y in f.outputs(x.astype(np.float64), np.tanh).items():
        assert_close(kernels[name], gram(y))


def test_layers_that_meet_each_other_are_held_together():
    f, x = Layers((4, 5, 8)), X40
    kernel_fn = nngp.empirical_nngp_fn(f, (), cross_terms=True)
    budget = 4 * 9 * 40
    assert len(nngp.plan(nngp.batch(nngp.empirical_nngp_fn(f), 2, memory_budget=budget), x, None, None).groups) == 2
    batched = nngp.batch(kernel_fn, 2, check=False, memory_budget=budget)
    assert len(nngp.plan(batched, x, None, None).groups) == 1
    y = f.outputs(x.astype(np.float64), np.tanh)
    expected = np.einsum("ni,mj->nmij", y["layer 04"], y["layer 08"])
    assert_close(batched(x, None, None)["layer 04"]["layer 08"], expected)


class LiveBytes:
    """A network that notes how many bytes of outputs are alive while it runs."""

    def __init__(self):
        self.most = 0

    def __call__(self, params, x):
        jax.debug.callback(self._ran, x[0, 0])
        return {f"layer {i}": x * i for i in range(1, 5)}

    def _ran(self, value):
        alive = [array.nbytes for array in jax.live_arrays() if array.shape[1:] == (1024,)]
        self.most = max(self.most, sum(alive))


@pytest.mark.parametrize("cross_terms", [False, True], ids=["groups", "blocks"])
def test_outputs_are_let_go_of_before_others_are_held(cross_terms):
    f, x = LiveBytes(), np.ones((600, 1024), np.float32)
    kernel_fn = nngp.empirical_nngp_fn(f, cross_terms=cross_terms)
    kernel_fn = nngp.batch(kernel_fn, 20, check=False, memory_budget=2 * x.nbytes)
    plan = nngp.plan(kernel_fn, x, None, None)
    assert (len(plan.groups), plan.block_rows) == ((1, 140) if cross_terms else (2, 600))
    jax.block_until_ready(kernel_fn(x, None, None))
    jax.effects_barrier()
    # besides: a few batches on their way, with all outputs
    assert plan.output_bytes <= 2 * x.nbytes
    assert f.most <= plan.output_bytes + 4 * 20 * 5 * 4096
