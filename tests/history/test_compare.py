"""Several runs side by side."""

import io
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal
from helpers.lines import write_lines
from rich.console import Console

import nngp_plugins as nngp
from nngp_plugins import compare

NAN = float("nan")


def train(folder, layers, every, rate=0.1, steps=7):
    """A run with a layer for each name; the runs below share some of their steps and layers."""

    def f(w, x):
        return {name: jnp.tanh(x @ (w + i)) for i, name in enumerate(layers)}

    metrics = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "kernel_distance")}
    with nngp.KernelTracker(f, normal(0, 6, 3), schedule=nngp.every(every), run=folder, metrics=metrics) as tracker:
        for step in range(steps):
            tracker(step, np.eye(3, dtype=np.float32) * np.float32(1 + rate * step), loss=rate / (1 + step))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [train(root / "small", ["b", "y"], 2), train(root / "deep", ["b", "c", "z"], 3, rate=0.5)]


@pytest.fixture
def both(folders):
    return compare(folders)


def shown(table):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(table)
    return console.file.getvalue()


def lines(figure):
    return {line.name: (np.asarray(line.x), np.asarray(line.y)) for line in figure.data}


def test_names(folders, tmp_path):
    loaded = [nngp.History.load(folder) for folder in folders]
    for runs in (folders, map(str, folders), loaded, (folders[0], loaded[1])):
        comparison = compare(runs)
        assert list(comparison.runs) == ["small", "deep"]
        assert [history.steps.tolist() for history in comparison.runs.values()] == [[0, 2, 4, 6], [0, 3, 6]]
    assert list(compare({"a": folders[0], 64: loaded[1], "again": folders[0]}).runs) == ["a", "64", "again"]
    assert list(compare([nngp.History(), *folders, nngp.History()]).runs) == ["run 0", "small", "deep", "run 3"]
    nested = [shutil.copytree(folders[0], tmp_path / place) for place in ("x/0", "y/0", "y/1")]
    assert list(compare(nested).runs) == ["x/0", "y/0", "y/1"]


@pytest.mark.parametrize(
    ("runs", "error", "told"),
    [
        (lambda a: a, TypeError, "runs=.*small'\\) is not several runs; pass a list of run folders"),
        (str, TypeError, "is not several runs"),
        (nngp.History.load, TypeError, "is not several runs"),
        (lambda a: 3, TypeError, "runs=3 is not several runs"),
        (lambda a: [a, 3], TypeError, "runs holds 3, which is neither a run folder nor a History"),
        (lambda a: [], ValueError, "runs is empty"),
        (lambda a: {}, ValueError, "runs is empty"),
        (lambda a: [a, str(a)], ValueError, r"runs\[1\], 'small', is there twice"),
        (lambda a: {"1": a, 1: a}, ValueError, "runs has two of one name; there is 1, 1"),
        (lambda a: [a.parent], FileNotFoundError, r"holds no metrics\.jsonl"),
    ],
)
def test_bad_runs(folders, runs, error, told):
    with pytest.raises(error, match=told):
        compare(runs(folders[0]))
    history = nngp.History()
    with pytest.raises(ValueError, match="is there twice"):
        compare([history, history])


def test_to_pandas(both):
    pytest.importorskip("pandas")
    frame = both.to_pandas()
    assert frame.index.names == ["run", "step", "layer"]
    assert len(frame) == 4 * 2 + 3 * 3
    for name, history in both.runs.items():
        for column in ("seconds", "loss", "cka", "kernel_distance"):
            np.testing.assert_array_equal(frame.loc[name][column], history.to_pandas()[column])


def test_to_xarray_joins_steps_and_layers(both):
    pytest.importorskip("xarray")
    dataset = both.to_xarray()
    assert dataset.run.values.tolist() == ["small", "deep"]
    assert dataset.step.values.tolist() == [0, 2, 3, 4, 6]
    assert dataset.layer.values.tolist() == ["b", "y", "c", "z"]  # in the order of the runs, not of the alphabet
    for name, history in both.runs.items():
        for i, step in enumerate(dataset.step.values):
            of_step = dataset.sel(run=name, step=step)
            if step in history.steps:
                (row,) = np.flatnonzero(history.steps == step)
                assert of_step["loss"] == history.scalar("loss")[row]
                known = dict(zip(history.layers, history.metric("cka")[row], strict=True))
            else:
                assert np.isnan(of_step["loss"])
                known = {}
            np.testing.assert_array_equal(of_step["cka"], [known.get(layer, NAN) for layer in "bycz"], err_msg=str(i))


def test_runs_that_measured_different_things():
    pytest.importorskip("xarray")
    runs = {
        "a": nngp.History([{"step": 0, "seconds": 0.0, "kernel/x/cka": 1.0, "loss": 2.0}]),
        "b": nngp.History([{"step": 1, "seconds": 0.5, "kernel/y/rank": 3.0}]),
        "none yet": nngp.History(),
    }
    both = compare(runs)
    assert (both.layers, both.metrics, both.scalars) == (["x", "y"], ["cka", "rank"], ["loss"])
    dataset, frame = both.to_xarray(), both.to_pandas()
    assert dict(dataset.sizes) == {"run": 3, "step": 2, "layer": 2}
    for name, where in (("cka", ("a", 0, "x")), ("rank", ("b", 1, "y"))):
        assert np.isfinite(dataset[name]).sum() == np.isfinite(frame[name]).sum() == 1
        assert dataset[name].sel(dict(zip(("run", "step", "layer"), where, strict=True))) == frame[name][where]
    assert dataset["loss"].sel(run="a", step=0) == 2
    assert np.isfinite(dataset["loss"]).sum() == 1
    pytest.importorskip("plotly")
    assert list(lines(both.plot("rank"))) == ["b"]
    assert list(lines(both.plot("loss"))) == ["a"]
    text = shown(both.table())
    assert "the last layer of each run" in text
    (line,) = [line for line in text.splitlines() if "none yet" in line]
    assert line.count("–") == 4  # step, loss, cka, rank


def test_plot_of_the_last_layer(both):
    pytest.importorskip("plotly")
    figure = both.plot("kernel_distance")
    assert figure.layout.title.text == "Kernel distance to init: the last layer of each run"
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    for name, last in (("small", 1), ("deep", 2)):
        x, y = lines(figure)[name]
        values = both.runs[name].metric("kernel_distance")[:, last]
        np.testing.assert_array_equal(y, np.where(values > 0, values, NAN))
        np.testing.assert_array_equal(x, np.maximum(both.runs[name].steps, 0.5))


def test_plot_of_a_layer_or_scalar(both):
    pytest.importorskip("plotly")
    figure = both.plot("cka", layer="b", x="loss")
    assert figure.layout.title.text == "CKA to init: layer b"
    for name, history in both.runs.items():
        np.testing.assert_array_equal(lines(figure)[name], [history.scalar("loss"), history.metric("cka")[:, 0]])
    assert list(lines(both.plot("cka", layer="c"))) == ["deep"]
    figure = both.plot("loss", x="seconds")
    assert figure.layout.title.text == "Loss"
    for name, history in both.runs.items():
        np.testing.assert_array_equal(lines(figure)[name], [history.scalar("seconds"), history.scalar("loss")])


def test_colors_tell_runs_apart():
    pytest.importorskip("plotly")
    for count in (2, 8, 9, 20):
        history = [nngp.History([{"step": 0, "seconds": 0.0, "kernel/a/cka": 1.0}]) for _ in range(count)]
        assert len({line.line.color for line in compare(history).plot().data}) == count


def test_on_matplotlib_axes(both):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert both.plot("cka", layer="b", ax=ax) is ax
    for line, history in zip(ax.lines, both.runs.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), history.metric("cka")[:, 0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["small", "deep"]


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda c: c.plot("ckb"), KeyError, "'ckb' was not measured; there is cka, kernel_distance, seconds, loss"),
        (lambda c: c.plot(x="epoch"), KeyError, "x='epoch' was not logged; there is step, seconds, loss"),
        (lambda c: c.plot(layer="d"), ValueError, "layer='d' is in no run; there is b, y, c, z"),
        (lambda c: c.plot("loss", layer="z"), ValueError, "layer='z' is given, but 'loss' is a scalar"),
        (lambda c: c.table("d"), ValueError, "layer='d' is in no run; there is b, y, c, z"),
    ],
)
def test_bad_names(both, call, error, told):
    with pytest.raises(error, match=told):
        call(both)


def test_table(both):
    from nngp_plugins.charts import number

    for layer, title in ((None, "At the last snapshot: the last layer of each run"), ("b", "layer b")):
        text = shown(both.table(layer))
        assert title in text.splitlines()[0]
        for name, history in both.runs.items():
            i = -1 if layer is None else history.layers.index(layer)
            cells = [number(history.metric(metric)[-1, i]) for metric in ("cka", "kernel_distance")]
            (line,) = [line for line in text.splitlines() if name in line]
            assert line.split()[-4:] == ["6", number(history.scalar("loss")[-1]), *cells]
        assert "diverged" not in text


def test_diverged(tmp_path, folders):
    pytest.importorskip("plotly")
    bad = shutil.copytree(folders[0], tmp_path / "bad")
    rows = [json.loads(line) for line in (bad / "metrics.jsonl").read_text().splitlines()]
    rows[2] |= {"diverged": ["y"], "kernel/y/cka": NAN}
    write_lines(bad, rows)
    both = compare([folders[0], bad])
    assert list(lines(both.plot())) == ["small", "bad (diverged at step 4)"]
    assert np.isnan(lines(both.plot())["bad (diverged at step 4)"][1]).tolist() == [False, False, True, False]
    calm, red = [line for line in shown(both.table()).splitlines() if "small" in line or "bad" in line]
    assert "\x1b[1;31mbad" in red
    assert re.search(r"\x1b\[1;31m *step 4\x1b", red)
    assert "31m" not in calm
