import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import nngp_plugins as nngp
from zoo.cli import app
from zoo.registry import get_dataset, get_model

NNGP_ZOO = Path(sys.executable).with_name("nngp-zoo")


def nngp_zoo(*arguments):
    # a wide terminal, so that no message is broken over lines
    env = {"COLUMNS": "200", "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "TERM": "dumb"}
    return subprocess.run([NNGP_ZOO, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=300)


def nngp_zoo_here(*arguments):
    """The command in this process, which has imported everything already; the others start it as users do."""
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"}, prog_name="nngp-zoo")
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "mlp"
    command = nngp_zoo("track", "haiku/mlp", "--data", "digits", "--steps", 60, "--run", run, "--probe", 60)
    assert command.returncode == 0, command.stderr
    return run, command.stdout


def test_track_trains_and_tracks_every_layer(tracked):
    run, _ = tracked
    history = nngp.History.load(run)
    assert history.layers == ["dense_0", "dense_1", "head"]
    assert history.steps[0] == 0
    assert history.steps[-1] == 60
    loss, accuracy = history.scalar("loss"), history.scalar("test_accuracy")
    assert loss[-1] < 0.3 * loss[0]
    assert accuracy[0] < 0.3 < 0.85 < accuracy[-1]
    np.testing.assert_allclose(history.metric("cka")[0], 1, atol=1e-5)
    assert history.metric("cka")[-1, 2] < 0.9  # the head's kernel learns the classes


def test_track_ends_with_a_table_and_a_report(tracked):
    run, stdout = tracked
    history = nngp.History.load(run)
    assert f"test accuracy {history.scalar('test_accuracy')[-1]:.1%}" in stdout
    assert "60/60" in stdout  # the progress bar
    for layer, cka, change in zip(
        history.layers, history.metric("cka")[-1], history.metric("relative_change")[-1], strict=True
    ):
        row = next(line for line in stdout.splitlines() if layer in line)
        assert f"{cka:.3f}" in row
        assert f"{change:.3g}" in row
    assert f"report: {run / 'report.html'}" in stdout
    assert "haiku/mlp on digits" in (run / "report.html").read_text()
    config = json.loads((run / "run.json").read_text())["config"]
    assert config["model"] == "haiku/mlp"
    assert config["steps"] == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linen/cn", "--run", "new"), "unknown model 'linen/cn'; did you mean 'linen/cnn'"),
        (("linen/mlp", "--data", "digit", "--run", "new"), "unknown data set 'digit'; did you mean 'digits'?"),
        (("linen/mlp", "--run", "new", "--probe", "5"), "a probe of 5 takes 0 test examples"),
        (("linen/mlp", "--run", "new", "--steps", "0"), "Invalid value for '--steps'"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing_behind(tmp_path, arguments, message):
    command = nngp_zoo_here("track", *[tmp_path / word if word == "new" else word for word in arguments])
    assert command.returncode == 2
    assert message in command.stderr
    assert "Traceback" not in command.stderr
    assert not (tmp_path / "new").exists()


def test_a_run_folder_that_holds_a_run_is_refused_and_untouched(tracked):
    run, _ = tracked
    before = (run / "metrics.jsonl").read_bytes()
    command = nngp_zoo_here("track", "linen/mlp", "--run", run)
    assert command.returncode == 2
    assert "already holds a run; name another folder" in command.stderr
    assert (run / "metrics.jsonl").read_bytes() == before


def test_help_lists_models_and_options():
    assert "track" in nngp_zoo("--help").stdout
    help_text = nngp_zoo_here("track", "--help").stdout
    for word in ("linen/cnn", "nnx/mlp", "digits", "--steps", "--run", "--lr"):
        assert word in help_text


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "k.zarr"
    options = ("--examples", 150, "--layer", "dense_*", "--batch-size", 64, "--tile-size", 40, "--seed", 3)
    arguments = ("kernel", "haiku/mlp", "--out", path, *options)
    command = nngp_zoo(*arguments)
    assert command.returncode == 0, command.stderr
    return path, arguments, command


def test_kernel_writes_that_of_the_layers(written):
    path, _, command = written
    dataset = get_dataset("digits")
    f, x = get_model("haiku/mlp", dataset), dataset.train_x[:150]
    params, state = f.init(jax.random.key(3), x[:1])
    layers = f.layers("dense_*")(params, x, state=state)
    store = nngp.open_kernel(path)
    assert list(store.arrays) == ["dense_0", "dense_1"]
    for name, y in layers.items():
        y = np.asarray(y, np.float64)
        np.testing.assert_allclose(store[name][...], y @ y.T / y.shape[1], rtol=0, atol=1e-4)
        assert f"{name}: float32 (150, 150)" in command.stdout
    assert f"kernel: {path}" in command.stdout
    assert "150/150" in command.stderr  # the progress bar


def test_kernel_again_goes_on_with_what_is_there(written):
    path, arguments, _ = written
    tile = path / "dense_0" / "c" / "1" / "2"
    before = tile.read_bytes()
    tile.unlink()
    command = nngp_zoo_here("verify", path)
    assert (command.returncode, command.stdout) == (1, "")
    assert f"1 of 32 tiles are damaged or missing: {tile}" in command.stderr
    # Not in this process, whose flags of XLA may change the last bits.
    assert nngp_zoo(*arguments).returncode == 0
    assert tile.read_bytes() == before
    other = nngp_zoo_here(*arguments[:-1], 4)
    assert other.returncode == 2
    assert "holds a kernel of other params" in other.stderr


def test_verify(written, tmp_path):
    path = shutil.copytree(written[0], tmp_path / "k.zarr")
    good = nngp_zoo("verify", path)
    assert (good.returncode, good.stdout) == (0, f"{path}: 100% written, and every written tile matches its checksum\n")
    ledger = path / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:16]))
    unfinished = nngp_zoo_here("verify", path)
    assert unfinished.returncode == 1
    assert "50% written" in unfinished.stdout
    assert "unfinished: run the command that wrote it again" in unfinished.stdout
    missing = nngp_zoo_here("verify", tmp_path / "other")
    assert missing.returncode == 2
    assert "holds no kernel" in missing.stderr
