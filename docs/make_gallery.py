"""Draws the pictures of docs/gallery.md: runs the commands of that page, and reads the run folders that they leave.

python docs/make_gallery.py
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np

import nngp_plugins as nngp

HERE = Path(__file__).parent
BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#9ca3af"


def run_commands(folder: Path) -> None:
    """Runs every command of the page that keeps kernels."""
    page = (HERE / "gallery.md").read_text()
    for command in re.findall(r"^nngp-zoo (track .*--keep-kernels.*)$", page, flags=re.MULTILINE):
        subprocess.run([sys.executable, "-m", "zoo", *shlex.split(command), "--quiet"], cwd=folder, check=True)


def by_class(run: Path, of_each: int) -> np.ndarray:
    """Some examples of each class of a run's probe, in the order of the classes."""
    targets = np.load(run / "reference.npz")["targets"]
    return np.concatenate([np.flatnonzero(targets == label)[:of_each] for label in np.unique(targets)])


def cosines(kernel: np.ndarray) -> np.ndarray:
    """The cosines between the centred features of examples."""
    centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    size = np.sqrt(np.diagonal(centred))
    return centred / np.outer(size, size)


def kernels(runs: Path) -> Any:
    """The kernel of the head while a CNN trains, examples by class."""
    history, order = nngp.History.load(runs / "cnn"), by_class(runs / "cnn", 6)
    steps = [int(history.steps[np.argmin(abs(history.steps - wanted))]) for wanted in (0, 10, 40, 500)]
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
    for ax, step in zip(axes, steps, strict=True):
        kernel = history.kernel("head", step)[order][:, order]
        image = ax.imshow(cosines(kernel), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set(title=f"step {step}", xticks=[], yticks=[])
    axes[0].set_ylabel("60 digits by class, 0 – 9")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return figure


def depth(runs: Path) -> Any:
    """CKA to the initialisation of every layer at every snapshot."""
    history = nngp.History.load(runs / "deep")
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    mesh = ax.pcolormesh(np.arange(len(history) + 1), np.arange(len(history.layers) + 1), history.metric("cka").T)
    every = np.unique(np.linspace(0, len(history) - 1, 9).astype(int))
    ax.set_xticks(every + 0.5, [f"{history.steps[i]:,}" for i in every])
    ax.set_yticks(np.arange(len(history.layers)) + 0.5, history.layers)
    ax.set(xlabel="step, one column for each snapshot", ylabel="layer")
    figure.colorbar(mesh, label="CKA to initialisation")
    return figure


def spectrum(runs: Path) -> Any:
    """Eigenvalues of the kernel of the last hidden layer before and after, and where the targets lie among them."""
    history = nngp.History.load(runs / "cnn")
    layer, targets = history.layers[-2], np.load(runs / "cnn" / "reference.npz")["targets"]
    one_hot = np.eye(10)[targets.astype(int)]
    one_hot -= one_hot.mean(axis=0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for step, color, name in ((0, GREY, "initialisation"), (int(history.steps[-1]), BLUE, "after training")):
        kernel = history.kernel(layer, step).astype(float)
        centre = np.eye(len(kernel)) - 1 / len(kernel)
        values, vectors = (part[..., ::-1] for part in np.linalg.eigh(centre @ kernel @ centre))
        rank = np.arange(1, 61)
        left.loglog(rank, values[:60] / values.sum(), color=color, label=name)
        power = np.cumsum(((vectors.T @ one_hot) ** 2).sum(axis=1)) / (one_hot**2).sum()
        right.semilogx(rank, power[:60], color=color, label=name)
    left.set(xlabel="rank of the eigenvalue", ylabel="share of the trace", title=f"Spectrum of {layer}")
    right.set(
        xlabel="number of leading directions", ylabel="share of the targets", ylim=(0, 1), title="Targets in them"
    )
    right.legend(frameon=False)
    return figure


def layers(runs: Path) -> Any:
    """CKA of each layer with each other, before and after training."""
    history = nngp.History.load(runs / "deep")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    for ax, step, title in zip(axes, (0, int(history.steps[-1])), ("initialisation", "after training"), strict=True):
        grams = {
            layer: nngp.metrics.DenseGram(jax.numpy.asarray(history.kernel(layer, step))) for layer in history.layers
        }
        image = ax.imshow(np.asarray(nngp.metrics.cka_matrix(grams)), vmin=0, vmax=1, origin="lower")
        ax.set_xticks(range(len(grams)), grams, rotation=60, ha="right", fontsize=8)
        ax.set_yticks(range(len(grams)), grams if ax is axes[0] else [""] * len(grams), fontsize=8)
        ax.set(title=title)
    figure.colorbar(image, ax=axes, label="CKA")
    return figure


def infinite(runs: Path) -> Any:
    """How far kernels of finite networks are from that of an infinitely wide one."""
    x = jax.random.normal(jax.random.key(0), (20, 10))
    limit = np.asarray(nngp.closed_form.dense(1, "relu", w_var=2.0)(x))
    widths, networks = [16, 32, 64, 128, 256, 512, 1024], 30
    init, errors = nn.initializers.variance_scaling(2.0, "fan_in", "normal"), []
    for width in widths:
        hidden = nn.Sequential([nn.Dense(width, use_bias=False, kernel_init=init), nn.relu])
        f = nngp.from_linen(hidden)
        kernel_fn = nngp.empirical_nngp_fn(f)
        drawn = [kernel_fn(x, None, f.init(jax.random.key(i), x)[0]) for i in range(networks)]
        # The next layer multiplies the kernel by its variance of weights, 2.
        errors.append([np.linalg.norm(2 * np.asarray(k) - limit) / np.linalg.norm(limit) for k in drawn])
    low, middle, high = np.percentile(errors, [10, 50, 90], axis=1)
    figure, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    ax.fill_between(widths, low, high, color=BLUE, alpha=0.2, lw=0, label=f"80 % of {networks} networks")
    ax.loglog(widths, middle, "o-", color=BLUE, ms=4, label="median")
    ax.loglog(widths, middle[0] * (np.array(widths) / widths[0]) ** -0.5, ":", color=ORANGE, label="slope −1/2")
    ax.set_xticks(widths, widths, minor=False)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="width", ylabel="relative error of the kernel")
    ax.legend(frameon=False)
    return figure


def main() -> None:
    """Writes all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        run_commands(Path(folder))
        for draw in (kernels, depth, spectrum, layers, infinite):
            figure = draw(Path(folder) / "runs")
            for ax in figure.axes:
                ax.spines[["top", "right"]].set_visible(False)
            figure.savefig(HERE / "gallery" / f"{draw.__name__}.png", dpi=110)


if __name__ == "__main__":
    main()
