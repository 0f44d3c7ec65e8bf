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
VARIANTS = {"vit": {"patch": 4}}
SLOW = ("resnet18", "vit", "mlp-mixer", "transformer", "char-lm")  # the transformer in a scan is not among them
ELSEWHERE = {"haiku/gru": "Haiku's GRU resets the state before the product, Flax's after it"}


def noisy(params):
    """Fresh biases are zero, which would hide a bias that was dropped."""
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda w: np.asarray(w) + 0.1 * noise.normal(size=w.shape).astype(w.dtype), params)
    for cell in params.values():
        if isinstance(cell, dict) and "hn" in cell:  # NNX's GRU has no such bias
            cell["hn"]["bias"] = np.zeros_like(cell["hn"]["bias"])
    return params


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
    state = jax.tree.map(lambda leaf: leaf, params)
    nnx.replace_by_pure_dict(state, linen)
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


def statistics_to_haiku(family, linen, state):
    """Running means and variances; Haiku calls them the averages of ``mean_ema`` and ``var_ema``."""
    state = {name: dict(values) for name, values in state.items()}
    for path, value in traverse_util.flatten_dict(linen.get("batch_stats", {})).items():
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
def test_outputs_and_kernels_agree(family, spec, knobs):
    models = {framework: zoo.get(f"{framework}/{family}", spec, **knobs) for framework in ("linen", "nnx", "haiku")}
    x = example(spec)
    linen, linen_state = models["linen"].init(jax.random.key(0))
    linen = noisy(linen)
    values = {"linen": (linen, linen_state)}
    params, state = models["nnx"].shapes
    state = models["nnx"].init(jax.random.key(1))[1] if jax.tree.leaves(state) else state
    values["nnx"] = to_nnx(family, linen, params), state
    if f"haiku/{family}" not in ELSEWHERE:
        params, state = models["haiku"].shapes
        state = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), state)
        values["haiku"] = to_haiku(family, linen, params), statistics_to_haiku(family, linen_state or {}, state)
    results = {name: run(models[name], x, *of) for name, of in values.items()}
    for framework, (y, _) in results.items():
        for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(results["linen"][0]), strict=True):
            assert_close(a, b, framework)
    kernels = {name: of for name, (_, of) in results.items()}
    same = set.intersection(*(set(k) for k in kernels.values()))
    assert same or family in ("mlp", "resnet18")
    for layer in same:
        for framework, of in kernels.items():
            assert_close(of[layer], kernels["linen"][layer], f"{framework} {layer}")


def run(model, x, params, state):
    """Outputs and kernels of all layers, as one compiled function."""
    kernel_fn = nngp.empirical_nngp_fn(model.f.layers(), trace_axes=nngp.all_but_batch)
    return jax.jit(lambda p, s: (model.f(p, x, state=s), kernel_fn(x, None, p, state=s)))(params, state)


def example(spec, n=6):
    rng = np.random.default_rng(1)
    if spec.vocabulary:
        return rng.integers(0, spec.vocabulary, (n, *spec.shape), np.int32)
    return rng.normal(size=(n, *spec.shape)).astype(np.float32)
