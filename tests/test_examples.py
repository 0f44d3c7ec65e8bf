import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, **arguments):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**arguments)


def test_every_example_is_tested_and_short():
    scripts = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert scripts.pop("lazy_and_rich") < 140  # an experiment, with its picture
    assert set(scripts) == {"any_function", "flax_training_callback", "haiku_experiment", "nnx_training_callback"}
    assert max(scripts.values()) < 60


def test_any_function(capsys):
    kernels, error = run("any_function")
    # largest of 21 entries whose standard deviation is at most sqrt(5/4) / sqrt(width), that of a variance
    assert error < 5 * np.sqrt(5 / 4 / 20_000)
    assert kernels["out"].shape == (6, 6)
    assert "arc-cosine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["flax_training_callback", pytest.param("nnx_training_callback", marks=pytest.mark.exhaustive)]
)
def test_training_callbacks_learn_and_track(name, capsys):
    history = run(name, steps=100)
    assert history.scalar("loss")[-1] < 0.2 * history.scalar("loss")[0]
    assert len(history.layers) == 3
    cka = history.metric("cka")
    np.testing.assert_allclose(cka[0], 1, atol=1e-5)
    assert (np.diff(cka[-1]) < 0).all()  # deeper layers move further
    assert "effective_rank" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_haiku_experiment(capsys):
    histories = run("haiku_experiment", learning_rates=(0.003, 0.3))
    distance = [1 - history.metric("cka")[-1, 0] for history in histories.values()]
    assert (np.diff(distance) > 0).all()  # a larger learning rate moves the kernel further
    assert capsys.readouterr().out.count("learning rate") == len(histories)


@pytest.mark.exhaustive
def test_lazy_and_rich(tmp_path, capsys):
    path = tmp_path / "lazy_and_rich.html"
    lazy, rich = run("lazy_and_rich", widths=(32, 512), rates=(0.002, 0.032), seeds=2, steps=60, out=path)

    def distances(runs):
        return np.array([[1 - history.metric("cka")[-1, 0] for history in histories] for histories in runs.values()])

    def scalars(name, runs):
        return np.array([[history.scalar(name) for history in histories] for histories in runs.values()])

    # lazy: 16 times the width moves the kernel far less than 1/16, while one rate suits both widths
    narrow, wide = distances(lazy)
    assert (narrow > 16 * wide).all()
    narrow, wide = scalars("loss", lazy)[..., -1]
    assert (narrow < wide).all()
    assert (wide < 2 * narrow).all()
    assert (scalars("accuracy", lazy)[..., -1] > 0.5).all()

    # rich: the larger rate first overshoots, and moves the kernel
    slow, fast = distances(rich)
    assert (fast > 10 * slow).all()
    losses = scalars("loss", rich)
    np.testing.assert_array_equal(losses.max(axis=-1) > 2 * losses[..., 0], [[False] * 2, [True] * 2])
    assert (losses[..., -1] < losses[..., 0] / 3).all()
    assert "peak loss" in capsys.readouterr().out
    assert "learning rate" in path.read_text()
