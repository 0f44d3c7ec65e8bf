"""Pictures of a run, as Plotly figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._require import require
from ._run import Run

TITLES = {
    "cka": "CKA to init",
    "relative_change": "Relative change since init",
    "kernel_distance": "Kernel distance to init",
    "scale": "Scale  tr K / N",
    "effective_rank": "Effective rank",
    "participation_ratio": "Participation ratio",
    "stable_rank": "Stable rank",
    "power_law_exponent": "Power-law exponent",
    "target_alignment": "Target alignment",
    "class_separation": "Class separation  NC1",
    "regression_accuracy": "Kernel regression, accuracy",
    "log_marginal_likelihood": "Log marginal likelihood",
}
# span decades; a change of zero, at the first snapshot, is left out
_LOG = ("relative_change", "kernel_distance", "scale", "class_separation")
_LEGEND = 8  # more layers than this are told by the colours of the table
_INIT = 0.5  # where step 0 stands on a log axis
_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


def curves(run: Run) -> list[tuple[str, Any]]:
    """A titled figure over steps for each metric, one line a layer, and for each scalar."""
    steps = run.history.steps
    figures = []
    for metric in run.history.metrics:
        values = run.history.metric(metric)
        lines = [(layer, values[:, i], color) for i, (layer, color) in enumerate(layer_colors(run.layers).items())]
        figures.append((TITLES.get(metric, metric), _line_figure(steps, lines, log_y=metric in _LOG)))
    for name in run.history.scalars:
        values = run.history.scalar(name)
        known = np.isfinite(values)
        log_y = name == "loss" and bool((values[known] > 0).all())
        line = [(name, values[known], "#334155")]
        figures.append((name.replace("_", " ").capitalize(), _line_figure(steps[known], line, log_y=log_y)))
    return figures


def heat_maps(run: Run, at_most: int = 8) -> list[tuple[str, Any]]:
    """A titled figure for each layer: its kernel before and (once the tracker is closed) after training.

    Examples are ordered by class. Shown is the centred kernel scaled to a unit diagonal, whose entries are the cosines
    between centred features, so that both sides share one colour scale. Of many layers, evenly spaced ones are shown.
    """
    order = np.argsort(run.targets, kind="stable") if run.targets.size else np.arange(run.before.shape[1])
    labels = run.targets[order] if run.targets.size else None
    shown = np.unique(np.linspace(0, len(run.layers) - 1, min(at_most, len(run.layers))).round().astype(int))
    first, last = run.history.steps[[0, -1]]
    figures = []
    for i in shown:
        stacks = {f"step {first}": run.before} | ({} if run.after is None else {f"step {last}": run.after})
        kernels = {title: _cosines(stack[i])[np.ix_(order, order)] for title, stack in stacks.items()}
        figures.append((run.layers[i], _heat_figure(kernels, labels)))
    return figures


def layer_colors(layers: list[str]) -> dict[str, str]:
    """A colour for each layer that tells its depth."""
    sample = require("plotly.colors", extra="report").sample_colorscale
    return dict(zip(layers, sample("Viridis", np.linspace(0, 0.88, len(layers)).tolist()), strict=True))


def _line_figure(steps: np.ndarray, lines: list[tuple[str, np.ndarray, str]], *, log_y: bool) -> Any:
    go = require("plotly.graph_objects", extra="report")
    figure = go.Figure()
    for name, values, color in lines:
        figure.add_scatter(
            x=np.maximum(steps, _INIT),
            y=np.where(values > 0, values, np.nan) if log_y else values,
            name=name,
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"size": 4},
            customdata=steps,
            hovertemplate="step %{customdata}: %{y:.4g}<extra>" + name + "</extra>",
        )
    powers = [10**k for k in range(len(str(max(steps, default=1))))]
    start = [_INIT] if len(steps) and steps[0] == 0 else []
    ticks = {"tickvals": [*start, *powers], "ticktext": [*["init"] * len(start), *[f"{power:,}" for power in powers]]}
    figure.update_xaxes(type="log", title="step", gridcolor="#e5e7eb", zeroline=False, **ticks)
    figure.update_yaxes(type="log" if log_y else "linear", gridcolor="#e5e7eb", zeroline=False)
    if log_y:
        figure.update_yaxes(**_log_ticks(np.concatenate([values for _, values, _ in lines])))
    legend = {"orientation": "h", "y": -0.24, "x": 0, "font": {"size": 11}}
    return _styled(figure, height=300, legend=legend, showlegend=1 < len(lines) <= _LEGEND)


def _log_ticks(values: np.ndarray) -> dict[str, Any]:
    """Ticks at powers of ten, and at twice and five times them where there are few."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return {}
    low, high = int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max())))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**k for k in range(low, high + 1) for step in steps]
    if sum(positive.min() <= tick <= positive.max() for tick in ticks) < 2:
        return {}
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _heat_figure(kernels: dict[str, np.ndarray], labels: np.ndarray | None) -> Any:
    figure = require("plotly.subplots", extra="report").make_subplots(
        rows=1, cols=2, subplot_titles=list(kernels), horizontal_spacing=0.04
    )
    for column, (title, kernel) in enumerate(kernels.items(), start=1):
        heat = {"z": kernel.astype(np.float32), "coloraxis": "coloraxis", "name": title}
        figure.add_heatmap(
            **heat, row=1, col=column, hovertemplate="examples %{x}, %{y}: cosine %{z:.3f}<extra></extra>"
        )
    ticks: dict[str, Any] = {"showticklabels": False}
    if labels is not None:
        classes, starts, counts = np.unique(labels, return_index=True, return_counts=True)
        ticks = {"tickvals": starts + (counts - 1) / 2, "ticktext": [str(c) for c in classes], "ticks": ""}
    figure.update_xaxes(constrain="domain", showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(autorange="reversed", constrain="domain", showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(scaleanchor="x", col=1)
    figure.update_yaxes(scaleanchor="x2", showticklabels=False, col=2)
    bar = {"thickness": 10, "len": 0.9, "outlinewidth": 0, "tickvals": [-1, -0.5, 0, 0.5, 1]}
    return _styled(figure, height=270, coloraxis={"colorscale": "RdBu_r", "cmin": -1, "cmax": 1, "colorbar": bar})


def _styled(figure: Any, **layout: Any) -> Any:
    return figure.update_layout(
        template="plotly_white",
        margin={"l": 48, "r": 12, "t": 24, "b": 36},
        font={"family": _FONT, "size": 12, "color": "#334155"},
        hovermode="closest",
        **layout,
    )


def _cosines(kernel: np.ndarray) -> np.ndarray:
    """``K_ij / sqrt(K_ii K_jj)``; zero where an example has no features."""
    norm = np.sqrt(np.maximum(np.diagonal(kernel), 0))
    scale = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    return kernel * scale[:, None] * scale[None, :]
