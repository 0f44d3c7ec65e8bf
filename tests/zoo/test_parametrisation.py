"""Parametrisations, against their definitions and against mathematics that does not know of them."""

import jax
import numpy as np
import optax
import pytest

import zoo
from zoo.families import FRAMEWORKS
from zoo.optimizers import DIRECTIONS, WEIGHT_DECAY, optimizer, schedule
from zoo.parametrisation import Scale

from .tables import SMALL
from .test_parity import example

pytestmark = pytest.mark.once

SPEC = zoo.Spec((5,), 3)


def by_name(model, values):
    """The values of the leaves by their paths, without what frameworks add."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(model.shapes[0])]
    names = {"linear_0": "dense_0", "linear_1": "dense_1", "linear_2": "head"}
    found = {}
    for path, value in zip(paths, values, strict=True):
        layer = next(name for name in (*names, "dense_0", "dense_1", "head") if name in path)
        found[names.get(layer, layer), "b" if "b'" in path or "bias" in path else "w"] = value
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_mup_has_the_factors_of_its_table(framework):
    """Table 3 of Tensor Programs V, for a width that is 4 times the base width; biases count as input weights."""
    model = zoo.get(f"{framework}/mlp", SPEC, width=64, base_width=16, parametrisation="mup")
    vector = Scale(init=1, forward=1, adam=1, sgd=4)
    assert by_name(model, model.scales) == {
        ("dense_0", "w"): vector,
        ("dense_0", "b"): vector,
        ("dense_1", "w"): Scale(init=1, forward=1, adam=1 / 4, sgd=1),
        ("dense_1", "b"): vector,
        ("head", "w"): Scale(init=1 / 2, forward=1, adam=1 / 4, sgd=1 / 4),
        ("head", "b"): Scale(),
    }


@pytest.mark.every(3)
@pytest.mark.parametrize("family", ["mlp", "cnn", "lenet", "vit", "lstm", "gru", "transformer", "wide-resnet"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_at_the_base_width_mup_is_standard(framework, family):
    name, spec = f"{framework}/{family}", SMALL[family]
    model = zoo.get(name, spec, width=16, base_width=16, parametrisation="mup")
    assert set(model.scales) == {Scale()}
    wide = zoo.get(name, spec, width=64, base_width=16, parametrisation="mup")
    hidden = [s for s in wide.scales if s.adam == 1 / 4 and s.init == 1]
    assert hidden
    assert [s for s in wide.scales if s.init == 1 / 2] == [Scale(init=1 / 2, adam=1 / 4, sgd=1 / 4)]  # the head


@pytest.mark.parametrize("name", ["linen/mlp", "nnx/cnn", "haiku/gru"])
def test_ntk_is_the_same_function_and_its_weights_are_of_order_one(name):
    spec = SMALL[name.partition("/")[2]]
    plain, ntk = (zoo.get(name, spec, width=64, parametrisation=p) for p in ("standard", "ntk"))
    (a, _), (b, state) = (model.init(jax.random.key(0)) for model in (plain, ntk))
    x = example(spec)
    ours, theirs = jax.jit(lambda a, b: (ntk.f(b, x, state=state), plain.f(a, x, state=state)))(a, b)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert any(s.forward != 1 for s in ntk.scales)
    for scale, leaf, before in zip(ntk.scales, jax.tree.leaves(b), jax.tree.leaves(a), strict=True):
        if scale.forward != 1:  # hk.LSTM draws both halves of its matrix with the fan-in of the whole
            assert 0.5 < np.std(leaf) < 1.2
            np.testing.assert_allclose(scale.forward * np.asarray(leaf), before, rtol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_layers_in_a_scan_have_the_same_factors(framework):
    """The axis of the layers is not a fan-in."""
    knobs = {"width": 32, "depth": 2, "parametrisation": "ntk"}
    spec = SMALL["transformer"]
    one, scan = (zoo.get(f"{framework}/transformer", spec, scan_layers=scan, **knobs) for scan in (False, True))
    assert set(one.scales) == set(scan.scales)


def test_init_scale_scales_weights_and_not_biases():
    model = zoo.get("linen/mlp", SPEC, width=8, init_scale=0.5)
    assert {name: scale.init for name, scale in by_name(model, model.scales).items()} == {
        (layer, kind): {"w": 0.5, "b": 1}[kind] for layer in ("dense_0", "dense_1", "head") for kind in "wb"
    }


@pytest.mark.parametrize("name", [*DIRECTIONS])
def test_each_parameter_learns_at_its_rate(name):
    """With factors of 1 it is optax's own optimizer, and a factor of 1/2 is half the learning rate."""
    theirs = {
        "adam": optax.adam(0.1),
        "adamw": optax.adamw(0.1, weight_decay=WEIGHT_DECAY),
        "lion": optax.lion(0.1, weight_decay=0),
        "sgd": optax.sgd(0.1),
        "momentum": optax.sgd(0.1, 0.9),
    }[name]
    params = {"a": np.arange(1.0, 4, dtype=np.float32), "b": np.ones(2, np.float32)}
    grads = {name: np.sin(value) for name, value in params.items()}
    ours = optimizer(name, 0.1, [Scale(), Scale(adam=0.5, sgd=0.5)])

    @jax.jit
    def third_updates(grads, params):
        updates, states = [None, None], [ours.init(params), theirs.init(params)]
        for _ in range(3):
            for i, of in enumerate((ours, theirs)):
                updates[i], states[i] = of.update(grads, states[i], params)
        return updates

    mine, expected = jax.device_get(third_updates(grads, params))
    np.testing.assert_allclose(mine["a"], expected["a"], rtol=1e-6)
    decay = -0.1 * WEIGHT_DECAY * params["b"] if name == "adamw" else 0  # decay does not depend on the width
    np.testing.assert_allclose(mine["b"] - decay, 0.5 * (expected["b"] - decay), rtol=1e-5)


def test_schedules_start_and_end_where_they_say():
    ends = {name: schedule(name, 0.5, 100) for name in ("cosine", "linear", "warmup-cosine")}
    steps = np.array([0, 10, 100])
    rates = {name: np.round(jax.jit(f)(steps), 6).tolist() for name, f in ends.items()}
    assert [rate[0] for rate in rates.values()] == [0.5, 0.5, 0.0]
    assert [rate[2] for rate in rates.values()] == [0.0, 0.0, 0.0]
    assert rates["warmup-cosine"][1] == 0.5
    assert schedule("constant", 0.5, 100) == 0.5
