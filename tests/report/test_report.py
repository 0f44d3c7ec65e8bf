import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import urllib.parse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
N, CLASSES = 24, 3
STEPS = 12
CKA = {"cka": nngp.metrics.cka}


def f(params, x):
    hidden = jax.nn.relu(x @ params["w"])
    return {"hidden <b>": hidden, "out": hidden @ params["v"]}  # a name that must not become markup


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def eye(n, *columns):
    return np.eye(n, *columns, dtype=np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a plain function whose parameters drift, with shuffled classes."""
    folder = tmp_path_factory.mktemp("runs") / "drift"
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.repeat(np.arange(CLASSES), N // CLASSES))
    x = normal(rng, N, 5) + 3 * np.eye(5, dtype=np.float32)[targets]
    params = {"w": normal(rng, 5, 16), "v": normal(rng, 16, 4)}
    schedule = nngp.every(3)
    config = {"learning rate": 0.1, "note": "<script>alert(1)</script>"}
    with nngp.KernelTracker(f, x, targets=targets, schedule=schedule, run=folder, config=config) as tracker:
        for step in range(STEPS + 1):
            tracker(step, {name: p + np.float32(0.05 * step) for name, p in params.items()}, loss=1 / (1 + step))
    nngp.write_report(folder, title="A <drifting> run")
    return folder


def test_one_page_without_a_network(run):
    page = (run / "report.html").read_text()
    assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)=["'](?!data:)""", page)
    assert "url(http" not in page
    assert "default-src 'none'" in page
    assert "A &lt;drifting&gt; run" in page
    assert "<script>alert(1)" not in page
    assert "hidden <b>" not in page.split("</head>")[1]


def test_findings_come_first(run):
    body = (run / "report.html").read_text().split("<body>")[1]
    for sentence in nngp.report.findings(nngp.History.load(run)):
        said = re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(sentence))
        assert 0 < body.index(said) < body.index('id="charts"')


FOUND = """
  const text = "FOUND" + btoa(encodeURIComponent(JSON.stringify(found))) + "END";
  document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: text }));
"""
PROBE = f"""<script>
const all = (what) => [...document.querySelectorAll(what)];
const send = (node, event) => node.dispatchEvent(event);
const kernel = () => all(".kernel image")[0].getAttribute("href");
const mapOfMetrics = () => all("image").find((image) => !image.closest(".kernel")).getAttribute("href");
const found = {{ kernel: kernel(), map: mapOfMetrics(), focus: all("svg[tabindex]").length }};
const slider = all("input[type=range]")[0], select = all("select")[0], head = all("thead button")[0];
slider.value = 0; send(slider, new Event("input")); found.kernelBefore = kernel();
select.value = "effective_rank"; send(select, new Event("change")); found.mapAfter = mapOfMetrics();
head.click(); head.click(); found.sorted = all("tbody th").map((th) => th.textContent);
const isNamed = (svg) => svg.getAttribute("role") === "img" && svg.getAttribute("aria-label");
found.unnamed = all("svg").filter((svg) => !isNamed(svg)).length;
send(all("svg")[0], new KeyboardEvent("keydown", {{ key: "ArrowLeft" }})); found.tip = all(".tip")[0].textContent;
for (const fold of all("details")) fold.open = true;
setTimeout(() => {{
  found.lines = all("details path.line").length;
  found.markup = all("main b").length - all("summary > b").length;
  {FOUND}
}}, 200);
</script></body>"""


def opened(page, tmp_path, script=PROBE):
    """What a browser without a network finds after the script has used the page; its console must stay empty."""
    if BROWSER is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have a Chromium to open the report in")
        pytest.skip("no Chromium on the PATH")
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", script))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", f"file://{copy}"]
    browser = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in browser.stderr.splitlines() if "CONSOLE" in line] == []
    found = browser.stdout.split("FOUND")[1].split("END")[0]
    return json.loads(urllib.parse.unquote(base64.b64decode(found).decode()))


def test_a_browser_draws_the_page_and_its_controls_change_it(run, tmp_path):
    found = opened(run / "report.html", tmp_path)
    assert found["kernelBefore"] != found["kernel"]
    assert found["mapAfter"] != found["map"]
    assert found["sorted"] == ["out", "hidden <b>"]
    assert found["unnamed"] == found["markup"] == 0
    assert found["focus"] >= 6
    assert "hidden <b>: 0.9" in found["tip"]
    # thirteen metrics of two layers, and the loss
    assert found["lines"] == 13 * 2 + 1


def data_of(page):
    """The numbers that the page holds."""
    text = page.read_text().split('<script type="application/json" id="data">')[1]
    return json.loads(text.split("</script>")[0])


def pixels(url):
    """The levels of a picture, by an independent reader."""
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def test_the_page_holds_the_numbers_of_the_run(run):
    from nngp_plugins.history import StoredRun

    loaded, data = StoredRun.load(run), data_of(run / "report.html")
    (shown,) = data["runs"]
    history = loaded.history
    assert list(shown["metrics"]) == history.metrics
    np.testing.assert_allclose(np.array(shown["metrics"]["effective_rank"]).T, history.metric("effective_rank"), 1e-4)
    np.testing.assert_allclose(shown["scalars"]["loss"], history.scalar("loss"), 1e-4)
    assert shown["metrics"]["kernel_velocity"][0][0] is None
    assert shown["nan"]["kernel_velocity"] == dict.fromkeys(history.layers, "there is no snapshot before")

    # examples in the order of their class; the picture is red where their features are alike
    order = np.argsort(loaded.targets, kind="stable")
    kernel = loaded.before[0][np.ix_(order, order)]
    cosines = kernel / np.sqrt(np.outer(np.diagonal(kernel), np.diagonal(kernel)))
    first = data["kernels"]["frames"][0][0]
    same = np.equal.outer(loaded.targets[order], loaded.targets[order])
    np.testing.assert_allclose(first["within"], cosines[same & ~np.eye(N, dtype=bool)].mean(), atol=1e-4)
    np.testing.assert_allclose(first["between"], cosines[~same].mean(), atol=1e-4)
    image = pixels(first["picture"])
    assert image.shape == (N, N, 3)
    assert ((image[..., 0] > image[..., 2]) == (cosines > 1 / 64))[np.abs(cosines) > 1 / 32].all()
    np.testing.assert_allclose([one["start"] for one in data["kernels"]["classes"]], [0, 1 / 3, 2 / 3], atol=1e-4)


def test_spectra_and_similarities_are_those_of_the_kernels(run):
    from nngp_plugins.history import StoredRun

    loaded, data = StoredRun.load(run), data_of(run / "report.html")
    ranks, last = np.array(data["spectra"]["ranks"]), data["spectra"]["layers"][1][-1]
    values, vectors = np.linalg.eigh(loaded.after[1].astype(float))
    values, vectors = values[::-1], vectors[:, ::-1]
    known = [i for i, share in enumerate(last["share"]) if share is not None]
    assert len(known) == 4  # as many as the layer has features
    np.testing.assert_allclose(
        np.array(last["share"])[known].astype(float), (values / values.sum())[ranks - 1][known], 1e-3
    )
    targets = np.equal.outer(loaded.targets, np.unique(loaded.targets)).astype(float)
    targets -= targets.mean(axis=0)
    power = np.cumsum(np.sum((vectors.T @ targets) ** 2, axis=1)) / np.sum(targets**2)
    np.testing.assert_allclose(np.array(last["power"])[known], power[ranks - 1][known], atol=1e-3)
    between = np.array(data["ckaLayers"]["each"][1]["cka"])
    np.testing.assert_allclose(between[0, 1], nngp.metrics.cka(loaded.after[0], loaded.after[1]), atol=1e-4)


def test_many_layers_show_some_kernels_and_all_curves(tmp_path):
    def deep(w, x):
        return {f"layer_{i:02}": x @ (w + i * eye(4)) for i in range(20)}

    with nngp.KernelTracker(deep, normal(np.random.default_rng(0), 6, 4), run=tmp_path, metrics=CKA) as tracker:
        tracker(0, eye(4))
    data = data_of(nngp.write_report(tmp_path))
    assert len(data["runs"][0]["layers"]) == 20
    assert data["kernels"]["layers"][::11] == ["layer_00", "layer_19"]


def test_a_run_that_goes_on_has_its_last_kernels(tmp_path):
    tracker = nngp.KernelTracker(f, eye(5), run=tmp_path, schedule=nngp.every(1), metrics=CKA)
    params = {"w": eye(5), "v": eye(5, 2)}
    with pytest.raises(FileNotFoundError, match="holds no snapshot yet"):
        nngp.write_report(tmp_path)
    for step in range(3):
        tracker(step, params, loss=3.5)
    tracker.flush()
    assert steps_of(data_of(nngp.write_report(tmp_path))) == {"hidden <b>": [0, 2], "out": [0, 2]}
    (tmp_path / "last.npz").unlink()  # as after a full disk
    assert steps_of(data_of(nngp.write_report(tmp_path))) == {"hidden <b>": [0], "out": [0]}
    tracker.close()


def steps_of(data):
    """The steps of the kernels that are shown of each layer."""
    kernels = data["kernels"]
    return {
        layer: [frame["step"] for frame in frames]
        for layer, frames in zip(kernels["layers"], kernels["frames"], strict=True)
    }


def test_kept_kernels_are_shown_at_every_snapshot(tmp_path):
    x, options = normal(np.random.default_rng(0), 8, 4), {"schedule": nngp.every(1), "metrics": CKA}
    with nngp.KernelTracker(lambda w, x: {"w": x @ w}, x, run=tmp_path, keep_kernels=True, **options) as tracker:
        for step in range(4):
            tracker(step, eye(4) + np.float32(step))
    data = data_of(nngp.write_report(tmp_path))
    assert steps_of(data) == {"w": [0, 1, 2, 3]}
    (steps,) = data["ckaSteps"]
    np.testing.assert_allclose(steps["cka"][0], nngp.History.load(tmp_path).metric("cka")[:, 0], atol=1e-3)


def drifted(by):
    w = eye(3)
    w[0] += by
    return w


def test_several_runs_lie_over_each_other(tmp_path):
    """Runs that differ by their seed alone are one line with a band; any name stays text."""
    for rate in (0.1, 1.0):
        for seed in (0, 1):
            config = {"rate": rate, "seed": seed, "same": 3}
            x = normal(np.random.default_rng(seed), 6, 3)
            options = {"metrics": CKA, "config": config, "schedule": nngp.every(1)}
            with nngp.KernelTracker(lambda w, x: x @ w, x, run=tmp_path / f"<b>{rate}-{seed}", **options) as tracker:
                for step in range(3):
                    tracker(step, drifted(rate * step), loss=1 / (1 + step))
    page = nngp.write_report(sorted(tmp_path.iterdir()))
    assert page == tmp_path / "report.html"
    data = data_of(page)
    assert data["differs"]["rate"] == {f"<b>{rate}-{seed}": rate for rate in (0.1, 1.0) for seed in (0, 1)}
    assert list(data["differs"]) == ["rate", "seed"]
    script = f"""<script>
    const all = (what) => [...document.querySelectorAll(what)];
    const found = {{ names: all(".legend button").map((button) => button.textContent),
      bands: all(".band").length, lines: all("path.line").length, markup: all("main b").length }};
    {FOUND}</script></body>"""
    found = opened(page, tmp_path, script)
    assert found == {"names": ["rate 0.1 (mean of 2)", "rate 1 (mean of 2)"], "bands": 2, "lines": 2, "markup": 0}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The page of a small grid, and its runs: one cell has no run, and one of another's two seeds diverged."""
    folder = tmp_path_factory.mktemp("grid")
    options = {name: getattr(nngp.metrics, name) for name in ("cka", "relative_change")}
    x, runs = normal(np.random.default_rng(0), 6, 3), {}
    for width, rate, seed in ((8, 0.1, 0), (8, 0.1, 1), (8, 1.0, 0), (16, 1.0, 0), (16, 1.0, 1)):
        diverges, config = (width, seed) == (16, 0), {"rate": rate, "width": width, "seed": seed}
        run = folder / f"{width}-{rate}-{seed}"
        with nngp.KernelTracker(g, x, run=run, metrics=options, config=config, schedule=nngp.every(1)) as tracker:
            for step in range(2 if diverges else 3 + seed):
                drift = np.nan if diverges and step else (rate + seed / 9) * step / width
                tracker(step, drifted(drift))
        runs[width, rate, seed] = tracker.history
    return nngp.write_report(sorted(folder.iterdir())), runs


def g(w, x):
    return {"in": x @ w, "out": jnp.tanh(x @ w)}


@pytest.mark.filterwarnings("ignore:the kernels? of layers?:UserWarning")
def test_a_map_over_two_numbers_of_the_configuration(grid, tmp_path):
    """Means over seeds at the last step that all runs have; a menu chooses the layer, and a screen reader hears all."""
    page, runs = grid
    script = f"""<script>
    const part = document.querySelector("#what-moves-the-kernels").closest("section");
    const seen = () => ({{ texts: [...part.querySelectorAll("svg text")].map((text) => text.textContent),
      label: part.querySelector("svg").getAttribute("aria-label") }});
    const found = {{ before: seen(), note: part.querySelector("p").textContent }};
    const menus = part.querySelectorAll("select");
    menus[1].value = "in"; menus[1].dispatchEvent(new Event("change")); found.layer = seen();
    menus[0].value = "cka"; menus[0].dispatchEvent(new Event("change")); found.metric = seen();
    {FOUND}</script></body>"""
    found = opened(page, tmp_path, script)
    assert found["note"].endswith(
        "Means of up to 2 runs at step 2, the last that all runs have, but for those that diverged."
    )
    for state, metric, layer in (
        ("before", "relative_change", 1),
        ("layer", "relative_change", 0),
        ("metric", "cka", 0),
    ):
        at = {key: history.metric(metric)[2 if len(history) > 2 else -1, layer] for key, history in runs.items()}
        mean = {
            ("16", "1"): at[16, 1.0, 1],
            ("8", "0.1"): (at[8, 0.1, 0] + at[8, 0.1, 1]) / 2,
            ("8", "1"): at[8, 1.0, 0],
        }
        said = re.findall(r"width (\d+), rate ([\d.]+): ([\d.]+)", found[state]["label"])
        assert [(width, rate) for width, rate, _ in said] == list(mean)
        np.testing.assert_allclose([float(value) for *_, value in said], list(mean.values()), rtol=6e-3)
        assert {"1 of 2 diverged", *(value for *_, value in said)} < set(found[state]["texts"])


def late(step, x):
    """The stem is a layer as others; the branches are zero until their step."""
    y = x * (1 + 0.1 * step)
    return {"stem": y, "a": y * (step >= 2), "b": y * (step >= 2), "<c>": y * (step >= 4), "zero": 0 * y}


@pytest.mark.filterwarnings("ignore:the kernels? of layers?:UserWarning")
class TestReferences:
    def written(self, run, steps=6, **options):
        options = {"metrics": CKA, "schedule": nngp.every(1), **options}
        with nngp.KernelTracker(late, eye(6), run=run, **options) as tracker:
            for step in range(steps):
                tracker(step, np.float32(step))
        return nngp.write_report(run).read_text().split("</head>")[1]

    def test_layers_that_are_zero_at_first(self, tmp_path):
        page = self.written(tmp_path)
        for sentence in (
            "The reference of a layer is its first kernel that is neither zero nor constant.",
            "It is the kernel of step 0 for <code>stem</code>.",
            "It is the kernel of step 2 for <code>a</code> and <code>b</code>.",
            "It is the kernel of step 4 for <code>&lt;c&gt;</code>.",
            "There is none yet for <code>zero</code>.",
        ):
            assert sentence in page
        assert "CKA to reference" in page
        assert "CKA to init" not in page
        assert steps_of(data_of(tmp_path / "report.html")) == {
            "stem": [0, 5],
            "a": [2, 5],
            "b": [2, 5],
            "<c>": [4, 5],
            "zero": [None, 5],
        }

    def test_a_step_of_ones_own(self, tmp_path):
        page = self.written(tmp_path / "run", reference=3)
        assert "is its first kernel from step 3 on that is neither zero nor constant." in page
        assert "It is the kernel of step 3 for <code>a</code>, <code>b</code> and <code>stem</code>." in page
        page = self.written(tmp_path / "short", steps=2, reference=3)
        assert "There is none yet for all layers." in page
        assert "CKA to init" in page

    def test_nothing_is_said_if_it_is_the_first_snapshot(self, run):
        assert "The reference of a layer" not in (run / "report.html").read_text()


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        nngp.write_report(tmp_path)


@pytest.mark.parametrize("values", [(3.2, 3.9), (0.6, 0.9), (1e-3, 10.0), (1.0, 5.0)])
def test_log_axes_have_at_least_two_ticks_or_plotlys_own(values):
    from nngp_plugins.charts import log_ticks

    ticks = log_ticks(np.array(values)).get("tickvals")
    assert ticks is None or sum(values[0] <= tick <= values[1] for tick in ticks) >= 2
