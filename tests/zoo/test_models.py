"""What holds for every model of the zoo."""

import importlib
import re

import jax
import numpy as np
import pytest

import zoo
from zoo.data import Dataset
from zoo.families import FAMILIES, FRAMEWORKS, IMAGE, SEQUENCE, TOKENS
from zoo.training import Training

from .tables import SMALL
from .test_parity import SMALL_WIDTHS, example

every_model = pytest.mark.parametrize("name", zoo.list())
SLOW = ("resnet18", "vit", "wide-resnet", "char-lm", "transformer", "mlp-mixer")


def small(name, **knobs):
    family = name.partition("/")[2]
    return zoo.get(name, SMALL[family], width=SMALL_WIDTHS.get(family, 16), **knobs)


def data_of(spec, n=48):
    x, y = example(spec, n), (np.arange(n) % spec.classes).astype(np.int32)
    if not spec.vocabulary:
        x += 2 * y.reshape(n, *(1 for _ in spec.shape))  # so that there is something to learn
    else:
        x[:] = y[:, None]
    ids = np.arange(n).astype(str)
    return Dataset("small", x, y, x, y, spec.classes, ids, ids, spec.vocabulary)


BLOCKS = ("vit", "mlp-mixer", "transformer", "char-lm")
# In other frameworks they are the same functions, as test_parity.py shows, but for how running statistics are updated
# and for cells that are the frameworks' own.
EVERYWHERE = ("mlp", "wide-resnet", "lstm", "gru")


def sizes():
    """Each family is trained in one framework in `make test`; the large ones in that with the quickest compilation."""
    for i, family in enumerate(FAMILIES):
        chosen = "linen" if family in SLOW else FRAMEWORKS[i % len(FRAMEWORKS)]
        chosen = "haiku" if family == "resnet18" else chosen  # hk.nets.ResNet; the others are made as wide-resnet is
        for framework in FRAMEWORKS if family in EVERYWHERE else (chosen,):
            # char-lm is a transformer, of blocks as in vit
            is_long = framework != chosen or family in ("resnet18", "wide-resnet", "transformer", "vit")
            yield pytest.param(f"{framework}/{family}", marks=pytest.mark.exhaustive if is_long else pytest.mark.once)


@pytest.mark.parametrize("name", [*sizes()])
def test_it_trains(name):
    family = name.partition("/")[2]
    model = small(name, **({"depth": 1} if family in BLOCKS else {}))
    data = data_of(model.spec)
    training = Training(model, data, model.optimizer("adam", 1e-2), batch_size=24)
    now = training.start(seed=0)
    losses = []
    for step in range(1, 13):
        now, loss = training.step(now, step, seed=0)
        losses.append(float(loss))
    assert np.mean(losses[-2:]) < 0.9 * losses[0]
    if family in ("mlp", "char-lm", "autoencoder"):  # one for each task
        assert np.isfinite(training.score(now))


@pytest.mark.every(3)
@every_model
def test_its_docstring_counts_its_parameters(name):
    framework, _, family = name.partition("/")
    about = FAMILIES[family]
    builder = getattr(importlib.import_module(f"zoo.models.{framework}.{about.file}"), about.builder)
    (said,) = re.findall(r"([\d,]+) parameters", builder.__doc__)
    spec = {IMAGE: zoo.Spec((8, 8, 1)), SEQUENCE: SEQUENCE, TOKENS: TOKENS}[about.example]
    assert zoo.get(name, spec).parameters == int(said.replace(",", ""))


@pytest.mark.parametrize(
    ("framework", "dtype"), [*((framework, "bfloat16") for framework in FRAMEWORKS), ("linen", "float16")]
)
def test_dtype_is_that_of_the_layers_and_not_of_the_parameters(framework, dtype):
    model = small(f"{framework}/wide-resnet", dtype=dtype)
    params, state = model.shapes
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    layers = model.f.layer_shapes(params, model.inputs(3), state=state)
    assert {str(y.dtype) for y in layers.values()} == {dtype}
    y, new = jax.eval_shape(lambda *a: model.forward(*a, None), params, state, model.inputs(3))
    assert str(y.dtype) == dtype
    assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, state)


# The code for Linen is that for NNX. Without blocks, the model still has one batch normalisation.
@pytest.mark.parametrize("depth", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("framework", ["nnx", "haiku"])
def test_running_statistics_start_as_those_of_a_batch(framework, depth):
    """So the model in evaluation is the model in training on that batch."""
    model = small(f"{framework}/wide-resnet", depth=depth)
    x = 3 + 2 * example(model.spec, 16)
    params, state = model.init(jax.random.key(0), x)
    fresh = model.init(jax.random.key(0))[1]

    evaluate = jax.jit(lambda state: model.f(params, x, state=state))
    trained = jax.jit(model.forward)(params, state, x, None)[0]
    evaluated, before = evaluate(state), evaluate(fresh)
    np.testing.assert_allclose(evaluated, trained, rtol=1e-3, atol=1e-3)
    assert np.abs(np.subtract(before, trained)).max() > 0.1


def test_the_language_model_does_not_look_ahead():
    model, x = small("linen/char-lm", depth=1), example(SMALL["char-lm"])
    changed = x.copy()
    changed[:, -1] = (x[:, -1] + 1) % 11
    params, _ = model.init(jax.random.key(0))
    a, b = map(jax.jit(lambda x: model.f(params, x)), (x, changed))
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_array_equal(a[:, :-1], b[:, :-1])
    assert (a[:, -1] != b[:, -1]).any()
