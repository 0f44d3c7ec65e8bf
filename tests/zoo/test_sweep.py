"""Grids of trainings that are finished by the same command."""

import csv
import json
import re

import numpy as np
import pytest

import nngp_plugins as nngp
from zoo.sweeps import Cell, curves, grid, run_cells

SWEEP = ("sweep", "linen/mlp", "--data", "moons", "--depth", "1", "--steps", 2, "--probe", 20)


def cells_in(folder):
    return sorted(path.parent.name for path in folder.glob("*/cell.json"))


def cell(folder, width):
    """A cell as the command makes it."""
    words = ["--data", "moons", "--steps", 2, "--batch-size", 128, "--probe", 20]
    own = ["--set", f"width={width}", "--set", "depth=1", "--optimizer", "adam", "--lr", 0.1, "--seed", 0]
    run = folder / f"width-{width}_depth-1_optimizer-adam_lr-0.1_seed-0"
    arguments = ["track", "linen/mlp", *words, *own, "--run", run, "--quiet"]
    return Cell({}, run, [*map(str, arguments)])


def stop():
    raise KeyboardInterrupt("stopped")


def test_a_sweep_that_was_stopped_runs_only_what_is_left(tmp_path, here):
    """Stopped after one of two cells, as Ctrl-C does; the command itself finds nothing left, and reads the runs."""
    options = (*SWEEP, "--lr", "0.1", "--jobs", 1, "--out", tmp_path)

    cells = [cell(tmp_path, width) for width in (4, 8)]
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        run_cells(cells, 1, stop)
    first = tmp_path / "width-4_depth-1_optimizer-adam_lr-0.1_seed-0"
    assert cells_in(tmp_path) == [first.name]
    before, trained = (first / "metrics.jsonl").stat(), []
    run_cells(cells, 1, lambda: trained.append("one more"))
    assert trained == ["one more"]
    command = here(*options, "--width", "4,8", "--json")
    assert command.returncode == 0, command.stderr
    assert (first / "metrics.jsonl").stat() == before
    assert len(cells_in(tmp_path)) == 2
    result = json.loads(command.stdout)
    assert [(row["width"], row["depth"], row["lr"], row["seed"]) for row in result["cells"]] == [
        (4, 1, 0.1, 0),
        (8, 1, 0.1, 0),
    ]
    history = nngp.History.load(first)
    changes = history.metric("relative_change")[-1]
    assert result["cells"][0]["drift"] == pytest.approx(np.median(changes))
    assert result["cells"][0]["drift/dense_0"] == pytest.approx(changes[0])
    (slope,) = result["slopes"]
    drifts = [row["drift"] for row in result["cells"]]
    assert slope["slope"] == pytest.approx(np.log2(drifts[1] / drifts[0]))
    with (tmp_path / "sweep.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [row["loss"] for row in result["cells"]]
    assert "drift of linen" in (tmp_path / "sweep.html").read_text().replace("\\u002f", "/")
    page = (tmp_path / "report.html").read_text()
    assert all(cell in page for cell in cells_in(tmp_path))
    other = here(*options, "--width", "4,8", "--steps", 3)
    assert other.returncode == 2
    assert f"--out {tmp_path}: {first.name} was trained with other options; name another" in other.stderr


def test_a_cell_that_diverged_is_in_the_table_and_is_not_run_again(tmp_path, here, recwarn):
    options = (*SWEEP, "--width", "4", "--lr", "1e38", "--optimizer", "sgd", "--jobs", 1, "--out", tmp_path)
    command = here(*options)
    assert command.returncode == 0, command.stderr
    assert re.search(r"nngp-zoo: diverged: the loss is nan at step \d+; try a smaller --lr\.\n", command.stderr)
    assert "diverged" in command.stdout
    assert json.loads((tmp_path / cells_in(tmp_path)[0] / "cell.json").read_text())["code"] == 3
    again = here(*options, "--json")
    assert again.stderr.count("diverged") == 0
    assert json.loads(again.stdout)["cells"][0]["drift"] is None


def test_slopes_are_those_of_power_laws():
    axes = {"width": (8, 32), "optimizer": ("adam",), "lr": (0.1, 0.01, 1.0), "seed": (0, 1)}
    rows = [
        {**cell, "drift": (1 + cell["seed"]) * cell["width"] ** -0.5 * cell["lr"] ** (1 + 0.2 * cell["seed"])}
        for cell in grid(axes)
    ]
    found = curves(rows, axes)
    assert [(curve.axis, curve.name) for curve in found] == [
        *(("width", f"lr {lr}") for lr in axes["lr"]),
        ("lr", "width 8"),
        ("lr", "width 32"),
    ]
    for curve in found:
        expected = (-0.5, 0.0) if curve.axis == "width" else (1.1, 0.1)
        np.testing.assert_allclose([curve.slope.value, curve.slope.error], expected, atol=1e-6)
        width, lr = curve.fixed.get("width", 8), curve.fixed.get("lr", 0.01)  # where the curve begins
        np.testing.assert_allclose(curve.drift[0, 0], width**-0.5 * lr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linen/mpl",), "MODEL: unknown model 'linen/mpl'; did you mean 'linen/mlp'"),
        (("linen/mlp", "--lr", "0.1,nan"), "--lr nan: it must be a positive number."),
        (("linen/mlp", "--lr", "0.1;1"), "--lr 0.1;1: write it as numbers that are separated by commas."),
        (("linen/mlp", "--optimizer", "adam,adan"), "--optimizer: unknown optimizer 'adan'; did you mean 'adam'"),
        (("linen/mlp", "--seed", "0,-1"), "--seed 0,-1: seeds must not be negative."),
        (("linen/mlp", "--parametrisation", "mup,mop"), "--parametrisation mup,mop: unknown parametrisation 'mop'"),
        (("linen/vit", "--width", "16,20"), "MODEL: width=20 must be a multiple of 16"),
    ],
)
def test_refused(here, tmp_path, arguments, message):
    command = here("sweep", *arguments, "--out", tmp_path / "new")
    assert (command.returncode, command.stderr.count("\n"), command.stdout) == (2, 1, "")
    assert command.stderr.startswith(f"nngp-zoo: {message}")
    assert not (tmp_path / "new").exists()


@pytest.mark.exhaustive
def test_cells_in_processes_are_finished_after_they_were_stopped(tmp_path):
    """By Ctrl-C, when one of them had ended."""
    cells = [cell(tmp_path, width) for width in (4, 8, 16)]
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        run_cells(cells, 2, stop)
    (done,) = cells_in(tmp_path)
    before, trained = (tmp_path / done / "metrics.jsonl").stat(), []
    run_cells(cells, 2, lambda: trained.append("one more"))
    assert trained == ["one more"] * 2
    assert [one.code() for one in cells] == [0, 0, 0]
    assert (tmp_path / done / "metrics.jsonl").stat() == before
