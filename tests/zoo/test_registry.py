"""Models by name: the zoo's, somebody's package, somebody's file."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import zoo
from zoo.choices import CHOICES
from zoo.families import FAMILIES, FRAMEWORKS
from zoo.models.parts import ACTIVATIONS
from zoo.optimizers import DIRECTIONS

FILE = """
import equinox
import flax.linen as nn
import haiku as hk
import jax
from flax import nnx
import nngp_plugins as nngp


def linen(classes, width=8):
    return nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(width), nn.relu, nn.Dense(classes)])


class Net(nnx.Module):
    def __init__(self, shape, classes, width=8, *, rngs):
        self.dense = nnx.Linear(shape[-1], width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.dense(x))))


def haiku(classes, width=8):
    def net(x, is_training):
        x = hk.Linear(width)(x)
        if is_training:
            x = hk.dropout(hk.next_rng_key(), 0.5, x)
        return hk.Linear(classes)(jax.nn.relu(x))

    return hk.transform(net)


def function(shape, classes, width=8):
    def init(rng, x):
        a, b = jax.random.split(rng)
        return {"a": jax.random.normal(a, (shape[-1], width)), "b": jax.random.normal(b, (width, classes))}

    return nngp.from_callable(lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"], init)


def needs(secret):
    return secret


def live():
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))
"""


def test_list():
    names = zoo.list()
    assert {name for name in names if name.split("/")[0] in FRAMEWORKS} == {
        f"{framework}/{family}" for framework in FRAMEWORKS for family in FAMILIES
    }
    assert zoo.list(framework="haiku", family="vit") == ["haiku/vit"]
    with pytest.raises(ValueError, match="unknown framework 'torch'; did you mean"):
        zoo.list(framework="torch")
    with pytest.raises(
        ValueError, match="unknown family 'resnet'; did you mean 'resnet18' or 'lenet' or 'wide-resnet'"
    ):
        zoo.list(family="resnet")


def test_parameters_within_a_compiled_function():
    """A compiled function may draw the key, or close over one."""
    model, key = zoo.get("haiku/mlp", width=4, depth=1), jax.random.key(3)
    expected = jax.tree.leaves(model.init(key)[0])
    for init in (model.init, lambda _: model.init(key), lambda key: jax.vmap(model.init)(key[None])):
        found = jax.tree.leaves(jax.jit(init)(key)[0])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=1e-6)


def test_what_is_known_of_a_model():
    model = zoo.get("haiku/resnet18", width=4)
    assert (model.framework, model.family, model.spec.shape) == ("haiku", "resnet18", (32, 32, 3))
    assert model.knobs["width"] == 4
    assert model.knobs["parametrisation"] == "standard"
    assert "Yang" in model.limit
    assert all(family.limit for family in FAMILIES.values())


@pytest.mark.parametrize(
    ("name", "spec", "knobs", "message"),
    [
        ("haiku/mpl", None, {}, "unknown model 'haiku/mpl'; did you mean 'haiku/mlp'"),
        (
            "linen/cnn",
            zoo.Spec((4,)),
            {},
            r"linen/cnn takes sequence or image inputs, but the data are vector float32 \(4",
        ),
        ("linen/mlp", None, {"widht": 3}, "linen/mlp has no knob 'widht'; its knobs are width, depth, activation"),
        ("linen/mlp", None, {"width": 0}, "width=0 must be positive"),
        ("linen/mlp", None, {"activation": "rleu"}, "unknown activation 'rleu'; did you mean 'relu'"),
        ("linen/mlp", None, {"parametrisation": "mu"}, "unknown parametrisation 'mu'; did you mean 'mup'"),
        ("linen/mlp", None, {"init_scale": float("nan")}, "init_scale=nan must be a positive number"),
        ("linen/vit", zoo.Spec((8, 8, 1)), {"width": 20}, "width=20 must be a multiple of 16"),
        ("nnx/vit", zoo.Spec((8, 8, 1)), {"patch": 3}, "patch=3 does not divide images of 8×8"),
        ("haiku/wide-resnet", None, {"norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        ("nowhere.py:f", None, {}, "there is no file 'nowhere.py'"),
    ],
)
def test_bad_input(name, spec, knobs, message):
    with pytest.raises(ValueError, match=message):
        zoo.get(name, spec, **knobs)


@pytest.mark.parametrize("function", ["linen", "Net", "haiku", "function"])
def test_anybodys_file(tmp_path, function):
    """It is measured without dropout, trained with it, and has knobs and parametrisations."""
    path = tmp_path / f"own_{function}.py"
    path.write_text(FILE)
    model = zoo.get(f"{path}:{function}", zoo.Spec((5,), 3), width=32, parametrisation="mup", base_width=8)
    framework = {"Net": "nnx", "function": "other"}.get(function, function)
    assert (model.framework, model.knobs["width"]) == (framework, 32)
    assert model.parameters == (5 * 32 + 32 * 3 if function == "function" else 6 * 32 + 33 * 3)
    params, state = model.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    y = np.asarray(jax.jit(lambda params: model.f(params, x, state=state))(params))
    forward = jax.jit(lambda params, rng: model.forward(params, state, x, rng)[0])
    a, b = (np.asarray(forward(params, jax.random.key(i))) for i in (1, 2))
    has_dropout = function in ("Net", "haiku")
    assert (a != b).any() == has_dropout
    if not has_dropout:
        np.testing.assert_allclose(a, y, rtol=1e-5)
    heads = [scale for scale in model.scales if scale.init != 1]
    assert [(s.init, s.adam) for s in heads] == [(0.5, 0.25)]
    assert np.isfinite(y).all()


def test_files_that_are_none(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(FILE)
    for function, message in [
        (":linne", "did you mean 'linen'"),
        ("", "names no function; write"),
        (":needs", "needs secret, which nobody gives"),
    ]:
        with pytest.raises(ValueError, match=message):
            zoo.get(f"{path}{function}")
    with pytest.raises(TypeError, match="a live NNX module cannot start anew"):
        zoo.get(f"{path}:live", zoo.Spec((2,), 2))


@pytest.mark.once
def test_an_installed_package_plugs_in(tmp_path):
    """A package that lies where an installer unpacks its wheel, in a process of its own."""
    info = tmp_path / "tiny_zoo-1.0.dist-info"
    info.mkdir()
    (tmp_path / "tiny_zoo.py").write_text(FILE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-zoo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nngp_plugins.zoo]\ntiny/net = tiny_zoo:linen\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import zoo\n"
        "model = zoo.get('tiny/net', zoo.Spec((8, 8, 1), 10), width=16)\n"
        "print(zoo.list(framework='tiny'), model.framework, model.family, model.parameters)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == f"['tiny/net'] linen net {65 * 16 + 17 * 10}\n", done.stderr


def test_choices_are_those_of_the_code():
    assert CHOICES["activation"] == tuple(ACTIVATIONS)
    assert CHOICES["optimizer"] == tuple(DIRECTIONS)
