import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, **arguments):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**arguments)


def test_every_example_is_tested_and_short():
    scripts = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(scripts) == {"any_function", "flax_training_callback", "haiku_experiment", "nnx_training_callback"}
    assert max(scripts.values()) < 60


def test_any_function(capsys):
    kernels, error = run("any_function")
    # largest of 21 entries whose standard deviation is at most sqrt(5/4) / sqrt(width), that of a variance
    assert error < 5 * np.sqrt(5 / 4 / 20_000)
    assert kernels["out"].shape == (6, 6)
    assert "arc-cosine" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["flax_training_callback", "nnx_training_callback"])
def test_training_callbacks_learn_and_track(name, capsys):
    history = run(name)
    assert history.scalar("loss")[-1] < 0.2 * history.scalar("loss")[0]
    assert len(history.layers) == 3
    cka = history.metric("cka")
    np.testing.assert_allclose(cka[0], 1, atol=1e-5)
    assert (np.diff(cka[-1]) < 0).all()  # deeper layers move further
    assert "effective_rank" in capsys.readouterr().out


def test_haiku_experiment(capsys):
    histories = run("haiku_experiment")
    distance = [1 - history.metric("cka")[-1, 0] for history in histories.values()]
    assert (np.diff(distance) > 0).all()  # a larger learning rate moves the kernel further
    assert capsys.readouterr().out.count("learning rate") == len(histories)
