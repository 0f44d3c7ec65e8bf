"""Writes docs/metrics.md from ``nngp.metrics.catalogue()``, and its picture if Chromium is installed.

python docs/make_metrics.py
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from nngp_plugins import metrics

HERE = Path(__file__).parent
SEEDS, N, D = range(5), 200, 64
Y = np.arange(N) % 4
UNRELATED = "cka of unrelated features, over D / N"
INTRO = f"""# Metrics

Metrics are numbers from kernels. Each one is the published quantity (in `nngp_plugins/metrics`).
`nngp.metrics.catalogue()` holds this page as data. A tracker logs `metrics.DEFAULT`:
{", ".join(f"`{name}`" for name in metrics.DEFAULT)}.
If it has targets, it also logs {", ".join(f"`{name}`" for name in metrics.of_targets(Y))}.

All metrics take Grams: a `DenseGram(K)`, a `FeatureGram(phi)`, which does not form `K = phi phiᵀ` if D < N, what
`nngp.gram(f, x, params)` makes of a model, or an array `(N, N)`. They run under `jit` and `grad`. Over layers, use
`jax.lax.map`: on a CPU, JAX 0.10 never finishes a `vmap` of eigenvalues beside a `vmap` of a Cholesky decomposition.
NaN or infinity in features gives nan. `bootstrap` gives a standard error over examples, and
`permutation_test` the p-value of `cka`, `rsa`, `distance_correlation`, `mutual_knn` or `gulp`: how often features that
have nothing to do with each other agree as much.

Metrics that are invariant to scale have their value for features of any size that float32 holds, although the products
of features of 1e-20 or 1e20 leave its range: kernels are divided by powers of 4, which round nothing. A tracker's
`scale` is right beyond the range of float32.

Targets are **labels** if they are strings, integers or booleans `(N,)` or `(N, 1)`, whole floats `(N,)`, or one-hot
columns `(N, C)` of any dtype. They are **numbers** to regress on if they are other floats `(N,)`, any floats `(N, 1)`,
multi-hot columns, or other floats `(N, C)`. Other integers `(N, C)`, such as the ids of tokens, are refused.
`nngp.metrics.labels_of(y)` says which; trackers and reports keep to the same rule.

`nngp.metrics.entry` registers a metric of your own: one function and one entry. With `tracked=True`, trackers log it.

Other libraries take Grams as `np.asarray(gram)`, `gram.as_scipy()` (a `LinearOperator`) and `gram.as_lineax()`.

![Each metric as features turn from noise to four classes](metrics.png)

Each panel shows {N} examples of four classes with {D} features. On the left they are noise, on the right only class
means. Lines are means of {len(SEEDS)} draws, and shades their range. Metrics of two kernels compare with the kernel on
the right. The last panel shows CKA of unrelated features over D / N, debiased (solid) and biased (dashed).
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRO, *map(section, metrics.catalogue())])


def section(entry: metrics.Entry) -> str:
    """How to read a metric."""
    needs = {"classes" if entry.needs_classes else "targets": entry.needs_targets, "eigenvalues": entry.needs_spectrum}
    lines = {
        "Title in charts": entry.title + (", on a logarithmic axis" if entry.log_axis else ""),
        "Tracked by default": tracked(entry),
        "Needs": " and ".join(need for need, needed in needs.items() if needed) or "only kernels",
        "Tells": entry.tells,
        "Range": entry.range,
        "Invariant to": ", ".join(entry.invariant),
        "Misleads": entry.misleads,
        "Cost": entry.cost,
        "Source": entry.source,
    }
    return f"## {entry.name}\n\n`{entry.formula}`\n\n" + "".join(f"- **{k}**: {v}.\n" for k, v in lines.items())


def tracked(entry: metrics.Entry) -> str:
    """Whether a tracker logs the metric by default."""
    if not entry.tracked:
        return "no"
    against = ", compared with an earlier snapshot" if entry.relative_to_reference else ""
    return ("yes, if there are targets" if entry.needs_targets else "yes") + against


def features(signal: float, seed: int) -> metrics.FeatureGram:
    """A mixture of noise and class means."""
    rng = np.random.default_rng(seed)
    noise, means = rng.standard_normal((N, D)), rng.standard_normal((4, D))
    phi = (signal * means[Y] + (1 - signal) * noise * np.arange(1, D + 1) ** -0.5) / np.sqrt(D)
    return metrics.FeatureGram(jnp.asarray(phi, jnp.float32))


def unrelated(d: int, seed: int) -> list[metrics.FeatureGram]:
    """Two sets of d random features of 50 examples."""
    phi = np.random.default_rng(seed).standard_normal((2, 50, d)).astype(np.float32)
    return [metrics.FeatureGram(jnp.asarray(p)) for p in phi]


def panels() -> dict[str, Callable[..., Any]]:
    """The function that each panel draws, of a Gram and of the Gram on the right."""
    pairs = ("cka", "alignment", "kernel_distance", "relative_change", "bures_distance", "gulp")
    pairs += ("rsa", "distance_correlation", "mutual_knn")
    singles = ("scale", "effective_rank", "von_neumann_entropy", "participation_ratio", "stable_rank")
    targets = ("target_alignment", "class_separation", "regression_accuracy", "log_marginal_likelihood")
    return {
        **{name: getattr(metrics, name) for name in pairs},
        "centered_kernel_velocity": partial(metrics.centered_kernel_velocity, steps=1),
        "eigenvector_overlap, k = 3": partial(metrics.eigenvector_overlap, k=3),
        **{name: alone(getattr(metrics, name)) for name in singles},
        "spectrum, λ₁": alone(lambda a: metrics.spectrum(a, 1)[0]),
        "power_law_exponent, ranks 11–50": alone(partial(metrics.power_law_exponent, window=(11, 50))),
        "condition_number, log₁₀": alone(lambda a: jnp.log10(metrics.condition_number(a))),
        **{name: alone(partial(getattr(metrics, name), y=Y)) for name in targets},
        "class_block_means, same − other": alone(same_less_other),
        "neural_collapse, NC2 angles": alone(lambda a: metrics.neural_collapse(a, Y)["nc2_angles"]),
    }


def alone(metric: Callable[[metrics.Gram], Any]) -> Callable[[metrics.Gram, metrics.Gram], Any]:
    """A metric of one Gram as a function of two; it ignores the other Gram."""
    return lambda a, b: metric(a)


def same_less_other(a: metrics.Gram) -> Any:
    """Mean of the kernel within classes minus its mean between classes."""
    means = metrics.class_block_means(a, Y)
    return means.trace() / 4 - (means.sum() - means.trace()) / 12


def picture() -> str:
    """A page with a panel for each metric."""
    from plotly.subplots import make_subplots

    drawn, signals, columns = panels(), np.linspace(0, 0.95, 12), 5
    figure = make_subplots(
        -(-(len(drawn) + 1) // columns),
        columns,
        subplot_titles=[*drawn, UNRELATED],
        horizontal_spacing=0.045,
        vertical_spacing=0.075,
    )

    def draw(i: int, x: Any, values: Any, dash: str = "solid") -> None:
        at = {"row": i // columns + 1, "col": i % columns + 1}
        values = np.asarray(values, float)
        known = np.isfinite(values).all(axis=0)
        x, values = np.asarray(x)[known], values[:, known]
        edges = {"x": [*x, *x[::-1]], "y": [*values.max(axis=0), *values.min(axis=0)[::-1]]}
        figure.add_scatter(**edges, fill="toself", mode="none", fillcolor="rgba(37,99,235,0.15)", **at)
        figure.add_scatter(x=x, y=values.mean(axis=0), mode="lines", line={"color": "#2563eb", "dash": dash}, **at)

    for i, metric in enumerate(drawn.values()):
        run = jax.jit(metric)
        draw(i, signals, [[run(features(s, seed), features(1.0, seed)) for s in signals] for seed in SEEDS])
    widths = [5, 10, 20, 50, 100, 200]
    for debiased, dash in ((True, "solid"), (False, "dash")):
        values = [[metrics.cka(*unrelated(d, seed), debiased=debiased) for d in widths] for seed in SEEDS]
        draw(len(drawn), np.array(widths) / 50, values, dash)
    figure.update_layout(showlegend=False, template="plotly_white", width=1400, height=1050, font={"size": 11})
    figure.update_annotations(font={"size": 12})
    figure.update_layout(margin={"l": 40, "r": 20, "t": 40, "b": 30})
    return figure.to_html(include_plotlyjs=True, config={"displayModeBar": False})


def main() -> None:
    """Writes the page, and the picture if Chromium is installed."""
    (HERE / "metrics.md").write_text(page())
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "metrics.html"
        html.write_text(picture())
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1420,1090",
            "--hide-scrollbars",
        ]
        command += ["--virtual-time-budget=10000", f"--screenshot={HERE / 'metrics.png'}", f"file://{html}"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    # A palette makes the file half as large.
    drawn = Image.open(HERE / "metrics.png").convert("RGB")
    drawn.quantize(64).save(HERE / "metrics.png", optimize=True)


if __name__ == "__main__":
    main()
