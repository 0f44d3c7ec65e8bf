"""The figures of the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._require import require
from ..charts import for_plotly, plotly_figure, styled
from ..history import StoredRun, history_chart

# The colours of the table name more layers than a legend can.
_LAYERS_IN_LEGEND = 8
_NO_REFERENCE = "no reference yet"


def curves(run: StoredRun) -> list[tuple[str, Any]]:
    """A figure with its title for each metric, with a line for each layer, and for each scalar."""
    figures = []
    for name in (*run.history.metrics, *run.history.scalars):
        chart = history_chart(run.history.rows, name)
        legend = {"orientation": "h", "y": -0.24, "x": 0, "font": {"size": 11}}
        card = plotly_figure(chart).update_layout(height=300, title=None, legend=legend, margin_t=24)
        figures.append((chart.title, card.update_layout(showlegend=1 < len(chart.lines) <= _LAYERS_IN_LEGEND)))
    return figures


def heat_maps(run: StoredRun, at_most: int = 8) -> list[tuple[str, Any]]:
    """A figure with its title for each layer: its reference, which is usually its first kernel, and its last kernel.

    Examples are ordered by their targets, and ticks name classes. The figure shows the centred kernel scaled to a unit
    diagonal: its entries are the cosines between centred features, so that both sides share one colour scale. Of more
    layers than ``at_most``, evenly spaced ones are shown.
    """
    order = np.argsort(run.targets, kind="stable") if run.targets.size else np.arange(run.before.shape[1])
    labels = run.targets[order] if run.has_classes else None
    shown = np.unique(np.linspace(0, len(run.layers) - 1, min(at_most, len(run.layers))).round().astype(int))
    figures = []
    for i in shown:
        step = run.before_steps[i]
        stacks = {_NO_REFERENCE if np.isnan(step) else f"step {step:.0f}": run.before}
        if run.after is not None:
            # A disk that is full may have no room for the kernels of the last snapshot.
            stacks[f"step {run.after_step}"] = run.after
        kernels = {}
        for title, stack in stacks.items():
            said = title == _NO_REFERENCE or np.isfinite(stack[i]).all()
            kernels[title if said else f"{title}: not finite"] = _cosines(stack[i])[np.ix_(order, order)]
        figures.append((run.layers[i], _heat_figure(kernels, labels)))
    return figures


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
        ticks = {"tickvals": starts + (counts - 1) / 2, "ticktext": [for_plotly(str(c)) for c in classes], "ticks": ""}
    figure.update_xaxes(constrain="domain", showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(autorange="reversed", constrain="domain", showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(scaleanchor="x", col=1)
    figure.update_yaxes(scaleanchor="x2", showticklabels=False, col=2)
    bar = {"thickness": 10, "len": 0.9, "outlinewidth": 0, "tickvals": [-1, -0.5, 0, 0.5, 1]}
    return styled(figure, height=270, coloraxis={"colorscale": "RdBu_r", "cmin": -1, "cmax": 1, "colorbar": bar})


def _cosines(kernel: np.ndarray) -> np.ndarray:
    """``K_ij / sqrt(K_ii K_jj)``; zero for an example whose features are zero, nan for numbers that are not finite."""
    kernel = np.where(np.isfinite(kernel), kernel, np.nan)
    norm = np.sqrt(np.maximum(np.diagonal(kernel), 0))
    scale = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    return kernel * scale[:, None] * scale[None, :]
