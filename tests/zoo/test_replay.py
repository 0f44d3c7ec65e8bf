"""The history of saved checkpoints against that of a live training."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.training.train_state import TrainState

import nngp_plugins as nngp
import zoo

OPTIONS = ("--data", "teacher", "--probe", 20, "--width", 4, "--quiet")


STEPS = range(8, 12)  # some of one digit, and some of two
NAMES = ("cka", "kernel_velocity", "effective_rank")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A loop that knows nothing of the zoo: it saves a TrainState with Orbax at every step, and tracks live."""
    folder = tmp_path_factory.mktemp("training")
    data = zoo.load("teacher")
    model = zoo.get("linen/mlp", data.spec, width=4)
    x, y, _ = data.probe(20)
    params, _ = model.init(jax.random.key(0))
    state = TrainState.create(apply_fn=model.f, params=params, tx=optax.adam(1e-2)).replace(step=STEPS[0])

    @jax.jit
    def step(state):
        def loss(p):
            outputs = model.f(p, data.train_x[:64])
            return optax.softmax_cross_entropy_with_integer_labels(outputs, data.train_y[:64]).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    keep = ocp.CheckpointManagerOptions(max_to_keep=None)
    states = []
    metrics = {name: nngp.metrics.DEFAULT[name] for name in NAMES}
    metrics["target_alignment"] = nngp.metrics.of_targets(y)["target_alignment"]
    with (
        ocp.CheckpointManager(folder / "orbax", options=keep) as manager,
        nngp.KernelTracker(model.f.layers(), x, targets=y, schedule=nngp.every(1), metrics=metrics) as tracker,
    ):
        for i in STEPS:
            manager.save(i, args=ocp.args.StandardSave(state))
            tracker(i, state.params)
            states.append(state)
            state = step(state)
    return folder, states, tracker.history


def assert_same(run, live):
    history = nngp.History.load(run)
    np.testing.assert_array_equal(history.steps, live.steps)
    for name in live.metrics:
        np.testing.assert_allclose(history.metric(name), live.metric(name), rtol=1e-6, atol=1e-6, err_msg=name)


def test_orbax_equals_live_tracking(trained, here, tmp_path):
    folder, _, live = trained
    done = here("replay", "linen/mlp", folder / "orbax", "--run", tmp_path / "run", *OPTIONS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_same(tmp_path / "run", live)
    page = tmp_path / "run" / "report.html"
    assert "linen/mlp on teacher, from checkpoints" in page.read_text()
    page.unlink()
    assert here("report", tmp_path / "run").stdout.endswith(f"report: {page}\n")
    assert "<title>run" in page.read_text()


def write(form, path, state):
    """A checkpoint of a TrainState or of parameters, as users of each library write them."""
    tree = serialization.to_state_dict(state.params)
    flat = {f"params/{a}/{b}": np.asarray(value) for a, part in tree.items() for b, value in part.items()}
    step = int(state.step)
    if form == "msgpack":
        (path / f"checkpoint_{step}").write_bytes(serialization.to_bytes(state))
    elif form == "npz":
        np.savez(path / f"v2-step{step:04d}.npz", **flat, **{f"ema_{name}": 0 * a for name, a in flat.items()})
    else:
        numpy = pytest.importorskip("safetensors.numpy")
        numpy.save_file({name.replace("/", "."): a for name, a in flat.items()}, path / f"{step}.safetensors")


@pytest.mark.every(3)
@pytest.mark.parametrize("form", ["npz", "msgpack", "safetensors"])
def test_other_libraries(trained, here, tmp_path, form):
    """Damaged files, and those of other models, are named and left out."""
    _, states, live = trained
    (tmp_path / "ckpt").mkdir()
    for state in states:
        write(form, tmp_path / "ckpt", state)
    (tmp_path / "ckpt" / "torn_900.npz").write_bytes(b"PK")
    np.savez(tmp_path / "ckpt" / "other_901.npz", **{"params/dense_0/bias": np.zeros(3)})
    np.savez(tmp_path / "ckpt" / "other_902.npz", w=np.zeros(3))
    done = here("replay", "linen/mlp", tmp_path / "ckpt", "--run", tmp_path / "run", "--json", *OPTIONS)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["steps"] == live.steps.tolist()
    torn, other, nothing = told["left_out"].values()
    assert torn.startswith("it cannot be read: ")
    assert other == "it is of another model: params/dense_0/bias has shape (3,), not (4,)."
    assert nothing == "it is of another model: it holds no dense_0/bias, only w, ..."
    assert done.stderr.count("is left out: ") == done.stderr.count("\n") == 3
    assert_same(tmp_path / "run", live)


def steps_in(run):
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_what_was_measured_is_not_read_again(trained, here, tmp_path):
    """It is an empty file at the second call, so that it would be missed if it were read."""
    _, states, live = trained
    folder, run = tmp_path / "ckpt", tmp_path / "run"
    folder.mkdir()
    for state in states[:2]:
        write("msgpack", folder, state)
    command = ("replay", "linen/mlp", folder, "--run", run, *OPTIONS)
    assert here(*command).returncode == 0
    assert steps_in(run) == live.steps[:2].tolist()
    for file in folder.iterdir():
        file.write_bytes(b"")
    for state in states[2:]:
        write("msgpack", folder, state)
    done = here(*command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert steps_in(run) == live.steps.tolist()
    assert_same(run, live)


@pytest.mark.exhaustive
def test_killed_halfway_it_measures_only_what_is_left(trained, here, tmp_path):
    """The middle checkpoint is a pipe that nobody fills, before which the replay waits until it is killed."""
    _, states, live = trained
    folder, run = tmp_path / "ckpt", tmp_path / "run"
    folder.mkdir()
    for state in states:
        write("npz", folder, state)
    files = sorted(folder.iterdir())
    middle = files[len(files) // 2]
    whole = middle.read_bytes()
    middle.unlink()
    os.mkfifo(middle)
    command = ("replay", "linen/mlp", folder, "--run", run, *OPTIONS)
    with subprocess.Popen([sys.executable, "-m", "zoo", *map(str, command)]) as process:
        until = time.monotonic() + 60
        while len(steps_in(run)) < len(files) // 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert steps_in(run) == live.steps[: len(files) // 2].tolist()
    middle.unlink()
    middle.write_bytes(whole)
    done = here(*command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert steps_in(run) == live.steps.tolist()
    assert_same(run, live)


# fmt: off
REFUSED = [
    (("linen/mlp", "no"), "CHECKPOINTS: there is no file or folder no."),
    (("linen/mlp", "empty"), "CHECKPOINTS: empty holds no checkpoint with a step in its name."),
    (("linen/mlp", "a_1.npz", "b_1.npz"), "CHECKPOINTS: a_1.npz and b_1.npz are both of step 1."),
    (("linen/mlp", "nameless.npz"), "CHECKPOINTS: the name of nameless.npz holds no step, such as in step_100.npz."),
    (("linen/ml", "a_1.npz"), "MODEL: unknown model 'linen/ml'"),
    (("report", "empty"), "RUN empty: it is not a run folder"),
]
# fmt: on


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input(here, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("a_1.npz", "b_1.npz", "nameless.npz"):
        (tmp_path / name).touch()
    done = here(*(arguments if arguments[0] == "report" else ("replay", *arguments, "--run", "run")))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"nngp-zoo: {message}")
    assert not (tmp_path / "run").exists()
