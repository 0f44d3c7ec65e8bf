"""With the same weights, a network is the same function in every framework, layer by layer where layers correspond."""

import re

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

import nngp_plugins as nngp
import zoo

from .tables import SMALL

SMALL_WIDTHS = {"resnet18": 2, "lenet": 3, "wide-resnet": 4}
# The transformer and the one in a scan have more than one block.
VARIANTS = {"vit": {"patch": 4, "depth": 1}, "mlp-mixer": {"depth": 1}, "char-lm": {"depth": 1}}
SLOW = ("resnet18", "vit", "mlp-mixer", "transformer", "char-lm")  # the transformer in a scan is not among them
# hk.nets and cells have names of their own.
NAMED_OTHERWISE = ("haiku/mlp", "haiku/resnet18", "nnx/lstm", "haiku/lstm", "nnx/gru", "haiku/gru")
ELSEWHERE = {"haiku/gru": "Haiku's GRU resets the state before the product, Flax's after it"}


def drawn(shapes):
    """Parameters or statistics of such shapes, none of them zero, which would hide a bias that was dropped."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, shape.shape).astype(shape.dtype)
        spread = 0.1 if path[-1].key in ("bias", "mean") else np.prod(shape.shape[:-1]) ** -0.5
        return (spread * rng.normal(size=shape.shape)).astype(shape.dtype)

    values = jax.tree_util.tree_map_with_path(draw, shapes)
    for cell in values.values():
        if isinstance(cell, dict) and "hn" in cell:  # NNX's GRU has no such bias
            cell["hn"]["bias"] = np.zeros_like(cell["hn"]["bias"])
    return values


def fused(cell, gates, what, of):
    return np.concatenate([cell[f"{what}{gate}"][of] for gate in gates], axis=-1)


def to_nnx(family, linen, params):
    """NNX has the same names, and the gates of a recurrent cell side by side."""
    linen = dict(linen)
    for name in [name for name in linen if name.startswith("cell_")]:
        cell, gates = linen.pop(name), "ifgo" if family == "lstm" else "rzn"
        side = {"lstm": "h", "gru": "i"}[family]
        dense = {f"dense_{s}": {"kernel": fused(cell, gates, s, "kernel")} for s in "ih"}
        dense[f"dense_{side}"]["bias"] = fused(cell, gates, side, "bias")
        linen[name.replace("cell", "rnn")] = {"cell": dense}
    return filled(params, linen)


def filled(shapes, values):
    state = jax.tree.map(lambda leaf: leaf, shapes)
    nnx.replace_by_pure_dict(state, values)
    return state


def haiku_path(family, path):
    *module, leaf = path
    name = "/".join(module)
    if family == "mlp":
        layers = {"dense_0": "linear_0", "dense_1": "linear_1", "head": "linear_2"}
        name = f"mlp/~/{layers[name]}"
    if family == "resnet18":
        name = re.sub(r"group_(\d)_block_(\d)", r"block_group_\1/~/block_\2", name).replace("/conv", "/~/conv")
        name = re.sub(r"(\w*)norm(_\d)?", lambda m: (m[1] or "/~/") + "batchnorm" + (m[2] or ""), name)
        name = name.replace("//", "/").replace("/shortcut", "/~/shortcut")
        name = {"stem": "initial_conv", "stem_batchnorm": "initial_batchnorm", "head": "logits"}.get(name, name)
        name = f"resnet/~/{name}" if name != "logits" else "resnet/~/logits"
    name = name.replace("blocks/stack", "blocks/stack/block") or "~"
    return name, leaf


def to_haiku(family, linen, params):
    """Haiku names weights in its own way, and keeps the scales of batch normalisation in images."""
    linen, of = dict(linen), {"kernel": "w", "bias": "b", "embedding": "embeddings"}
    cells = {name: linen.pop(name) for name in [*linen] if name.startswith("cell_")}
    found = {}
    for path, value in traverse_util.flatten_dict(linen).items():
        name, leaf = haiku_path(family, path)
        keys = params[name]
        key = leaf if leaf in keys else "offset" if leaf == "bias" and "offset" in keys else of.get(leaf, leaf)
        found.setdefault(name, {})[key] = value.reshape(keys[key].shape)
    for name, cell in cells.items():
        w = np.concatenate([fused(cell, "igfo", side, "kernel") for side in "ih"])
        bias = {gate: cell[f"h{gate}"]["bias"] - (gate == "f") for gate in "igfo"}  # Haiku adds 1 to the forget gate
        b = np.concatenate([bias[gate] for gate in "igfo"])
        found[name.replace("cell", "rnn") + "/linear"] = {"w": w, "b": b}
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, dict(params))
    return found


def statistics_to_haiku(family, statistics, state):
    """Running means and variances; Haiku calls them the averages of ``mean_ema`` and ``var_ema``."""
    state = {name: dict(values) for name, values in state.items()}
    for path, value in traverse_util.flatten_dict(statistics).items():
        name, leaf = haiku_path(family, path)
        values = state[f"{name}/~/{leaf}_ema"]
        values["average"] = value.reshape(values["average"].shape)
    return state


def assert_close(a, b, what):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error < 2e-5, f"{what}: {error:.1e}"


def cases():
    for family, spec in SMALL.items():
        knobs = {"width": SMALL_WIDTHS.get(family, 16)}
        marks = pytest.mark.exhaustive if family in SLOW else ()
        yield pytest.param(family, spec, knobs | VARIANTS.get(family, {}), id=family, marks=marks)
    yield pytest.param(
        "transformer", SMALL["transformer"], {"width": 16, "scan_layers": True, "remat": True}, id="scanned"
    )


@pytest.mark.parametrize(("family", "spec", "knobs"), [*cases()])
def test_outputs_layers_and_kernels_agree(family, spec, knobs):
    models = {framework: zoo.get(f"{framework}/{family}", spec, **knobs) for framework in ("linen", "nnx", "haiku")}
    x = example(spec)
    linen, linen_state = map(drawn, models["linen"].shapes)
    statistics = linen_state.get("batch_stats", {})
    values = {"linen": (linen, linen_state)}
    params, state = models["nnx"].shapes
    values["nnx"] = to_nnx(family, linen, params), filled(state, statistics)
    if f"haiku/{family}" not in ELSEWHERE:
        params, state = models["haiku"].shapes
        state = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), state)
        values["haiku"] = to_haiku(family, linen, params), statistics_to_haiku(family, statistics, state)
    layers = {name: layers_of(models[name], x, *of) for name, of in values.items()}
    kernels = kernels_of(models["linen"], x, linen, linen_state)
    for layer, y in layers["linen"].items():
        assert_close(kernels[layer], gram(y), f"kernel of {layer}")
    for framework, of in layers.items():
        assert_close([*of.values()][-1], [*layers["linen"].values()][-1], f"outputs of {framework}")
        for layer in {*of} & {*layers["linen"]}:
            assert_close(gram(of[layer]), gram(layers["linen"][layer]), f"{framework} {layer}")
        if f"{framework}/{family}" not in NAMED_OTHERWISE and "scan_layers" not in knobs:
            assert shapes_of(of) == shapes_of(layers["linen"])


def layers_of(model, x, params, state):
    """What the layers return, in forward order, so that the last one is the output."""
    names = []

    @jax.jit
    def run(params, state):
        layers = model.f.layers()(params, x, state=state)
        names.extend(layers)
        return [*layers.values()]

    values = run(params, state)
    return dict(zip(names, values, strict=True))


def kernels_of(model, x, params, state):
    kernel_fn = nngp.empirical_nngp_fn(model.f.layers(), trace_axes=nngp.all_but_batch)
    return jax.jit(lambda params, state: kernel_fn(x, None, params, state=state))(params, state)


def gram(y):
    phi = np.asarray(y, np.float64).reshape(len(y), -1)
    return phi @ phi.T / phi.shape[1]


def shapes_of(layers):
    return {name: y.shape for name, y in layers.items()}


def example(spec, n=6):
    rng = np.random.default_rng(1)
    if spec.vocabulary:
        return rng.integers(0, spec.vocabulary, (n, *spec.shape), np.int32)
    return rng.normal(size=(n, *spec.shape)).astype(np.float32)
