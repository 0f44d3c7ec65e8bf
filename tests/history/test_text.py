"""Names of layers, metrics, scalars and labels are shown as they are: nothing takes them for markup or for commands."""

import io
import json
import re

import numpy as np
import pytest
import rich.console
from helpers.lines import line_of

import nngp_plugins as nngp
from nngp_plugins.charts import printable

pytestmark = pytest.mark.once

LINK, ESCAPE = "<a href='https://evil.example'>x</a>", "a\x1b[2J\x1b]0;owned\x07"
NAMES = [LINK, ESCAPE, "_hidden", r"$\frac$", "&lt;b&gt;", "%{x} {y}", "a\nb", "$x$", r"\$5", "\u202eabc", "\ud800"]


def rows_of(names, metric="cka", scalar="loss"):
    return [
        {"step": step, "seconds": float(step), scalar: 1.0, **{f"kernel/{name}/{metric}": 1.0 + step for name in names}}
        for step in range(3)
    ]


def shown_by_plotly(text):
    """What Plotly draws of a text: entities become characters, and no tag or formula is in it."""
    assert not re.search(r"<|>|\$", text)
    return re.sub(r"&(#\d+|lt|gt|amp);", lambda found: {"&lt;": "<", "&gt;": ">", "&amp;": "&"}.get(found[0]) or
                  chr(int(found[1][1:])), text)  # fmt: skip


def test_a_name_is_printable():
    assert [printable(name) for name in ("block/Dense_0", "größe", "层", "a b")] == [
        "block/Dense_0",
        "größe",
        "层",
        "a b",
    ]
    for name in NAMES:
        assert printable(name).isprintable()
    assert len({printable(name) for name in NAMES}) == len(NAMES)


def test_plotly():
    pytest.importorskip("plotly")
    figure = nngp.History(rows_of(NAMES)).plot("cka")
    assert [shown_by_plotly(line.name) for line in figure.data] == [printable(name) for name in NAMES]
    for line, name in zip(figure.data, NAMES, strict=True):
        head, _, extra = line.hovertemplate.removesuffix("</extra>").partition("<extra>")
        assert head == "step %{customdata:,d}: %{y:.4g}"
        assert "%{" not in extra
        assert shown_by_plotly(extra) == printable(name)
    figure = nngp.History(rows_of("a", LINK.replace("/", "|"), "%{y}<b>")).plot("%{y}<b>", x="%{y}<b>")
    assert shown_by_plotly(figure.layout.title.text) == shown_by_plotly(figure.layout.xaxis.title.text) == "%{y}<b>"
    assert figure.data[0].hovertemplate.count("%{") == 2
    both = nngp.compare({LINK: nngp.History(rows_of("a")), "$x$": nngp.History(rows_of("a"))}).plot()
    assert [shown_by_plotly(line.name) for line in both.data] == [LINK, "$x$"]


def test_matplotlib():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib.figure import Figure

    names = [name for name in NAMES if name != "\ud800"]
    ax = Figure().add_subplot()
    ax.plot([1, 2], [1, 1], label="mine")
    nngp.History(rows_of(names, scalar=r"$\frac$")).plot("cka", ax=ax)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [text.replace(r"\$", "$") for text in texts] == ["mine", *map(printable, names)]
    ax.figure.draw_without_rendering()  # a formula would be read here
    ax = Figure().add_subplot()
    nngp.History(rows_of("a", scalar=r"$\frac$")).plot(r"$\frac$", x=r"$\frac$", ax=ax)
    ax.figure.draw_without_rendering()
    assert ax.get_xlabel() == r"\$\frac\$"


@pytest.mark.parametrize("terminal", [True, False])
def test_terminals(terminal):
    """No control character gets out but those of rich itself, which begin with other letters."""

    def sent(show):
        options = {"force_terminal": terminal, "width": 1000, "height": 100, "legacy_windows": False}
        console = rich.console.Console(file=io.StringIO(), **options)
        show(console)
        return console.file.getvalue()

    def write(console):
        writer = nngp.writers.Console(console=console, metrics=[ESCAPE, "cka"])
        for row in rows:
            writer.write_scalars(row["step"], {k: v for k, v in row.items() if k != "step"})
        writer.close()

    rows = [*rows_of([ESCAPE, "b"], scalar=ESCAPE), {"step": 9, "seconds": 9.0, f"kernel/b/{ESCAPE}": 1.0}]
    history = nngp.History(rows)
    for text in (
        sent(lambda console: console.print(history.table())),
        sent(lambda console: console.print(nngp.compare({ESCAPE: history}).table())),
        sent(write),
        repr(history),
    ):
        assert printable(ESCAPE) in text
        assert "\x1b[2J" not in text
        assert "\x1b]" not in text
        assert "\x07" not in text
    with pytest.raises(ValueError, match=r"matches no layer; there is a\\x1b") as error:
        history.plot("cka", layers="c")
    assert "\x1b" not in str(error.value)


def test_a_report_of_a_prepared_folder(tmp_path):
    pytest.importorskip("plotly")
    labels, metrics = np.array([LINK] * 2 + ["$y$"] * 2), {"scale": nngp.metrics.DEFAULT["scale"]}
    with nngp.KernelTracker(
        lambda w, x: {LINK: w * x, "b": w * x},
        np.eye(4, dtype=np.float32),
        targets=labels,
        run=tmp_path,
        metrics=metrics,
    ) as tracker:
        tracker(0, 1.0)
        tracker(1, 2.0)
    rows = nngp.History.load(tmp_path).rows
    rows = [{**row, LINK: 1.0, "\ud800": 1.0, f"kernel/b/{LINK}": 2.0} for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(map(line_of, rows)))
    page = nngp.write_report(tmp_path).read_text().split("</head>")[1]
    assert "<a href" not in page
    # The script of the page makes text nodes of all that stands in this element.
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [one["name"] for one in data["kernels"]["classes"]] == ["$y$", LINK]
    assert data["layers"] == nngp.History.load(tmp_path).layers
