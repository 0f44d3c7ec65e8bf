"""Lazy and rich training on digits: how far SGD moves the kernel of a hidden layer, by width and by learning rate.

A ReLU network 64-n-n-10 without biases learns centred one-hot targets with loss ½‖error‖² in batches of 128. The kernel
is that of its second hidden layer on 256 held-out digits. Its distance from initialisation is 1 - CKA (debiased). As n
grows, kernels move by O(1/n) (Dyer & Gur-Ari 2019, Huang & Yau 2019). 1 - CKA is quadratic, so it moves by O(1/n²).
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from rich import print
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.utils import shuffle

import nngp_plugins as nngp

WIDTHS, RATES = (64, 128, 256, 512, 1024), (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
MATCHED = 0.3  # a higher rate trains further in the same steps, so rates are also compared at this training loss


class MLP(nn.Module):
    """An MLP whose scale is in the weights (standard) or in front of them (NTK).

    Both are the same function at initialisation, but SGD trains them differently.
    """

    width: int
    ntk: bool

    @nn.compact
    def __call__(self, x):
        for i, (features, gain) in enumerate([(self.width, 2), (self.width, 2), (10, 1)]):
            scale = (gain / x.shape[-1]) ** 0.5
            inside, in_front = (1, scale) if self.ntk else (scale, 1)
            x = nn.Dense(features, use_bias=False, kernel_init=nn.initializers.normal(inside))(in_front * x)
            if i < 2:
                x = nn.relu(x)
                self.sow("intermediates", f"hidden_{i}", x)
        return x


def train(width, rate, seed, steps, ntk):
    """Trains one network; returns the history of its kernel, and of loss and accuracy on the whole training set."""
    x, labels = shuffle(*load_digits(return_X_y=True), random_state=0)
    x = jnp.asarray((x - x.mean(axis=0)) / (x - x.mean(axis=0)).std(), jnp.float32)
    x, y, probe = x[256:], jax.nn.one_hot(labels[256:], 10) - 0.1, x[:256]
    f = nngp.from_linen(MLP(width, ntk))
    params, _ = f.init(jax.random.key(seed), x[:1])
    train_state = TrainState.create(apply_fn=f, params=params, tx=optax.sgd(rate))

    @jax.jit
    def evaluate(params, x, y):
        outputs = f(params, x)
        return 0.5 * ((outputs - y) ** 2).sum(axis=1).mean(), (outputs.argmax(axis=1) == y.argmax(axis=1)).mean()

    @jax.jit
    def train_step(train_state, batch):
        grads, _ = jax.grad(evaluate, has_aux=True)(train_state.params, x[batch], y[batch])
        return train_state.apply_gradients(grads=grads)

    rng = np.random.default_rng(seed)  # every width and rate gets the same batches
    when = nngp.log_spaced(10) | nngp.every(steps)
    with nngp.KernelTracker(f.layers("hidden_1"), probe, schedule=when, metrics={"cka": nngp.metrics.cka}) as tracker:
        for step in range(steps + 1):
            if tracker.due(step):
                loss, accuracy = evaluate(train_state.params, x, y)
                tracker(step, train_state.params, loss=loss, accuracy=accuracy)
            train_state = train_step(train_state, rng.choice(len(x), 128))
    return tracker.history


def ends(runs):
    """Array ``(5, seeds, keys)``: 1 - CKA at the end and where the loss reaches MATCHED, accuracy, loss, peak loss."""

    def summarise(history):
        moved, loss = 1 - history.metric("cka")[:, 0], history.scalar("loss")
        matched = np.interp(-np.log(MATCHED), -np.log(np.minimum.accumulate(loss)), moved, right=np.nan)
        return moved[-1], matched, history.scalar("accuracy")[-1], loss[-1], loss.max()

    return np.array([[summarise(history) for history in histories] for histories in runs.values()]).T


def picture(lazy, rich):
    """Draws means and ranges over seeds against steps, widths and learning rates."""
    steps, widths, rates = next(iter(lazy.values()))[0].steps, np.array([*lazy]), np.array([*rich])
    titles = "<b>NTK</b>  learning rate 1, by width", f"<b>NTK</b>  step {steps[-1]:,}", "<b>Standard</b>  width 256"
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.06, shared_yaxes=True)

    def draw(column, x, values, color, text, where, i, mode="lines+markers+text", dash="solid"):
        at, text = {"row": 1, "col": column, "cliponaxis": False}, np.where(np.arange(len(x)) == i % len(x), text, "")
        area = {"x": [*x, *x[::-1]], "y": [*np.max(values, axis=0), *np.min(values, axis=0)[::-1]], "fill": "toself"}
        figure.add_scatter(**area, mode="none", fillcolor=color, opacity=0.2, **at)
        line = {"line": {"color": color, "dash": dash}, "textposition": where, "textfont": {"color": color}}
        figure.add_scatter(x=x, y=np.mean(values, axis=0), mode=mode, text=text, **line, **at)

    colors = sample_colorscale("Viridis", np.linspace(0, 0.88, len(lazy)).tolist())
    for color, (width, histories) in zip(colors, lazy.items(), strict=True):
        moved = [1 - history.metric("cka")[1:, 0] for history in histories]
        draw(1, steps[1:], moved, color, f"{width:,}", "middle right", -1, "lines+text")
    by_width, (by_rate, by_rate_matched) = ends(lazy)[0], ends(rich)[:2]
    slope = np.polyfit(np.log(widths), np.log(by_width).mean(axis=0), 1)[0]
    limit = by_width.mean(axis=0)[-1:] * (widths[-1] / widths[None]) ** 2
    draw(2, widths, limit, "#94a3b8", "limit: slope −2", "top right", 1, "lines+text", "dot")
    draw(2, widths, by_width, "#334155", f"slope {slope:.2f}".replace("-", "−"), "bottom left", 2)
    draw(3, rates, by_rate, colors[0], f"after {steps[-1]:,} steps", "top left", -2)
    draw(3, rates, by_rate_matched, "#21918c", f"at training loss {MATCHED}", "bottom right", 0, dash="dash")
    axis = {"type": "log", "dtick": 1, "gridcolor": "#e5e7eb", "tickformat": "~g"}
    figure.update_xaxes(**axis).update_yaxes(**axis).update_annotations(font={"size": 13})
    figure.update_layout(xaxis_title="step", xaxis2_title="width", xaxis3_title="learning rate", xaxis2_tickvals=widths)
    figure.update_layout(yaxis_title="1 − CKA to initialisation", xaxis3_tickvals=rates, template="plotly_white")
    font, margin = {"family": "system-ui, sans-serif", "color": "#334155"}, {"l": 70, "r": 30, "t": 40, "b": 50}
    return figure.update_layout(font=font, margin=margin, showlegend=False, width=900, height=330)


def main(widths=WIDTHS, rates=RATES, seeds=3, steps=2000, out=Path("runs/lazy_and_rich.html")):
    lazy = {width: [train(width, 1.0, seed, steps, ntk=True) for seed in range(seeds)] for width in widths}
    rich = {rate: [train(256, rate, seed, steps, ntk=False) for seed in range(seeds)] for rate in rates}
    for title, key, runs in (("NTK parametrisation", "width", lazy), ("standard parametrisation", "rate", rich)):
        table = Table(key, "1 - CKA", f"at loss {MATCHED}", "accuracy", "loss", "peak loss", title=title)
        for value, rows in zip(runs, ends(runs).T, strict=True):
            moved = [f"{mean:.2g} ± {sd:.1g}" for mean, sd in zip(rows.mean(axis=0), rows.std(axis=0), strict=True)][:2]
            table.add_row(f"{value:g}", *moved, *(f"{mean:.3g}" for mean in rows.mean(axis=0)[2:]))
        print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture(lazy, rich).write_html(out)
    return lazy, rich


if __name__ == "__main__":
    main()
