import os
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
N, CLASSES = 24, 3
STEPS = 12


def f(params, x):
    hidden = jax.nn.relu(x @ params["w"])
    return {"hidden <b>": hidden, "out": hidden @ params["v"]}  # a name that must not become markup


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a plain function whose parameters drift, with shuffled classes."""
    folder = tmp_path_factory.mktemp("runs") / "drift"
    keys = jax.random.split(jax.random.key(0), 4)
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), N // CLASSES))
    x = jax.random.normal(keys[0], (N, 5)) + 3 * jax.nn.one_hot(targets, 5)
    params = {"w": jax.random.normal(keys[1], (5, 16)), "v": jax.random.normal(keys[2], (16, 4))}
    schedule = nngp.every(3)
    config = {"learning rate": 0.1, "note": "<script>alert(1)</script>"}
    with nngp.KernelTracker(f, x, targets=targets, schedule=schedule, run=folder, config=config) as tracker:
        for step in range(STEPS + 1):
            tracker(step, jax.tree.map(lambda p, step=step: p * (1 + 0.1 * step), params), loss=1 / (1 + step))
    nngp.write_report(folder, title="A <drifting> run")
    return folder


def test_one_page_without_a_network(run):
    page = (run / "report.html").read_text()
    assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)=["'](?!data:)""", page)
    assert "url(http" not in page.split("</style>")[0]
    assert "A &lt;drifting&gt; run" in page
    assert "<script>alert(1)" not in page
    assert "hidden <b>" not in page.split("</head>")[1]


def test_browser_draws_every_figure(run):
    if BROWSER is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have a Chromium to open the report in")
        pytest.skip("no Chromium on the PATH")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={run / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom", f"file://{run / 'report.html'}"]
    browser = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in browser.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    body = browser.stdout.split("<body>")[1]
    curves, kernels = body.split("Kernels before and after")
    # thirteen metrics of two layers, and the loss
    assert curves.count('class="trace scatter') == 13 * 2 + 1
    assert curves.count("card curve") == 14
    for title in ("CKA to init", "Effective rank", "Loss"):
        assert f"<h3>{title}</h3>" in curves
    # two layers, each before and after
    assert kernels.count('class="hm"') == 2 * 2
    assert len(re.findall(r'<image [^>]*href="data:image/png', kernels)) == 4
    assert f"step {STEPS}" in kernels


def test_figures_hold_the_numbers_of_the_run(run):
    from nngp_plugins.history import StoredRun
    from nngp_plugins.report import curves, heat_maps

    loaded = StoredRun.load(run)
    titled = dict(curves(loaded))
    ranks = [line.y for line in titled["Effective rank"].data]
    np.testing.assert_array_equal(np.transpose(ranks), nngp.History.load(run).metric("effective_rank"))
    assert titled["CKA to init"].layout.xaxis.type == "log"
    np.testing.assert_allclose(titled["Loss"].data[0].y, 1 / (1 + nngp.History.load(run).steps))

    # examples in the order of their class, entries the cosines of centred features: unit diagonal, block means
    (name, figure), *_ = heat_maps(loaded)
    assert name == "hidden <b>"
    before = np.asarray(figure.data[0].z)
    np.testing.assert_allclose(np.diagonal(before), 1, atol=1e-5)
    order = np.argsort(loaded.targets, kind="stable")
    kernel = loaded.before[0][np.ix_(order, order)]
    size = np.sqrt(np.diagonal(kernel))
    np.testing.assert_allclose(before, kernel / np.outer(size, size), atol=1e-5)
    blocks = before.reshape(CLASSES, N // CLASSES, CLASSES, N // CLASSES).mean(axis=(1, 3))
    off_diagonal = blocks[~np.eye(CLASSES, dtype=bool)]
    assert blocks.diagonal().min() > off_diagonal.max() + 0.3


def test_many_layers_show_some_kernels_and_all_curves(tmp_path):
    def deep(w, x):
        return {f"layer_{i:02}": x @ (w + i * jnp.eye(4)) for i in range(20)}

    with nngp.KernelTracker(deep, jax.random.normal(jax.random.key(0), (6, 4)), run=tmp_path) as tracker:
        tracker(0, jnp.eye(4))
    page = nngp.write_report(tmp_path).read_text()
    body = page.split("</head>")[1]
    assert body.count("card kernel") == 8
    assert "8 of 20 layers are shown" in body
    assert body.count('class="dot"') == 20


def test_a_run_that_goes_on_has_its_last_kernels(tmp_path):
    tracker = nngp.KernelTracker(f, jnp.eye(5), run=tmp_path, schedule=nngp.every(1))
    params = {"w": jnp.eye(5), "v": jnp.eye(5, 2)}
    with pytest.raises(FileNotFoundError, match="holds no snapshot yet"):
        nngp.write_report(tmp_path)
    for step in range(3):
        tracker(step, params, loss=3.5)
    tracker.flush()
    body = nngp.write_report(tmp_path).read_text().split("</head>")[1]
    assert body.count("step 0") > 0
    assert body.count('"text":"step 2"') == 2
    (tmp_path / "last.npz").unlink()  # as after a full disk
    assert nngp.write_report(tmp_path).read_text().count('"text":"step 2"') == 0
    tracker.close()


def late(step, x):
    """The stem is a layer as others; the branches are zero until their step."""
    y = x * (1 + 0.1 * step)
    return {"stem": y, "a": y * (step >= 2), "b": y * (step >= 2), "<c>": y * (step >= 4), "zero": 0 * y}


@pytest.mark.filterwarnings("ignore:the kernel of layer:UserWarning")
class TestReferences:
    def written(self, run, steps=6, **options):
        options = {"metrics": {"cka": nngp.metrics.cka}, "schedule": nngp.every(1), **options}
        with nngp.KernelTracker(late, jnp.eye(6), run=run, **options) as tracker:
            for step in range(steps):
                tracker(step, np.float32(step))
        return nngp.write_report(run).read_text().split("</head>")[1]

    def titles(self, run):
        """The titles of the two heat maps of each layer."""
        from nngp_plugins.history import StoredRun
        from nngp_plugins.report import heat_maps

        found = heat_maps(StoredRun.load(run))
        return {name: [text.text for text in figure.layout.annotations] for name, figure in found}

    def test_layers_that_are_zero_at_first(self, tmp_path):
        page = self.written(tmp_path)
        for sentence in (
            "The reference of a layer is its first kernel that is neither zero nor constant.",
            "It is the kernel of step 0 for stem.",
            "It is the kernel of step 2 for a and b.",
            "It is the kernel of step 4 for &lt;c&gt;.",
            "There is none yet for zero.",
        ):
            assert sentence in page
        assert "CKA to reference" in page
        assert "CKA to init" not in page
        assert self.titles(tmp_path) == {
            "stem": ["step 0", "step 5"],
            "a": ["step 2", "step 5"],
            "b": ["step 2", "step 5"],
            "<c>": ["step 4", "step 5"],
            "zero": ["no reference yet", "step 5"],
        }

    def test_a_step_of_ones_own(self, tmp_path):
        page = self.written(tmp_path / "run", reference=3)
        assert "is its first kernel from step 3 on that is neither zero nor constant." in page
        assert "It is the kernel of step 3 for a, b and stem." in page
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
