"""Coordinate checks, against numbers made in NumPy and against a layer whose rate does not fall with the width."""

import json

import jax
import numpy as np
import pytest

import zoo
from zoo.coordinates import QUANTITIES, Layer, Slope, slope
from zoo.training import Training

pytestmark = pytest.mark.once

# A matrix with the name of a table counts as one, and so its rate is that of an input weight at every width.
MODELS = """
import flax.linen as nn


class Net(nn.Module):
    width: int
    classes: int
    name_of_matrix: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="first")(x.reshape(len(x), -1)))
        x = Matrix(self.width, self.name_of_matrix, name="second")(x)
        return nn.Dense(self.classes, name="head")(nn.relu(x))


class Matrix(nn.Module):
    width: int
    name_of_matrix: str

    @nn.compact
    def __call__(self, x):
        return x @ self.param(self.name_of_matrix, nn.initializers.lecun_normal(), (self.width, self.width))


def right(classes, width=32):
    return Net(width, classes, "kernel")


def wrong(classes, width=32):
    return Net(width, classes, "embedding")
"""
OPTIONS = ("--parametrisation", "mup", "--width", "32,512", "--seeds", 2, "--probe", 40)


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)


def test_a_layer_whose_rate_is_left_unscaled_is_found(models, here):
    """The rest of the network is not blamed, and the table says why."""
    command = here("coordcheck", "models.py:wrong", *OPTIONS)
    assert command.returncode == 1
    assert "the parametrisation is not correct: see second" in command.stderr
    rows = {line.split("│")[1].strip(): line for line in command.stdout.splitlines() if line.startswith("│")}
    assert list(rows) == ["first", "second", "head"]
    assert "grows" in rows["second"]
    assert "keeps its size" in rows["first"]


def test_a_correct_parametrisation_passes_and_its_numbers_are_right(models, here, tmp_path):
    command = here("coordcheck", "models.py:right", *OPTIONS, "--json", "--out", "new/picture.html")
    assert command.returncode == 0, command.stderr
    result = json.loads(command.stdout)
    assert (result["correct"], result["widths"], result["seeds"]) == (True, [32, 512], 2)
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert [layer["output"] for layer in layers.values()] == [False, False, True]
    assert all(abs(layers[name]["slopes"]["sqrt_scale"]["value"]) < 0.1 for name in ("first", "second"))
    assert '"name":"second"' in (tmp_path / "new" / "picture.html").read_text()
    data = zoo.load("digits")
    model = zoo.get("models.py:right", data.spec, width=32, parametrisation="mup")
    training = Training(model, data, model.optimizer("adam", 3e-3))
    x = data.probe(40)[0]
    first = now = training.start(1)
    for step in range(1, 5):
        now, _ = training.step(now, step, 1)
    second = jax.jit(lambda at: model.f.layers("second")(at.params, x, state=at.state)["second"])
    old, new = (np.asarray(second(at), np.float64) for at in (first, now))
    kernel, before = new @ new.T / 32, old @ old.T / 32
    expected = {
        "sqrt_scale": np.sqrt((new**2).mean()),
        "kernel_size": np.sqrt((kernel**2).sum()) / 40,
        "kernel_change": np.sqrt(((kernel - before) ** 2).sum()) / 40,
        "feature_change": np.sqrt(((new - old) ** 2).mean()),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(layers["second"]["values"][name][0][1], value, rtol=2e-4)


def test_slopes_are_exponents():
    widths, seeds = np.array([8, 64, 512]), np.array([1.0, 3.0, 5.0])
    exponents = np.array([0.5, 0.6, 0.7])
    found = slope(widths, seeds * widths[:, None] ** exponents)
    np.testing.assert_allclose([found.value, found.error], [0.6, 0.1 / np.sqrt(3)], rtol=1e-6)
    assert str(slope(widths, np.zeros((3, 2)))) == "–"


@pytest.mark.parametrize(
    ("size", "change", "hidden", "output"),
    [
        (0.1, 0.2, "keeps its size", "keeps its size"),
        (0.2, 0.0, "grows", "grows"),
        (0.0, 0.3, "grows", "grows"),
        (-0.2, 0.0, "shrinks", "keeps its size"),
        (0.0, -0.5, "stops learning", "keeps its size"),
        (0.0, float("nan"), "keeps its size", "keeps its size"),
    ],
)
def test_verdicts(size, change, hidden, output):
    slopes = {key: Slope(0.0, 0.0) for key in QUANTITIES}
    slopes |= {"sqrt_scale": Slope(size, 0.0), "feature_change": Slope(change, 0.0)}
    assert [Layer("a", is_output, {}, slopes).verdict for is_output in (False, True)] == [hidden, output]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linen/mpl",), "MODEL: unknown model 'linen/mpl'; did you mean 'linen/mlp'"),
        (("linen/mlp", "--width", "64"), "--width 64: give several widths, such as --width 64,256,1024."),
        (("linen/mlp", "--width", "64,a"), "--width 64,a: write it as integers that are separated by commas."),
        (("linen/mlp", "--width", "64,64"), "--width 64,64: it has one value twice."),
        (("linen/mlp", "--width", "64,-1"), "--width 64,-1: width=-1 must be positive."),
        (("linen/mlp", "--lr", "nan"), "--lr nan: it must be a positive number."),
        (("linen/mlp", "--out", "a.png"), "--out a.png: it must end in .html."),
        (("models.py:fixed",), "MODEL: models.py:fixed has no knob 'width'."),
    ],
)
def test_refused(models, here, tmp_path, arguments, message):
    with (tmp_path / "models.py").open("a") as file:
        file.write("\n\ndef fixed(classes):\n    return Net(8, classes, 'kernel')\n")
    command = here("coordcheck", *arguments)
    assert (command.returncode, command.stderr.count("\n"), command.stdout) == (2, 1, "")
    assert command.stderr.startswith(f"nngp-zoo: {message}")


def test_a_network_that_diverges_is_named(here, tmp_path):
    options = ("--data", "moons", "--depth", 1, "--width", "8,16", "--seeds", 2, "--optimizer", "sgd", "--probe", 20)
    command = here("coordcheck", "linen/mlp", *options, "--lr", 1e38)
    assert command.returncode == 3
    assert "diverged: layer dense_0 is not finite at width 8; try a smaller --lr." in command.stderr
