"""What holds for every model of the zoo."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp
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


def sizes():
    """Each family is trained in one framework in `make test`; the large ones in that with the quickest compilation."""
    for i, family in enumerate(FAMILIES):
        chosen = "linen" if family in SLOW else FRAMEWORKS[i % len(FRAMEWORKS)]
        for framework in FRAMEWORKS:
            is_long = framework != chosen or family in ("resnet18", "transformer")  # char-lm is a transformer
            yield pytest.param(f"{framework}/{family}", marks=pytest.mark.exhaustive if is_long else pytest.mark.once)


@pytest.mark.parametrize("name", [*sizes()])
def test_it_trains_and_its_kernels_are_finite_and_psd(name):
    model = small(name)
    data = data_of(model.spec)
    training = Training(model, data, model.optimizer("adam", 1e-2), batch_size=24)
    now = training.start(seed=0)
    kernel_fn = nngp.empirical_nngp_fn(model.f.layers(), trace_axes=nngp.all_but_batch)
    x = data.test_x[:12]
    for layer, kernel in jax.jit(kernel_fn)(x, None, now.params, state=now.state).items():
        eigenvalues = np.linalg.eigvalsh(np.asarray(kernel, np.float64))
        assert np.isfinite(kernel).all(), layer
        assert eigenvalues[-1] > 0, layer
        assert eigenvalues[0] >= -1e-5 * eigenvalues[-1], layer
    losses = []
    for step in range(1, 13):
        now, loss = training.step(now, step, seed=0)
        losses.append(float(loss))
    assert np.mean(losses[-2:]) < 0.9 * losses[0]
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


@pytest.mark.every(2)
@pytest.mark.parametrize("name", zoo.list(framework="nnx") + zoo.list(framework="haiku"))
def test_frameworks_have_the_same_layers(name):
    """The layers that own parameters have the same names and shapes; hk.nets and cells have names of their own."""
    family = name.partition("/")[2]
    if name in ("haiku/mlp", "haiku/resnet18") or family in ("lstm", "gru"):
        return
    model, other = small(name), small(f"linen/{family}")
    shapes, others = (
        {layer: y.shape for layer, y in m.f.layer_shapes(m.shapes[0], m.inputs(3), state=m.shapes[1]).items()}
        for m in (model, other)
    )
    assert shapes == others


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_that_of_the_layers_and_not_of_the_parameters(framework, dtype):
    for family in ("mlp", "wide-resnet"):
        model = small(f"{framework}/{family}", dtype=dtype)
        params, state = model.shapes
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
        layers = model.f.layer_shapes(params, model.inputs(3), state=state)
        assert {str(y.dtype) for y in layers.values()} == {dtype}
        y, new = jax.eval_shape(lambda *a, m=model: m.forward(*a, None), params, state, model.inputs(3))
        assert str(y.dtype) == dtype
        assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, state)


# The code for Linen is that for NNX.
@pytest.mark.parametrize("framework", ["nnx", "haiku"])
def test_running_statistics_start_as_those_of_a_batch(framework):
    """So the model in evaluation is the model in training on that batch."""
    model = small(f"{framework}/wide-resnet")
    x = 3 + 2 * example(model.spec, 16)
    params, state = model.init(jax.random.key(0), x)
    fresh = model.init(jax.random.key(0))[1]

    @jax.jit
    def run(state, fresh):
        evaluated = (model.f(params, x, state=s) for s in (state, fresh))
        return model.forward(params, state, x, None)[0], *evaluated

    trained, evaluated, before = run(state, fresh)
    np.testing.assert_allclose(evaluated, trained, rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(before - trained).max()) > 0.1


def test_the_language_model_does_not_look_ahead():
    model, x = small("linen/char-lm"), example(SMALL["char-lm"])
    changed = x.copy()
    changed[:, -1] = (x[:, -1] + 1) % 11
    params, _ = model.init(jax.random.key(0))
    a, b = map(jax.jit(lambda x: model.f(params, x)), (x, changed))
    np.testing.assert_array_equal(a[:, :-1], b[:, :-1])
    assert (a[:, -1] != b[:, -1]).any()
