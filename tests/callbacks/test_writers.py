import io
import logging
import math
import re
import struct
import sys
import threading
import time
from importlib import import_module

import numpy as np
import pytest
import rich.console
from helpers.disk import largest_file
from rich.progress import Progress

import nngp_plugins as nngp
from nngp_plugins.callbacks.writers import Console, Guarded, MLflow, TensorBoard, as_writer
from nngp_plugins.charts import sparkline

NAN, INF = math.nan, math.inf
ROWS = {
    0: {"loss": 2.5, "kernel/Dense_0#1/cka": 1.0, "kernel/*/scale": 3.0},
    7: {"loss": 0.1, "kernel/Dense_0#1/cka": 0.75, "kernel/*/scale": NAN},
    1000: {"loss": INF, "kernel/Dense_0#1/cka": 0.5, "kernel/*/scale": -4e-9},
}


def columns(rows):
    """For each name, what was written: ``[(step, value)]``."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: [(step, row[name]) for step, row in rows.items() if name in row] for name in names}


# ---- what is a writer


class Lines:
    """A writer to a file, as somebody would write one."""

    def __init__(self, path):
        self.path = path

    def write_scalars(self, step, scalars):
        with open(self.path, "a") as file:
            file.write(f"{step} {scalars}\n")


class Logger:
    def __init__(self):
        self.rows = []

    def log(self, data, *, step):
        self.rows.append((step, data))


def test_what_has_write_scalars_is_a_writer():
    writer = Lines("x")
    assert as_writer(writer) is writer


def test_what_has_log_is_a_writer():
    logger = Logger()
    as_writer(logger).write_scalars(3, {"loss": 1.0, "kernel/a/cka": 0.5})
    assert logger.rows == [(3, {"loss": 1.0, "kernel/a/cka": 0.5})]


@pytest.mark.parametrize("wrong", [None, "logs", print, np, math, logging, logging.getLogger("x"), Lines, TensorBoard])
def test_what_is_no_writer(wrong):
    with pytest.raises(TypeError, match=r"^writers=\[.*\] holds no writer; pass one of nngp.writers, such as"):
        as_writer(wrong)


# ---- TensorBoard


def read_events(logdir):
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(logdir)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard(tmp_path):
    writer = as_writer(TensorBoard(tmp_path / "logs"))
    for step, row in ROWS.items():
        writer.write_scalars(step, row)
    # before close(): a snapshot is on disk as soon as it is written
    written = {n: [(s, float(np.float32(v))) for s, v in values] for n, values in columns(ROWS).items()}
    np.testing.assert_equal(read_events(tmp_path / "logs"), written)
    writer.close()
    writer.close()
    assert "tensorflow" not in sys.modules
    assert "torch" not in sys.modules


def test_tensorboard_goes_on_after_close(tmp_path):
    writer = TensorBoard(str(tmp_path))
    for step in range(3):
        writer.write_scalars(step, {"loss": step / 2})
        writer.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert read_events(tmp_path) == {"loss": [(0, 0.0), (1, 0.5), (2, 1.0)]}


def test_tensorboard_recovers_from_a_disk_that_fails(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder must be")
    writer, messages = TensorBoard(tmp_path / "logs"), []
    guarded = Guarded(writer, messages.append)
    guarded.write_scalars(0, {"loss": 1.0})
    guarded.flush()
    guarded.write_scalars(1, {"loss": 2.0})
    guarded.flush()
    (tmp_path / "logs").unlink()
    guarded.write_scalars(2, {"loss": 3.0})
    guarded.flush()
    assert len(messages) == 1
    assert f"TensorBoard('{tmp_path}/logs') failed in write_scalars at step 0" in messages[0]
    assert read_events(tmp_path / "logs") == {"loss": [(2, 3.0)]}


def test_tensorboard_leaves_a_torn_record_behind(tmp_path):
    writer, messages = TensorBoard(tmp_path), []
    guarded = Guarded(writer, messages.append)
    guarded.write_scalars(0, {"loss": 1.0})
    guarded.flush()
    (file,) = tmp_path.iterdir()
    with largest_file(file.stat().st_size + 20):
        guarded.write_scalars(1, {"loss": 2.0})
        guarded.flush()
    guarded.write_scalars(2, {"loss": 3.0})
    guarded.flush()
    guarded.write_scalars(3, {"loss": 4.0})
    guarded.flush()
    assert "File too large" in messages[0]
    assert read_events(tmp_path) == {"loss": [(0, 1.0), (2, 3.0), (3, 4.0)]}


def test_tensorboard_of_what_is_no_folder():
    with pytest.raises(TypeError, match=r"TensorBoard\(logdir=3\) takes a folder"):
        TensorBoard(3)


# ---- W&B


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """W&B, whose service starts once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("wandb")
        for name, value in {"MODE": "offline", "SILENT": "true", "DIR": folder, "DISABLE_GIT": "true"}.items():
            patch.setenv(f"WANDB_{name}", str(value))
        wandb = pytest.importorskip("wandb")
        yield wandb
        wandb.teardown()


@pytest.fixture
def wandb(service):
    yield service
    service.finish()


def finish(run, tmp_path):
    """The history of a run, ``{step: {name: value}}``, from the file that W&B left; it has no reader of its own."""
    run.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    until = time.time() + 20
    while "exit" not in dict(_records(path.read_bytes())):
        assert time.time() < until
        time.sleep(0.05)
    rows = [
        {item.key or item.nested_key[0]: float(item.value_json) for item in record.history.item}
        for kind, record in _records(path.read_bytes())
        if kind == "history"
    ]
    return {int(row.pop("_step")): {k: v for k, v in row.items() if k[0] != "_"} for row in rows}


def _records(data):
    """The records of a LevelDB log: blocks of 32 KiB, and parts of records with a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            parsed = Record.FromString(record)
            yield parsed.WhichOneof("record_type"), parsed
            record = b""


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.once
def test_wandb(tmp_path, wandb, as_module):
    run = wandb.init(project="nngp", dir=tmp_path)
    writer = as_writer(wandb if as_module else run)
    for step, row in ROWS.items():
        writer.write_scalars(step, row)
    written = {step: {**row, "kernel_step": step} for step, row in ROWS.items()}
    np.testing.assert_equal(finish(run, tmp_path), written)


@pytest.mark.once
def test_wandb_keeps_numbers_that_come_late(tmp_path, wandb):
    run = wandb.init(project="nngp", dir=tmp_path)
    writer = as_writer(run)
    for step in range(6):
        run.log({"loss": float(step), "lr": 0.1}, step=step)
        if step == 4:
            writer.write_scalars(2, {"loss": 2.0, "seconds": 9.0, "net/kernel/a/cka": 0.5})
    rows = finish(run, tmp_path)
    assert rows.pop(4) == {"loss": 4.0, "lr": 0.1, "net/kernel/a/cka": 0.5, "net/kernel_step": 2}
    assert rows == {step: {"loss": float(step), "lr": 0.1} for step in (0, 1, 2, 3, 5)}


@pytest.mark.once
def test_wandb_before_init(wandb):
    messages = []
    guarded = Guarded(as_writer(wandb), messages.append)
    guarded.write_scalars(0, {"loss": 1.0})
    guarded.flush()
    assert "the writer wandb.log failed in write_scalars at step 0" in messages[0]
    assert re.search(r"call .?wandb.init", messages[0])


# ---- MLflow


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def mlflow(database, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    for name in ("mlflow.store", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    monkeypatch.chdir(tmp_path)  # where it makes a folder for artifacts
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")  # mlflow.set_experiment sets it
    yield mlflow
    mlflow.end_run()


def read_mlflow(client, run_id):
    names = client.get_run(run_id).data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}


pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated"  # mlflow's use of sqlalchemy
)


@pytest.mark.once
def test_mlflow(mlflow):
    writer = as_writer(MLflow())
    for step, row in ROWS.items():
        writer.write_scalars(step, row)
    client = mlflow.MlflowClient()
    assert client.get_run(writer.run_id).info.status == "RUNNING"
    writer.close()
    assert client.get_run(writer.run_id).info.status == "FINISHED"
    names = {"loss": "loss", "kernel/Dense_0#1/cka": "kernel/Dense_0_1/cka", "kernel/*/scale": "kernel/_/scale"}
    written = {names[name]: values for name, values in columns(ROWS).items()}
    written["loss"][2] = (1000, sys.float_info.max)  # what a database has for inf
    np.testing.assert_equal({n: sorted(v) for n, v in read_mlflow(client, writer.run_id).items()}, written)


@pytest.mark.once
def test_mlflow_does_not_merge_names(mlflow):
    long = "kernel/" + "x" * 300 + "/cka"
    names = ["a#1/cka", "a_1/cka", "a*1/cka", "../x", "a//b", long, f"y{long}", "é: z"]
    row = {name: float(i) for i, name in enumerate(names, 1)}
    writer = MLflow()
    for step in range(2):
        writer.write_scalars(step, row)
    found = read_mlflow(mlflow.MlflowClient(), writer.run_id)
    assert found["a_1/cka"] == [(0, 2.0), (1, 2.0)]
    assert {"a_1/cka_2", "a_1/cka_3", "__/x", "a/_/b", "é: z"} < found.keys()
    assert sorted(found.values()) == [[(0, value), (1, value)] for value in sorted(row.values())]


@pytest.mark.once
def test_mlflow_takes_many_metrics_from_a_thread(mlflow):
    row = {f"kernel/{i}/cka": float(i) for i in range(2003)}
    run = mlflow.start_run()
    writer = as_writer(mlflow)
    thread = threading.Thread(target=writer.write_scalars, args=(5, row))
    thread.start()
    thread.join()
    writer.close()
    client = mlflow.MlflowClient()
    assert client.get_run(run.info.run_id).data.metrics == row
    assert client.get_run(run.info.run_id).info.status == "RUNNING"  # it is not the writer's to end


@pytest.mark.once
def test_mlflow_of_an_experiment_and_of_a_run(mlflow):
    experiment = mlflow.set_experiment("mine").experiment_id
    first = MLflow()
    assert mlflow.MlflowClient().get_run(first.run_id).info.experiment_id == experiment
    again = MLflow(run_id=first.run_id)
    again.write_scalars(3, {"loss": 1.0})
    assert read_mlflow(mlflow.MlflowClient(), first.run_id) == {"loss": [(3, 1.0)]}
    with pytest.raises(ValueError, match=r"MLflow\(run_id='none', tracking_uri=None\): .*none"):
        MLflow(run_id="none")


# ---- the console


def terminal(width=90, height=40, is_terminal=True):
    return rich.console.Console(file=io.StringIO(), width=width, height=height, force_terminal=is_terminal)


def text(console):
    """What was printed, without the codes of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", console.file.getvalue())


def show(writer, *series, **scalars):
    """Writes a metric of some layers: ``(layer, metric, values)``."""
    for step in range(len(series[0][2])):
        row = {f"kernel/{layer}/{metric}": values[step] for layer, metric, values in series}
        writer.write_scalars(10 * step, {**scalars, **row})


def test_console_in_a_log_file():
    console = terminal(is_terminal=False)
    writer = Console(console=console)
    show(
        writer, ("a/b", "cka", [1.0, 0.5]), ("c", "cka", [1.0, 0.75]), ("c", "scale", [2.0, 5.0]), loss=0.1, seconds=2.6
    )
    lines = "step 0  loss 0.100  3 s  cka 1.00  scale 2.00\n"  # the next one is a minute later
    assert text(console) == lines
    writer.close()
    writer.close()
    table = [line.split() for line in text(console).removeprefix(lines).splitlines()]
    assert table[0] == ["step", "10", "loss", "0.100", "3", "s"]
    assert ["a/b", "0.500", "-0.50", "█▁"] in table
    assert ["c", "0.750", "-0.25", "5.00", "+3.0", "█▁"] in table
    assert table[-1] == ["Δ", "since", "step", "0"]
    assert text(console).count("layer") == 1  # the second close() had nothing to show


def test_console_in_a_log_file_says_the_lowest_and_the_highest_value():
    console = terminal(is_terminal=False)
    writer = Console(console=console)
    writer.seconds_between_lines = 0
    show(writer, ("a/b", "cka", [1.0, 0.5]), ("c", "cka", [1.0, 0.75]), loss=0.1)
    assert text(console) == "step 0  loss 0.100  cka 1.00\nstep 10  loss 0.100  cka 0.500…0.750\n"


def test_console_in_a_terminal():
    console = terminal()
    writer = Console(console=console)
    show(writer, ("a", "cka", [1.0, 0.5]), ("a", "relative_change", [0.0, 0.25]), loss=0.1)
    printed = console.file.getvalue()
    assert printed.count("loss") == 2
    assert "\x1b[1A" in printed  # back up over the table before
    assert "\x1b[?25l" in printed  # no cursor
    writer.close()
    assert console.file.getvalue().endswith("\x1b[?25h")
    row = [line.split() for line in text(console).splitlines()][-3]
    assert row == ["a", "0.500", "-0.50", "0.250", "█▁"]  # relative change is a change itself


def test_console_gives_the_cursor_back_without_close():
    console = terminal()
    writer = Console(console=console)
    show(writer, ("a", "cka", [1.0]))
    del writer
    assert console.file.getvalue().endswith("\x1b[?25h")


def test_console_beside_a_progress_bar():
    console = terminal()
    with Progress(console=console, auto_refresh=False) as progress:
        writer, task = Console(console=console), progress.add_task("training", total=2)
        for step in range(2):
            writer.write_scalars(step, {"kernel/a/cka": 1.0 - step / 4})
            progress.advance(task)
            progress.refresh()
        writer.close()
    assert "step 1" in text(console)
    assert "0.750" in text(console)
    assert "training" in text(console)
    assert "100%" in text(console)


def test_console_flags_what_diverged():
    console = terminal(is_terminal=False)
    writer = Console(console=console)
    show(writer, ("a", "cka", [1.0, NAN]), ("b", "cka", [1.0, 0.9]), ("c", "cka", [NAN, NAN]), ("d", "cka", [1.0, INF]))
    assert text(console).splitlines()[1] == "step 10  cka 0.900  diverged: a, d"
    writer.close()
    rows = {line.split()[0]: line.split()[1:] for line in text(console).splitlines()[2:] if line.strip()}
    assert rows["a"] == ["nan", "▅", "diverged"]
    assert rows["b"] == ["0.900", "-0.10", "█▁"]
    assert rows["c"] == ["nan"]
    assert rows["d"] == ["inf", "▅", "diverged"]


def test_console_flag_is_red():
    console = terminal()
    show(writer := Console(console=console), ("a", "cka", [1.0, NAN]))
    writer.close()
    assert "\x1b[1;31mdiverged" in console.file.getvalue()


def test_console_shows_some_of_many_layers():
    console = terminal(is_terminal=False)
    writer = Console(console=console)
    writer.write_scalars(0, {f"kernel/layer{i}/cka": 1.0 for i in range(58)})
    writer.write_scalars(1, {f"kernel/layer{i}/cka": NAN if i == 1 else 1.0 for i in range(58)})
    writer.close()
    assert re.findall(r"layer(\d+)", text(console).split("so far")[1]) == [str(3 * i) for i in range(20)]
    assert "20 of 58 layers, 1 more diverged" in text(console)


def test_console_fits_a_small_terminal():
    metrics = ("cka", "relative_change", "effective_rank", "scale")
    console = terminal(width=44, height=14)
    writer = Console(console=console)
    for step in range(3):
        writer.write_scalars(step, {f"kernel/block_{i}/{m}": 1.0 + step for i in range(30) for m in metrics})
    writer.close()
    last = text(console)[text(console).rindex("step 2") :]
    assert max(map(len, last.splitlines())) <= 44
    assert "…" not in last
    assert last.count("block_") == 6
    assert "▁▅█" in last


def test_console_of_some_layers_and_metrics():
    console = terminal(is_terminal=False)
    writer = Console("block*", "scale", console=console)
    layers = ("block0", "head", "block1")
    writer.write_scalars(0, {f"net/kernel/{layer}/{m}": 1.0 for layer in layers for m in ("cka", "scale")})
    writer.close()
    assert "net/block0" in text(console)
    assert "net/block1" in text(console)
    assert "scale 1.00" in text(console)
    assert "head" not in text(console)
    assert "cka" not in text(console)


def test_console_of_metrics_of_ones_own():
    console = terminal(is_terminal=False)
    show(Console(console=console), ("a", "mine", [1.0]), ("a", "[b]", [2.0]))
    assert text(console) == "step 0  mine 1.00  [b] 2.00\n"


def test_console_bad_input():
    with pytest.raises(TypeError, match=r"console=3 is no rich.console.Console"):
        Console(console=3)
    with pytest.raises(TypeError, match=r"layers=3 takes names, such as layers=\['...'\]"):
        Console(layers=3)
    with pytest.raises(TypeError, match=r"metrics=\[1\] takes names"):
        Console(metrics=[1])
    with pytest.raises(ValueError, match=r"Console\(layers=\['c\*'\]\) matches none of the layers \['a', 'b'\]"):
        Console(layers="c*").write_scalars(0, {"kernel/a/cka": 1.0, "kernel/b/cka": 1.0})


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([], 8, ""),
        ([3.0], 8, "▅"),
        ([1, 2, 3, 4, 5, 6, 7, 8], 8, "▁▂▃▄▅▆▇█"),
        ([NAN, -1, INF, 1, -INF], 8, " ▁ █ "),
        ([NAN, NAN], 8, "  "),
        ([1, 1 + 1e-9, 1 - 1e-9], 8, "▅▅▅"),
        ([1e-9, 2e-9], 8, "▁█"),
        ([0, 9, 1, 9, 2, 9, 3], 4, "▁▃▆█"),
        ([5, 6], 1, "▅"),
    ],
)
def test_sparkline(values, width, bars):
    assert sparkline(values, width) == bars


# ---- writers that fail


def test_a_full_disk_is_told_once_and_tried_again(tmp_path):
    messages, writer = [], Lines("/dev/full")
    guarded = Guarded(writer, messages.append)
    for step in range(5):
        guarded.write_scalars(step, {"loss": 1.0})
    guarded.flush()
    assert len(messages) == 1
    assert re.search(r"the writer <.*Lines.*> failed in write_scalars at step 0 \(OSError: .*No space", messages[0])
    assert "the tracker's history has all numbers" in messages[0]
    writer.path = tmp_path / "lines"
    guarded.write_scalars(5, {"loss": 1.0})
    guarded.flush()
    assert writer.path.read_text() == "5 {'loss': 1.0}\n"
    assert len(messages) == 1


def test_flush_and_close_of_a_writer_without_them():
    messages = []
    guarded = Guarded(Lines("x"), messages.append)
    guarded.flush()
    guarded.close()
    assert messages == []


@pytest.mark.parametrize("method", ["flush", "close"])
def test_flush_and_close_are_guarded(method):
    class Full(Lines):
        def flush(self):
            self.write_scalars(0, {})

        def close(self):
            messages.append("closed")

    messages = []
    getattr(Guarded(Full("/dev/full"), messages.append), method)()
    assert "failed in flush (OSError" in messages[0]  # its user may write on, so it is not closed


class Hangs(Logger):
    def __init__(self, method):
        super().__init__()
        self._method, self.released = method, threading.Event()

    def write_scalars(self, step, scalars):
        self.log(scalars, step=step)
        if self._method == "write_scalars":
            self.released.wait(60)

    def flush(self):
        if self._method == "flush":
            self.released.wait(60)


@pytest.mark.parametrize("method", ["write_scalars", "flush"])
def test_a_writer_that_hangs_is_dropped(method, monkeypatch):
    monkeypatch.setattr(Guarded, "patience", 0.2)
    messages, writer = [], Hangs(method)
    guarded = Guarded(writer, messages.append)
    for step in range(3):
        guarded.write_scalars(step, {"loss": 1.0})
    guarded.flush()
    guarded.flush()
    guarded.close()
    (message,) = messages
    assert re.search(r"the writer <.*Hangs.*> has not returned for 0 seconds, and gets nothing more", message)
    writer.released.set()


def test_a_writer_that_is_too_slow_is_dropped(monkeypatch):
    monkeypatch.setattr(Guarded, "most", 5)
    messages, writer = [], Hangs("write_scalars")
    guarded = Guarded(writer, messages.append)
    for step in range(20):
        guarded.write_scalars(step, {"loss": 1.0})
    assert [re.sub("<.*>", "", message) for message in messages] == [
        "the writer  has 5 snapshots to write, and gets nothing more; the tracker's history has all numbers."
    ]
    writer.released.set()


class Exits(Logger):
    def write_scalars(self, step, scalars):
        sys.exit("no network")

    def __repr__(self):
        raise AttributeError("not made yet")


def test_a_writer_that_exits_and_has_no_name_ends_nothing():
    messages = []
    guarded = Guarded(Exits(), messages.append)
    guarded.write_scalars(3, {"loss": 1.0})
    guarded.close()
    assert messages[0].startswith("the writer of type Exits failed in write_scalars at step 3 (SystemExit: no network)")


def test_a_writer_may_flush_the_tracker():
    class Flushes:
        def write_scalars(self, step, scalars):
            tracker.flush()
            seen.append((step, len(tracker.history)))

    seen = []
    probe = np.arange(12, dtype=np.float32).reshape(4, 3)
    metrics = {"scale": lambda gram, reference: nngp.metrics.scale(gram)}
    tracker = nngp.KernelTracker(
        lambda w, x: w * x, probe, schedule=nngp.every(1), metrics=metrics, writers=[Flushes()]
    )
    for step in range(3):
        tracker(step, np.float32(1 + step))
    tracker.close()
    assert [step for step, _ in seen] == [0, 1, 2]


def test_a_writer_gets_numbers_of_its_own():
    class Greedy(Lines):
        def write_scalars(self, step, scalars):
            scalars.clear()

    row = {"loss": 1.0}
    guarded = Guarded(Greedy("x"), print)
    guarded.write_scalars(0, row)
    guarded.flush()
    assert row == {"loss": 1.0}
