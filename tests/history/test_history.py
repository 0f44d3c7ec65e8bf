"""A history as numbers, curves and a table."""

import io
import json
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal
from helpers.lines import write_lines
from rich.console import Console

import nngp_plugins as nngp

LAYERS = ["block/hidden", "block/square", "out[0]"]
NAN = float("nan")


def f(w, x):
    return {"block/hidden": x @ w, "block/square": (x @ w) ** 2 + 1, "out[0]": jnp.tanh(x @ w)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mlp"
    metrics = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "scale", "kernel_distance", "effective_rank")}
    with nngp.KernelTracker(f, normal(1, 6, 3), schedule=nngp.every(5), run=folder, metrics=metrics) as tracker:
        for step in range(13):
            w = np.diag(np.array([1 + step, 2, 3], np.float32))
            tracker(step, w, loss=1 / (1 + step), epoch=step / 4, **({"accuracy": 0.5} if step == 5 else {}))
    return folder


@pytest.fixture
def history(run):
    return nngp.History.load(run)


def rows(*snapshots):
    """Rows of two layers whose metrics are ``cka`` and ``kernel_velocity``, a pair for each layer."""
    return [
        {"step": step, "seconds": float(i)}
        | {f"kernel/{layer}/{name}": v for layer, pair in layers.items() for name, v in zip(NAMES, pair, strict=True)}
        | others
        for i, (step, layers, others) in enumerate(snapshots)
    ]


NAMES = ("cka", "kernel_velocity")


@pytest.fixture
def diverging():
    """The head is not finite from step 10 on, and the stem at step 1000."""
    return nngp.History(
        rows(
            (0, {"stem": (1.0, NAN), "head": (1.0, NAN)}, {"loss": 2.0}),
            (1, {"stem": (0.9, 1e-3), "head": (0.5, 1e-2)}, {"loss": 1.0}),
            (10, {"stem": (0.8, 1e-4), "head": (NAN, NAN)}, {"loss": NAN, "diverged": ["head"]}),
            (1000, {"stem": (NAN, NAN), "head": (NAN, float("inf"))}, {"loss": NAN, "diverged": ["stem", "head"]}),
        )
    )


def shown(table, *, color=False):
    color = {"force_terminal": True, "color_system": "standard"} if color else {}
    console = Console(file=io.StringIO(), width=80, **color)
    console.print(table)
    return console.file.getvalue()


def lines(figure):
    return {line.name: (np.asarray(line.x), np.asarray(line.y)) for line in figure.data}


def test_the_run_folder_is_remembered(run, history):
    assert history.run == run
    assert nngp.History.load(str(run)).run == run
    assert nngp.History().run is None


def test_one_set_of_numbers_in_four_shapes(history):
    pytest.importorskip("pandas")
    pytest.importorskip("xarray")
    frame, dataset = history.to_pandas(), history.to_xarray()
    assert history.steps.tolist() == [0, 5, 10, 12]
    assert (history.layers, history.metrics) == (LAYERS, ["cka", "scale", "kernel_distance", "effective_rank"])
    assert list(frame) == list(dataset) == ["seconds", *history.scalars, *history.metrics]
    for metric in history.metrics:
        table = [[row[f"kernel/{layer}/{metric}"] for layer in LAYERS] for row in history.rows]
        np.testing.assert_array_equal(history.metric(metric), table)
        np.testing.assert_array_equal(frame[metric].to_numpy().reshape(4, 3), table)
        assert dataset[metric].dims == ("step", "layer")
        np.testing.assert_array_equal(dataset[metric], table)
    for scalar in ("seconds", "loss", "epoch", "accuracy"):
        column = [row.get(scalar, NAN) for row in history.rows]
        np.testing.assert_array_equal(history.scalar(scalar), column)
        np.testing.assert_array_equal(frame[scalar].to_numpy(), np.repeat(column, 3))
        assert dataset[scalar].dims == ("step",)
        np.testing.assert_array_equal(dataset[scalar], column)
    assert frame.loc[(5, "out[0]"), "cka"] == dataset["cka"].sel(step=5, layer="out[0]").item()
    assert dataset.layer.values.tolist() == frame.index.unique("layer").tolist() == LAYERS
    assert dataset["cka"].attrs["long_name"] == "CKA to init"


def test_rows_that_lack_a_number():
    pytest.importorskip("xarray")
    history = nngp.History(
        [
            {"step": 0, "seconds": 0.0, "kernel/a/cka": 1.0},
            {"step": 2, "seconds": 1.0, "kernel/a/cka": 0.5, "kernel/a/rank": 3.0, "kernel/b/cka": 0.25, "loss": 1.0},
            {"step": 4, "seconds": 2.0, "kernel/b/cka": 0.125, "kernel/a/rank": 4.0},
        ]
    )
    assert (history.layers, history.metrics, history.scalars) == (["a", "b"], ["cka", "rank"], ["loss"])
    np.testing.assert_array_equal(history.metric("cka"), [[1, NAN], [0.5, 0.25], [NAN, 0.125]])
    np.testing.assert_array_equal(history.metric("rank"), [[NAN, NAN], [3, NAN], [4, NAN]])
    np.testing.assert_array_equal(history.to_pandas()["loss"], [NAN, NAN, 1, 1, NAN, NAN])
    np.testing.assert_array_equal(history.to_xarray()["cka"], history.metric("cka"))
    # a line joins the snapshots that hold the number, and the table tells the first and the last of them
    drawn = lines(history.plot("rank"))
    np.testing.assert_array_equal(drawn["a"], [[2, 4], [3, 4]])
    assert drawn["b"][0].size == 0
    assert lines(history.plot("cka", x="loss"))["a"] == (1, 0.5)
    text = shown(history.table())
    assert "3.00 → 4.00" in text
    assert "–" in text
    late = nngp.History({"step": i, "seconds": 0.0, "kernel/a/rank": rank} for i, rank in enumerate((NAN, 2.0, 3.0)))
    assert shown(late.table()).split()[-2:] == ["a", "3.00"]


class Growing(list):
    """Rows to which a tracker adds one each time that they are read."""

    def __iter__(self):
        step = len(self)
        self.append({"step": step, "seconds": 0.0, "loss": 1.0, "kernel/a/cka": 1.0, f"kernel/b{step}/rank": 2.0})
        return super().__iter__()


@pytest.mark.parametrize(
    "read",
    [
        lambda history: history.to_pandas(),
        lambda history: history.to_xarray(),
        lambda history: history.plot("cka"),
        lambda history: history.table(),
        lambda history: repr(history),
        lambda history: history.metric("rank"),
    ],
    ids=["to_pandas", "to_xarray", "plot", "table", "repr", "metric"],
)
def test_reading_while_a_tracker_adds_snapshots(read):
    """Everything is of the snapshots at one moment."""
    pytest.importorskip("xarray")
    history = nngp.History()
    history.rows = Growing()
    for step in range(3):
        history.rows.append({"step": step, "seconds": 0.0, "kernel/a/cka": 1.0, "kernel/c/rank": 2.0})
    before = len(history.rows)
    read(history)
    assert len(history.rows) == before + 1


def test_an_empty_history():
    pytest.importorskip("xarray")
    empty = nngp.History()
    assert (empty.layers, empty.metrics, empty.scalars, empty.diverged) == ([], [], [], None)
    assert empty.to_pandas().index.names == ["step", "layer"]
    assert dict(empty.to_xarray().sizes) == {"step": 0, "layer": 0}
    assert "no snapshots" in shown(empty.table())
    with pytest.raises(KeyError, match="'cka' was not measured; there is seconds"):
        empty.plot()


def test_plot_holds_the_numbers(history):
    pytest.importorskip("plotly")
    figure = history.plot("effective_rank")
    assert list(lines(figure)) == LAYERS
    for i, (x, y) in enumerate(lines(figure).values()):
        np.testing.assert_array_equal(y, history.metric("effective_rank")[:, i])
        np.testing.assert_array_equal(x, [0.5, 5, 10, 12])  # step 0 has a place on the log axis
    np.testing.assert_array_equal(figure.data[0].customdata, [0, 5, 10, 12])
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")
    assert figure.layout.xaxis.ticktext[0] == "init"
    assert figure.layout.title.text == "Effective rank"
    assert len({line.line.color for line in figure.data}) == 3
    # a distance of zero has no place on a log axis
    distance = history.plot("kernel_distance")
    assert distance.layout.yaxis.type == "log"
    values = history.metric("kernel_distance")
    drawn = np.transpose([y for _, y in lines(distance).values()])
    np.testing.assert_array_equal(drawn, np.where(values > 0, values, NAN))


def test_plot_of_a_scalar(history):
    pytest.importorskip("plotly")
    figure = history.plot("loss")
    np.testing.assert_array_equal(lines(figure)["loss"][1], history.scalar("loss"))
    assert (figure.layout.yaxis.type, figure.layout.showlegend) == ("log", False)
    assert history.plot("epoch").layout.yaxis.type == "linear"
    np.testing.assert_array_equal(lines(history.plot("accuracy"))["accuracy"], [[5], [0.5]])


@pytest.mark.parametrize("x", ["seconds", "epoch", "loss"])
def test_plot_over_something_else(history, x):
    pytest.importorskip("plotly")
    figure = history.plot("cka", x=x)
    assert (figure.layout.xaxis.type, figure.layout.xaxis.title.text) == ("linear", x)
    for i, line in enumerate(lines(figure).values()):
        np.testing.assert_array_equal(line, [history.scalar(x), history.metric("cka")[:, i]])


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("block/*", LAYERS[:2]),
        (["out[0]"], LAYERS[2:]),
        (["out*", "*square"], LAYERS[1:]),
        (["block/hidden", "*hidden"], LAYERS[:1]),
    ],
)
def test_layers_are_patterns_or_names(history, layers, chosen):
    pytest.importorskip("plotly")
    drawn = lines(history.plot("cka", layers=layers))
    assert list(drawn) == chosen
    for name, (_, y) in drawn.items():
        np.testing.assert_array_equal(y, history.metric("cka")[:, LAYERS.index(name)])


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda h: h.metric("ckb"), KeyError, "'ckb' was not measured; there is cka, scale, kernel_distance"),
        (lambda h: h.scalar("los"), KeyError, "'los' was not logged; there is seconds, loss, epoch, accuracy"),
        (lambda h: h.plot("ckb"), KeyError, "'ckb' was not measured; there is cka, .*, effective_rank, seconds, loss"),
        (lambda h: h.plot(x="epochs"), KeyError, "x='epochs' was not logged; there is step, seconds, loss, epoch"),
        (lambda h: h.plot(x="scale"), KeyError, "x='scale' was not logged"),
        (lambda h: h.plot(layers="conv*"), ValueError, r"layers='conv\*' matches no layer; there is block/hidden, "),
        (lambda h: h.plot(layers=["out*", "in"]), ValueError, "layers='in' matches no layer"),
        (lambda h: h.plot("loss", layers="out*"), ValueError, r"layers='out\*' is given, but 'loss' is a scalar"),
    ],
)
def test_bad_names(history, call, error, told):
    with pytest.raises(error, match=told):
        call(history)


def test_on_matplotlib_axes(history, diverging):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert history.plot("effective_rank", ax=ax) is ax
    assert [line.get_label() for line in ax.lines] == LAYERS
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], history.metric("effective_rank").T)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.5, 5, 10, 12])
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_title()) == ("log", "linear", "Effective rank")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["init", "1", "2", "5", "10"]

    ax = Figure().add_subplot()
    diverging.plot("kernel_velocity", layers="stem", x="seconds", ax=ax)
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, NAN], [1, 1e-3], [2, 1e-4], [3, NAN]])
    assert ax.lines[1].get_xdata() == [2, 2]  # where it diverged
    assert diverging.plot("cka", ax=Figure().add_subplot()).lines[-1].get_xdata() == [10, 10]
    ax.figure.draw_without_rendering()


def test_table(history):
    from nngp_plugins.charts import number

    text = shown(history.table())
    cka, scale = history.metric("cka"), history.metric("scale")
    title, *_ = text.splitlines()
    assert "step 12 · 4 snapshots · loss 0.0769 · epoch 3.00 · accuracy 0.500" in title
    for i, layer in enumerate(LAYERS):
        (line,) = [line for line in text.splitlines() if layer in line]
        # that the first CKA is one need not be said
        assert line.split()[:5] == [layer, number(cka[-1, i]), number(scale[0, i]), "→", number(scale[-1, i])]
    assert (history.table().row_count, "diverged" in text) == (3, False)


def test_a_table_is_no_wider_than_the_console(monkeypatch):
    names = [f"metric_{i}" for i in range(20)]
    row = {"step": 1, "seconds": 1.0} | {f"kernel/layer/{name}": 1.5 for name in names}
    for width in (50, 100, 300):
        monkeypatch.setattr("rich._console", Console(width=width))
        text = Console(file=io.StringIO(), width=1000)
        text.print(nngp.History([row]).table())
        printed = text.file.getvalue()
        assert max(len(line.rstrip()) for line in printed.splitlines()) <= width
        assert printed.count("1.50 → 1.50") == 20
        assert (printed.count("layer\n") == 0) if width == 300 else printed.count("layer  ") > 2


def test_numbers_of_the_table():
    from nngp_plugins.charts import number

    values = [0.0, 0.012345, 1.0, 12.34, 123.4, 999.7, -1234.0, 123456.0, 999_700.0, 1234567.0, NAN, float("inf")]
    told = ["0.00", "0.0123", "1.00", "12.3", "123", "1,000", "-1,230", "123,000", "1.00e+06", "1.23e+06", "nan", "inf"]
    assert [number(value) for value in values] == told


def test_diverged(history, diverging):
    assert (history.diverged, history.diverged_layers) == (None, {})
    assert (diverging.diverged, diverging.diverged_layers) == (10, {"head": 10, "stem": 1000})
    told = "History(4 snapshots of 2 layers: cka, kernel_velocity; diverged at step 10)"
    assert repr(diverging) == told
    assert "diverged" not in repr(history)


def test_divergence_is_no_scalar(diverging):
    pytest.importorskip("xarray")
    assert diverging.scalars == ["loss"]
    assert list(diverging.to_pandas()) == list(diverging.to_xarray()) == ["seconds", "loss", "cka", "kernel_velocity"]
    with pytest.raises(KeyError, match="'diverged' was not measured"):
        diverging.plot("diverged")


def test_divergence_is_read_back(tmp_path, diverging):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in diverging.rows))
    loaded = nngp.History.load(tmp_path)
    assert loaded.diverged_layers == diverging.diverged_layers
    np.testing.assert_array_equal(loaded.metric("kernel_velocity"), diverging.metric("kernel_velocity"))


class TestReferenceSteps:
    def history(self, *said):
        """Snapshots of two layers at steps 3, 4, 5; each says of which layers it is the reference, or nothing."""
        numbers = {"stem": (1.0, NAN), "head": (1.0, NAN)}
        given = ({} if layers is None else {"reference_of": layers} for layers in said)
        return nngp.History(rows(*((3 + i, numbers, others) for i, others in enumerate(given))))

    @pytest.mark.parametrize(
        ("said", "steps"),
        [
            ([None, None, None], {"stem": 3, "head": 3}),
            ([["stem"], None, ["head"]], {"stem": 3, "head": 5}),
            ([["head"], ["stem"], None], {"stem": 4, "head": 3}),
            ([[], ["stem", "head"], None], {"stem": 4, "head": 4}),
            ([["stem"], None, None], {"stem": 3}),
            ([None, ["head"], None], {"stem": 3, "head": 4}),  # a run of version 0.1.0 that went on
            ([], {}),
        ],
    )
    def test_are_those_of_the_rows(self, tmp_path, said, steps):
        history = self.history(*said)
        assert list(history.reference_steps.items()) == list(steps.items())
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history.rows))
        assert nngp.History.load(tmp_path).reference_steps == steps

    def test_they_are_no_scalars(self):
        pytest.importorskip("xarray")
        history = self.history(["stem"], None, ["head"])
        assert history.scalars == []
        assert list(history.to_pandas()) == list(history.to_xarray()) == ["seconds", "cka", "kernel_velocity"]
        assert "reference_of" not in shown(history.table())

    def test_titles_speak_of_init_only_if_that_is_the_reference(self):
        pytest.importorskip("plotly")
        pytest.importorskip("xarray")
        at_first, later, none_yet = (self.history(*said, None) for said in ([None], [[], ["stem"]], [[], None]))
        assert at_first.plot("cka").layout.title.text == "CKA to init"
        assert none_yet.plot("cka").layout.title.text == "CKA to init"
        assert later.plot("cka").layout.title.text == "CKA to reference"
        assert later.to_xarray()["cka"].attrs["long_name"] == "CKA to reference"
        assert later.plot("kernel_velocity").layout.title.text == "Kernel velocity, per step"
        both = nngp.compare({"a": at_first, "b": later})
        assert both.plot("cka").layout.title.text == "CKA to reference: layer head"
        assert nngp.compare({"a": at_first}).plot("cka").layout.title.text == "CKA to init: layer head"


def test_the_table_tells_divergence_in_red(diverging):
    red = "\x1b[1;31m"
    text = shown(diverging.table(), color=True)
    for layer, step in (("head", "10"), ("stem", "1,000")):
        (line,) = [line for line in text.splitlines() if layer in line]
        assert f"{red}{layer}" in line
        assert re.search(rf"{re.escape(red)} *step {step}\x1b", line)
    calm = nngp.History(
        rows(
            (0, {"stem": (1.0, NAN), "head": (1.0, NAN)}, {}),
            (5, {"stem": (0.5, 0.1), "head": (NAN, NAN)}, {"diverged": ["head"]}),
        )
    )
    (line,) = [line for line in shown(calm.table(), color=True).splitlines() if "stem" in line]
    assert red not in line
    assert "nan" not in line  # of a velocity, the first is never known


def test_plots_of_what_is_not_finite(diverging):
    pytest.importorskip("plotly")
    figure = diverging.plot("kernel_velocity")
    np.testing.assert_array_equal(lines(figure)["head"][1], [NAN, 1e-2, NAN, NAN])
    np.testing.assert_array_equal(lines(figure)["stem"][1], [NAN, 1e-3, 1e-4, NAN])
    assert (figure.layout.yaxis.type, figure.layout.title.text) == ("log", "Kernel velocity, per step")
    (mark,) = figure.layout.shapes
    assert (mark.x0, mark.x1) == (10, 10)
    assert figure.layout.annotations[0].x == 1  # the logarithm of it
    assert diverging.plot("loss", x="seconds").layout.shapes[0].x0 == 2
    json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    # nothing but nan
    nothing = nngp.History(rows((0, {"a": (NAN, NAN)}, {"diverged": ["a"]})))
    assert nothing.plot("kernel_velocity").layout.shapes[0].x0 == 0.5
    assert nothing.plot("cka").layout.xaxis.ticktext == ("init",)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([0], ["init"]),
        ([0, 3], ["init", "3"]),
        ([0, 1, 12], ["init", "1", "2", "5", "10"]),
        ([5100, 5200, 9100], ["5,100", "9,100"]),
        ([0, 1, 20_000], ["init", "1", "10", "100", "1,000", "10,000"]),
    ],
)
def test_ticks_of_steps(steps, told):
    pytest.importorskip("plotly")
    history = nngp.History({"step": step, "seconds": 0.0, "kernel/a/cka": 1.0} for step in steps)
    ticks = history.plot().layout.xaxis
    inside = [text for at, text in zip(ticks.tickvals, ticks.ticktext, strict=True) if at <= max(0.5, *steps, 0)]
    assert inside == told


def test_report_tells_divergence(tmp_path):
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")

    def f(w, x):
        return {"stem": x, "<head>": x @ w, "tail": x @ w}

    metrics = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "scale")}
    tracker = nngp.KernelTracker(f, normal(0, 6, 3), schedule=nngp.every(1), run=tmp_path, metrics=metrics)
    for step, scale in enumerate((1, 2, np.inf)):
        tracker(step, np.float32(scale) * np.ones((3, 3), np.float32))
    with pytest.warns(UserWarning, match="not finite"):
        tracker.close()
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for row in lines:
        row.pop("diverged", None)
    write_lines(tmp_path, lines)
    assert 'role="alert"' not in nngp.write_report(tmp_path).read_text()
    lines[-2]["diverged"], lines[-1]["diverged"] = ["<head>", "tail"], ["stem", "<head>", "tail"]
    write_lines(tmp_path, lines)
    page = nngp.write_report(tmp_path).read_text().split("</head>")[1]
    head, tail = "<code>&lt;head&gt;</code>", "<code>tail</code>"
    said = f"The run diverged at step 1: the kernels of {head} and {tail} are not finite, and 1 more later."
    assert f'<li class="alarm" role="alert">{said}</li>' in page
    assert page.count('"step":2,"finite":false') == 2  # the pictures of <head> and tail
    assert '"diverged":1' in page  # a dotted line in the charts
    lines[-2]["diverged"] = [f"layer_{i}" for i in range(9)]
    write_lines(tmp_path, lines)
    page = nngp.write_report(tmp_path).read_text()
    named = ", ".join(f"<code>layer_{i}</code>" for i in range(4))
    assert f"the kernels of {named} and 5 more are not finite" in page


def test_report_shows_the_last_velocity_alone(tmp_path):
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    eye = np.eye(4, dtype=np.float32)
    with nngp.KernelTracker(lambda w, x: {"a": x @ w}, eye, run=tmp_path, metrics={}) as tracker:
        tracker(0, eye)
    values = [{"kernel/a/kernel_velocity": value} for value in (NAN, 0.25, 0.125)]
    told = [{"step": i, "seconds": 0.0} | value for i, value in enumerate(values)]
    write_lines(tmp_path, told)
    page = nngp.write_report(tmp_path).read_text().split("</head>")[1]
    assert '"kernel_velocity":[[null,0.25,0.125]]' in page
    assert '"title":"Kernel velocity, per step"' in page
    assert '"compares":true' in page  # so that the table shows the last one alone


def test_nothing_is_imported_before_it_is_used():
    script = (
        "import sys, nngp_plugins as n; h = n.History([{'step': 0, 'seconds': 0.0, 'kernel/a/cka': 1.0}]); repr(h);"
        "print([m for m in ('plotly', 'pandas', 'xarray', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
