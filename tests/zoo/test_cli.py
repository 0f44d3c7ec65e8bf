"""The commands as users run them, and their manners."""

import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import commands

import nngp_plugins as nngp
import zoo
from zoo.training import Training


@pytest.fixture(scope="module", autouse=True)
def wide_lines():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        yield


NET = """
import flax.linen as nn


class Net(nn.Module):
    classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        return nn.Dense(self.classes)(nn.relu(nn.BatchNorm(not train)(x)))
"""
LAYERS = ["Dense_0", "BatchNorm_0", "Dense_1"]


def track(folder, steps=60):
    """The arguments of a training of the model above, but for the run folder."""
    return "track", f"{folder}/net.py:Net", "--steps", steps, "--probe", 60, "--width", 64


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "net.py").write_text(NET)
    command = commands.run(*track(folder), "--run", folder / "run")
    assert command.returncode == 0, command.stderr
    return folder / "run", command


def test_track_trains_and_tracks_every_layer(tracked):
    run, command = tracked
    history = nngp.History.load(run)
    assert history.layers == LAYERS
    assert [history.steps[0], history.steps[-1]] == [0, 60]
    loss, accuracy = history.scalar("loss"), history.scalar("test_accuracy")
    assert loss[-1] < 0.3 * loss[0]
    assert accuracy[0] < 0.3 < 0.8 < accuracy[-1]
    np.testing.assert_allclose(history.metric("cka")[0], 1, atol=1e-5)
    assert history.metric("cka")[-1, 2] < 0.9  # the head's kernel learns the classes
    assert f"test accuracy {accuracy[-1]:.1%}" in command.stdout
    for layer, cka in zip(history.layers, history.metric("cka")[-1], strict=True):
        assert f"{cka:.3f}" in next(line for line in command.stdout.splitlines() if layer in line)
    assert f"report: {run / 'report.html'}" in command.stdout
    for sentence in nngp.report.findings(history):
        assert sentence in command.stdout
    assert "60/60" in command.stderr  # the progress bar
    assert "60/60" not in command.stdout
    assert "net.py:Net on digits" in (run / "report.html").read_text()


def test_report_writes_the_page_again_and_says_what_it_finds(tracked, here, tmp_path):
    run, _ = tracked
    page = tmp_path / "page.html"
    again = here("report", run, "--out", page, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["findings"] == {str(run): nngp.report.findings(nngp.History.load(run))}
    assert "<title>" in page.read_text()
    refused = here("report", tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"nngp-zoo: RUN {tmp_path}: it is not a run folder")


def test_the_same_command_again_changes_nothing_and_another_is_refused(tracked, here):
    run, _ = tracked
    before = (run / "metrics.jsonl").read_bytes()
    again = here(*track(run.parent), "--run", run, "--json")
    assert again.returncode == 0
    result = json.loads(again.stdout)["runs"][0]
    assert result["loss"] == nngp.History.load(run).scalar("loss")[-1]
    assert [*result["layers"]] == LAYERS
    other = here(*track(run.parent, steps=61), "--run", run)
    assert other.returncode == 2
    assert other.stderr.startswith(f"nngp-zoo: --run {run}: it already holds a run with steps 60, not 61; name another")
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_that_was_interrupted_is_finished_by_the_same_command(tracked, tmp_path, here, monkeypatch):
    """With the same rows as a run that was not: the same steps, and the same numbers, of a model with a state."""
    run, _ = tracked
    arguments = (*track(run.parent), "--quiet", "--run", tmp_path)
    batch = Training.batch

    def ctrl_c(self, step, seed):
        if step == 17:
            signal.raise_signal(signal.SIGINT)
        return batch(self, step, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "batch", ctrl_c)
        interrupted = here(*arguments)
    told = "nngp-zoo: interrupted; the run is saved, and the same command finishes it\n"
    assert (interrupted.returncode, interrupted.stdout, interrupted.stderr) == (130, "", told)
    with np.load(tmp_path / "checkpoint.npz") as checkpoint:
        assert checkpoint["step"] == 17
    finished = here(*arguments)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    a, b = nngp.History.load(tmp_path), nngp.History.load(run)
    assert a.steps.tolist() == b.steps.tolist()
    for name in ("loss", "test_accuracy"):
        np.testing.assert_allclose(a.scalar(name), b.scalar(name), rtol=1e-4)
    np.testing.assert_allclose(a.metric("cka"), b.metric("cka"), rtol=1e-4, atol=1e-5)


def test_seeds_optimizers_schedules_and_kept_kernels(tmp_path, here):
    options = ("--optimizer", "momentum", "--schedule", "cosine", "--lr", 0.1, "--seeds", 2, "--seed", 3)
    command = here("track", "linen/mlp", "--data", "moons", "--steps", 9, "--probe", 20, "--width", 8, *options,
                   "--depth", 1, "--keep-kernels", "--json", "--run", tmp_path / "r")  # fmt: skip
    assert command.returncode == 0, command.stderr
    runs = json.loads(command.stdout)["runs"]
    assert [run["seed"] for run in runs] == [3, 4]
    assert runs[0]["loss"] != runs[1]["loss"]
    history = nngp.History.load(tmp_path / "r" / "seed-4")
    assert history.kernel("head", step=9).shape == (20, 20)


# fmt: off
REFUSED = [
    (("track", "linen/cn", "--run", "new"), "MODEL: unknown model 'linen/cn'; did you mean 'linen/cnn'"),
    (("track", "linen/mlp", "--data", "digit", "--run", "new"), "--data: unknown data set 'digit'; did you mean"),
    (("track", "linen/mlp", "--run", "new", "--probe", "5"), "--probe: a probe of 5 takes 0 test examples of each"),
    (("track", "linen/mlp", "--run", "new", "--steps", "0"), "Invalid value for '--steps'"),
    (("track", "linen/mlp", "--run", "new", "--lr", "nan"), "--lr nan: it must be a positive number."),
    (("track", "linen/mlp", "--run", "new", "--lr", "-1"), "--lr -1.0: it must be a positive number."),
    (("track", "linen/mlp", "--run", "new", "--optimizer", "adan"), "--optimizer: unknown optimizer 'adan'; did"),
    (("track", "linen/mlp", "--run", "new", "--activation", "rel"), "--activation rel: unknown activation 'rel'"),
    (("track", "linen/mlp", "--run", "new", "--init-scale", "-1"), "--init-scale -1.0: init_scale=-1.0 must"),
    (("track", "linen/mlp", "--run", "new", "--set", "norm"), "--set norm: write it as KNOB=VALUE"),
    (("track", "linen/mlp", "--run", "file/run"), "--run file/run: it can't be written: "),
    (("track", "linen/lstm", "--data", "moons", "--run", "new"), "MODEL: linen/lstm takes tokens or sequence or image"),
    (("kernel", "linen/mlp", "--out", "new", "--examples", "9999"), "--examples: digits has 1 to 1258 training"),
    (("kernel", "linen/mlp", "--out", "file/k"), "--out file/k: it can't be written: "),
    (("features", "linen/mlp", "--out", "f.txt"), "--out f.txt: it must end in .npz."),
    (("features", "linen/mlp", "--out", "f.npz", "--run", "no"), "--run no: there is no such folder."),
    (("verify", "missing"), "PATH missing: it does not exist."),
    (("list", "--framework", "torch"), "--framework torch: unknown framework 'torch'; did you mean"),
    (("trakc",), "No such command 'trakc'"),
    (("track", "linen/mlp"), "Missing option '--run'"),
]
# fmt: on


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch, here, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    command = here(*arguments)
    assert command.returncode == 2
    assert command.stderr.startswith(f"nngp-zoo: {message}")
    assert command.stderr.count("\n") == 1
    assert command.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bad_input_imports_no_jax(tmp_path):
    """So that it is refused within a second."""
    (tmp_path / "file").touch()
    script = (
        "import json, sys\nfrom zoo.__main__ import main\nfor arguments in json.loads(sys.argv[1]):\n"
        "    try:\n        main(arguments)\n    except SystemExit as end:\n"
        "        print(end.code, *[name for name in ('jax', 'flax', 'haiku', 'sklearn') if name in sys.modules])"
    )
    given = [arguments for arguments, _ in REFUSED[:14]]
    command = [sys.executable, "-c", script, json.dumps(given)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2\n" * len(given), done.stdout


def test_version_help_and_list(here):
    assert here("--version").stdout == f"nngp-zoo {nngp.__version__}\n"
    assert here("list", "--family", "mlp", "--json").stdout.count('"name"') == 3
    assert "nnx/vit" in here("list").stdout
    assert here("list", "--quiet").stdout == ""
    text = here("track", "--help").stdout
    for word in ("--steps", "--run", "--lr", "--parametrisation", "--set", "--json", "Example: nngp-zoo track"):
        assert word in text
    assert "Exit codes: 0 done" in here("--help").stdout


def test_show(here):
    shown = here("show", "linen/mlp", "--width", 8, "--set", "depth=1", "--examples", 100).stdout
    assert "parameters: 610" in shown
    assert "arc-cosine" in shown
    about = json.loads(here("show", "linen/mlp", "--width", 8, "--depth", 1, "--json").stdout)
    assert about["parameters"] == 65 * 8 + 9 * 10
    assert [(layer["name"], layer["shape"]) for layer in about["layers"]] == [
        ("dense_0", [1000, 8]),
        ("head", [1000, 10]),
    ]
    assert about["layers"][0]["kernel_flops"] == 2 * 1000 * 1000 * 8


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "k.zarr"
    options = ("--examples", 150, "--layer", "dense_*", "--batch-size", 64, "--tile-size", 40, "--seed", 3)
    arguments = ("kernel", "linen/mlp", "--out", path, *options)
    command = commands.run(*arguments)
    assert command.returncode == 0, command.stderr
    return path, arguments, command


def test_kernel_writes_that_of_the_layers(written):
    path, _, command = written
    data = zoo.load("digits")
    model, x = zoo.get("linen/mlp", data.spec), data.train_x[:150]
    params, state = model.init(jax.random.key(3))
    layers = jax.jit(model.f.layers("dense_*"))(params, x, state=state)
    store = nngp.open_kernel(path)
    assert list(store.arrays) == ["dense_0", "dense_1"]
    for name, y in layers.items():
        y = np.asarray(y, np.float64)
        np.testing.assert_allclose(store[name][...], y @ y.T / y.shape[1], rtol=0, atol=1e-4)
        assert f"{name}: float32 (150, 150)" in command.stdout
    assert f"kernel: {path}" in command.stdout
    assert "150/150" in command.stderr  # the progress bar


def test_kernel_again_goes_on_with_what_is_there(written, here):
    path, arguments, _ = written
    tile = path / "dense_0" / "c" / "1" / "2"
    before = tile.read_bytes()
    tile.unlink()
    command = here("verify", path)
    assert (command.returncode, command.stdout) == (1, "")
    assert f"1 of 32 tiles are damaged or missing: {tile}" in command.stderr
    assert here(*arguments).returncode == 0
    assert tile.read_bytes() == before
    other = here(*arguments[:-1], 4)
    assert other.returncode == 2
    assert f"--out {path}: " in other.stderr
    assert "holds a kernel of other params" in other.stderr
    nothing = here(*arguments[:3], f"{path}2", "--layer", "dens?")
    assert nothing.returncode == 2
    assert nothing.stderr.startswith(
        "nngp-zoo: --layer: layers('dens?') matches no layer; the closest are 'dense_1', 'dense_0'."
    )


def test_verify(written, tmp_path, here):
    path = shutil.copytree(written[0], tmp_path / "k.zarr")
    good = here("verify", path)
    assert (good.returncode, good.stdout) == (0, f"{path}: 100% written, and every written tile matches its checksum\n")
    ledger = path / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:16]))
    unfinished = here("verify", path)
    assert unfinished.returncode == 1
    assert "50% written" in unfinished.stdout
    assert "unfinished: run the command that wrote it again" in unfinished.stderr
    (tmp_path / "other").mkdir()
    missing = here("verify", tmp_path / "other")
    assert missing.returncode == 2
    assert "holds no kernel" in missing.stderr


def test_features_are_those_of_the_run_with_ids(tracked, tmp_path, here):
    run, _ = tracked
    out = tmp_path / "new" / "f.npz"
    net = f"{run.parent}/net.py:Net"
    command = here("features", net, "--width", 64, "--run", run, "--out", out, "--probe", 30)
    assert command.returncode == 0, command.stderr
    data = zoo.load("digits")
    _, y, ids = data.probe(30)
    with np.load(out) as file:
        assert set(file.files) == {*LAYERS, "ids", "labels", "about"}
        np.testing.assert_array_equal(file["ids"], ids)
        np.testing.assert_array_equal(file["labels"], y)
        assert json.loads(str(file["about"]))["model"] == net
        logits = file["Dense_1"] * np.sqrt(10)
    assert (logits.argmax(axis=1) == y).mean() > 0.7  # the trained weights
    other = here("features", "haiku/mlp", "--run", run, "--out", out)
    assert other.returncode == 2
    assert "holds the training of another model" in other.stderr
