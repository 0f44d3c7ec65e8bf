"""What notebooks and prompts show of the objects: short, true, and text whatever the names are."""

import base64
import io
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp


@pytest.fixture(scope="module")
def model():
    f = nngp.from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]))
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    return f, x, jax.jit(f.init)(jax.random.key(1), x)[0]


def double(params, x):
    return 2 * x


def test_functions_say_what_they_are_made_of(model):
    f, _, _ = model
    assert repr(f) == "ModelFn(model=Linen Sequential)"
    assert repr(f.layers("a", "b").pool("mean")) == ("ModelFn(model=Linen Sequential, layers=['a', 'b'], pool='mean')")
    assert repr(nngp.from_callable(double)) == "ModelFn(model=Callable double)"
    assert repr(nngp.empirical_nngp_fn(double)) == "KernelFn(f=double)"
    kernel_fn = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch, cross_terms=True)
    said = "KernelFn(f=ModelFn(model=Linen Sequential), trace_axes=all_but_batch, cross_terms=True)"
    assert repr(kernel_fn) == said
    assert "<div>trace_axes: all_but_batch</div>" in kernel_fn._repr_html_()
    assert "<strong>ModelFn</strong><div>model: Linen Sequential</div>" in f._repr_html_()


def test_plans_and_summaries_are_tables_in_notebooks_and_a_line_elsewhere(model):
    f, x, params = model
    plan = nngp.plan(nngp.empirical_nngp_fn(f.layers()), x, None, params)
    summary = f.summary(params, x)
    assert repr(plan) == "KernelPlan(2 kernels of 20 × 20 examples, 8 kFLOP, 3.2 kB)"
    assert repr(summary) == "Summary(2 layers, 800 B)"
    for shown in (plan, summary):
        page = shown._repr_html_()
        assert page.startswith("<pre")
        text = re.sub(r"<[^>]*>", "", page)
        assert [line.strip() for line in text.splitlines() if line.strip()] == [
            line.strip() for line in str(shown).splitlines() if line.strip()
        ]


@pytest.mark.parametrize("form", [nngp.metrics.FeatureGram, lambda phi: nngp.metrics.DenseGram(phi @ phi.T)])
def test_grams_show_their_shape_trace_and_picture(form):
    """The picture is red where centred features point the same way, and blue where they are opposite."""
    image = pytest.importorskip("PIL.Image")
    phi = jnp.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]]) + 3
    gram = form(phi)
    assert re.fullmatch(r"\w+Gram\(shape=\(4, [24]\), dtype=float(32|64), trace=76, rank=2\)", repr(gram))
    url = re.search(r'src="data:image/png;base64,([^"]*)"', gram._repr_html_())[1]
    pixels = np.asarray(image.open(io.BytesIO(base64.b64decode(url))).convert("RGB")).astype(int)
    is_red = pixels[..., 0] > pixels[..., 2]
    np.testing.assert_array_equal(is_red, np.kron(np.eye(2), np.ones((2, 2))).astype(bool))


def test_a_rank_is_counted_where_that_is_cheap_and_a_bound_elsewhere():
    x = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)
    phi = x @ np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    kernel = nngp.metrics.DenseGram(jnp.asarray(phi @ phi.T))
    assert np.linalg.matrix_rank(phi) == 5
    assert "rank=5)" in repr(nngp.metrics.FeatureGram(jnp.asarray(phi)))
    assert "rank=2)" in repr(nngp.metrics.FeatureGram(jnp.asarray(np.eye(4, 2, dtype=np.float32) + 1)).center())
    assert "rank≤300)" in repr(kernel)
    assert "rank: ≤ 300" in kernel._repr_html_()
    for value, shown in ((0, "rank=0)"), (np.nan, "trace=nan, rank=nan)")):
        assert shown in repr(nngp.metrics.FeatureGram(jnp.asarray(np.full((4, 2), value, np.float32))))


def test_a_gram_shows_itself_where_jax_forbids_transfers_and_nan():
    gram = nngp.metrics.FeatureGram(jnp.full((4, 2), jnp.nan))
    with jax.transfer_guard("disallow"), jax.debug_nans(True):
        assert "trace=nan" in repr(gram)
        assert "<img" in gram._repr_html_()


def test_a_gram_without_numbers_shows_its_shape():
    seen = []
    jax.jit(lambda gram: seen.append(repr(gram)))(nngp.metrics.FeatureGram(jnp.ones((4, 2), "float32")))
    assert seen == ["FeatureGram(shape=(4, 2), dtype=float32)"]
    stacked = jax.vmap(nngp.metrics.FeatureGram)(jnp.ones((3, 4, 2), "float32"))
    assert repr(stacked) == "FeatureGram(shape=(3, 4, 2), dtype=float32)"
    assert "<img" not in stacked._repr_html_()


def test_runs_are_tables_and_their_names_are_text():
    rows = [{"step": step, "seconds": 0.0, "kernel/<b>/cka": 1 - step / 8} for step in range(3)]
    slow, fast = (nngp.History(rows, config={"rate": rate, "same": 1}) for rate in (0.1, 1.0))
    both = nngp.compare({"<i>": slow, "fast": fast})
    assert repr(both) == "Comparison(2 runs: <i>, fast; they differ in rate)"
    for shown in (slow, both):
        page = shown._repr_html_()
        assert "<b>" not in page
        assert "<i>" not in page
        assert "0.750" in page
    assert "&lt;b&gt;" in slow._repr_html_()


def test_a_tracker_says_how_far_it_is():
    f = lambda w, x: {"<b>": x, "out": x * w + x[::-1]}  # noqa: E731
    schedule = nngp.every(5)
    tracker = nngp.KernelTracker(f, jnp.eye(4), schedule=schedule, metrics={"cka": nngp.metrics.alignment})
    assert repr(tracker) == "KernelTracker(open, snapshots 0)"
    for step, w in enumerate((0.0, 2.0, 4.0)):
        tracker(5 * step, w, loss=10.0 / 2**step)
    tracker.flush()
    last = tracker.history.metric("cka")[-1, 1]
    assert repr(tracker) == f"KernelTracker(open, snapshots 3, step 10, loss 2.50 █▃▁, cka of out {last:.3f} █▁▅)"
    page = tracker._repr_html_()
    assert f"<div>cka of out: {last:.3f} █▁▅</div>" in page
    assert "<div>cka of &lt;b&gt;: 1.00 ▅▅▅</div>" in page
    assert "<b>" not in page
    assert page.endswith(tracker.history._repr_html_())
    tracker.close()
    assert repr(tracker).startswith("KernelTracker(closed, snapshots 3, ")


def test_configurations_are_columns_that_sort_as_numbers():
    pytest.importorskip("pandas")
    rows = [{"step": 0, "seconds": 0.0, "loss": 1.0, "kernel/a/cka": 1.0}]
    configs = {"x": {"width": 1024, "loss": "l1", "o": {"lr": 0.1}}, "y": {"width": 64, "loss": "l2"}, "z": {}}
    both = nngp.compare({name: nngp.History(rows, config={"same": 0, **config}) for name, config in configs.items()})
    assert both.config == {
        "width": {"x": 1024, "y": 64, "z": None},
        "loss": {"x": "l1", "y": "l2", "z": None},
        "o.lr": {"x": 0.1, "y": None, "z": None},
    }
    frame = both.to_pandas()
    assert frame["width"].sort_values().tolist()[:2] == [64, 1024]
    assert frame["loss"].tolist() == [1.0, 1.0, 1.0]
    assert frame["config/loss"].tolist()[:2] == ["l1", "l2"]
    assert np.isnan(frame["o.lr"].iloc[1])
    assert "same" not in frame
