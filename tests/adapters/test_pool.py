"""Pooled layers: each pooled kernel against one by hand."""

import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import assert_close, gram, normal
from helpers.parameters import drawn, drawn_nnx

import nngp_plugins as nngp

N, T, D = 6, 7, 5
LENGTHS = np.array([7, 3, 1, 5, 2, 6])
MASK = np.arange(T) < LENGTHS[:, None]
TOKENS = np.where(MASK, np.random.default_rng(0).integers(1, 9, (N, T)), 0)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        attended = nn.MultiHeadDotProductAttention(1, name="attention")(x, mask=nn.make_attention_mask(mask, mask))
        return x + nn.Dense(D, name="dense")(nn.relu(attended)), None


class Encoder(nn.Module):
    """A transformer whose tokens do not look at padding, with its blocks in a scan."""

    @nn.compact
    def __call__(self, inputs):
        x = nn.Embed(9, D, name="embed")(inputs["tokens"])
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2, in_axes=nn.broadcast)
        x, _ = stack(name="blocks")(x, inputs["mask"])
        return nn.Dense(3, name="head")(jnp.mean(x, axis=1, where=inputs["mask"][..., None]))


INPUTS = {"tokens": TOKENS, "mask": MASK}
F = nngp.from_linen(Encoder())
PARAMS = drawn(F, INPUTS)
NAMES = ["embed", "blocks/0/dense", "blocks/1/dense"]
LAYERS = F.layers(*NAMES)
POOLED = {
    "mean": lambda y: np.stack([row[:n].mean(axis=0) for row, n in zip(y, LENGTHS, strict=True)]),
    "first": lambda y: y[:, 0],
    "last": lambda y: np.stack([row[n - 1] for row, n in zip(y, LENGTHS, strict=True)]),
    "max": lambda y: np.stack([row[:n].max(axis=0) for row, n in zip(y, LENGTHS, strict=True)]),
}


def largest(y, mask):
    return jnp.max(y, axis=1, where=mask[..., None], initial=-jnp.inf)


def of_tokens(inputs):
    return inputs["tokens"]


MASKS = {"mean": "mask", "first": of_tokens, "last": "mask", "max": of_tokens}


def kernel_fn_of(how, layers=LAYERS):
    return nngp.empirical_nngp_fn(
        layers.pool(largest if how == "max" else how, mask=MASKS[how]), trace_axes=nngp.all_but_batch
    )


@functools.cache
def computed():
    """The whole outputs, and all pooled kernels, of one compiled function."""
    kernel_fns = {how: kernel_fn_of(how) for how in MASKS}

    @jax.jit
    def run(x):
        return LAYERS(PARAMS, x), {how: kernel_fn(x, None, PARAMS) for how, kernel_fn in kernel_fns.items()}

    return run(INPUTS)


def by_hand(how):
    outputs, _ = computed()
    return {name: gram(POOLED[how](np.asarray(outputs[name], np.float64))) for name in NAMES}


@pytest.mark.parametrize("how", POOLED)
def test_kernels_of_pooled_layers(how):
    f = LAYERS.pool(largest if how == "max" else how, mask=MASKS[how])
    kernels, expected = computed()[1][how], by_hand(how)
    assert list(kernels) == list(f.layer_shapes(PARAMS, INPUTS)) == NAMES
    assert {y.shape for y in f.layer_shapes(PARAMS, INPUTS).values()} == {(N, D)}
    assert_close([kernels[name] for name in NAMES], [expected[name] for name in NAMES])


@pytest.mark.parametrize("how", ["mean", "max"])
def test_masks_are_cut_into_batches(how):
    """Those of a name, and those of a function."""
    kernels = nngp.batch(kernel_fn_of(how, F.layers("embed")), 4)(INPUTS, None, PARAMS)
    assert_close(kernels["embed"], by_hand(how)["embed"])


def test_grams_and_trackers_of_pooled_layers():
    f, expected = F.layers(*NAMES[1:]).pool("last", mask="mask"), by_hand("last")
    grams = nngp.gram(f, INPUTS, PARAMS, batch_size=4)
    with nngp.KernelTracker(f, INPUTS, metrics={"scale": lambda k, _: nngp.metrics.scale(k)}) as tracker:
        tracker(0, PARAMS)
    assert tracker.history.layers == NAMES[1:]
    for i, name in enumerate(NAMES[1:]):
        assert_close(grams[name].dense(), expected[name])
        assert_close(tracker.history.metric("scale")[0, i], np.trace(expected[name]) / N)


def test_sentences_padded_to_another_length_have_the_same_kernel():
    longer = {name: np.pad(array, [(0, 0), (0, 16)]) for name, array in INPUTS.items()}
    layers = F.layers("blocks/1/dense")
    fs = {how: layers.pool(how, mask="mask") for how in ("mean", "first", "last")} | {"unpooled": layers}
    kernel_fns = {how: nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch) for how, f in fs.items()}
    kernels = jax.jit(lambda x: {how: kernel_fn(x, None, PARAMS) for how, kernel_fn in kernel_fns.items()})
    short, long = kernels(INPUTS), kernels(longer)
    unpooled = [of.pop("unpooled")["blocks/1/dense"] for of in (short, long)]
    assert_close(long, short)
    assert nngp.metrics.cka(*unpooled) < 0.999  # which is why layers can be pooled


def test_padding_in_front_and_positions_that_are_nan():
    y = normal(0, N, T, D)
    padded = np.where(MASK[:, ::-1, None], y, np.nan)
    expected = {"mean": np.nanmean(padded, axis=1), "first": [r[T - n] for r, n in zip(y, LENGTHS, strict=True)]}
    expected["last"] = y[:, -1]
    f = nngp.from_callable(lambda params, x: x["y"])
    for how, pooled in expected.items():
        assert_close(f.pool(how, mask="mask")(None, {"y": padded, "mask": MASK[:, ::-1]}), np.asarray(pooled))


def test_images_are_pooled_over_height_and_width_in_every_framework():
    x = normal(0, N, 4, 3, 2)
    outputs = {}

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(5, (3, 3), name="conv")(x)

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 5, (3, 3), rngs=rngs)

        def __call__(self, x):
            return self.conv(x)

    network = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2D(5, 3, name="conv")(x)))
    outputs["linen"] = (f := nngp.from_linen(Linen())), drawn(f, x)
    outputs["nnx"] = nngp.from_nnx(model := drawn_nnx(lambda: Nnx(nnx.Rngs(0)))), model
    outputs["haiku"] = (f := nngp.from_haiku(network)), drawn(f, x)
    mask = normal(1, N, 4, 3) > 0
    for f, params in outputs.values():
        fs = f, f.layers("conv").pool(), f.pool("last"), f.pool(mask=lambda x: mask)
        whole, pooled, last, masked = jax.jit(lambda params, x, fs=fs: [f(params, x) for f in fs])(params, x)
        whole = np.asarray(whole)
        assert_close(pooled["conv"], whole.mean(axis=(1, 2)))
        assert_close(last, whole[:, -1, -1])
        assert_close(masked, (whole * mask[..., None]).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))[:, None])


def test_time_in_front():
    f = nngp.from_linen(nn.RNN(nn.SimpleCell(D), time_major=True, name="rnn"), batch_axis=1)
    inputs_mask = f.pool("mean", mask=lambda x: x[..., 0] > 0)
    x = normal(0, T, N, 3)
    fs, params = (f, f.pool("last"), inputs_mask), drawn(f, x)
    whole, last, mean = jax.jit(lambda params, x: [f(params, x) for f in fs])(params, x)
    assert whole.shape == (N, T, D)
    assert_close(last, whole[:, -1])
    counts = np.moveaxis(x, 1, 0)[..., 0] > 0
    expected = (np.asarray(whole) * counts[..., None]).sum(axis=1) / counts.sum(axis=1)[:, None]
    assert_close(mean, expected)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(inputs_mask.layers("output")), 4)
    assert_close(kernel_fn(x, None, params)["output"], gram(expected))


def test_an_example_without_positions_has_no_features():
    f, mask = nngp.from_callable(lambda params, x: x["y"]), MASK.copy()
    mask[2] = False
    for how in ("mean", "first", "last"):
        found = np.asarray(f.pool(how, mask="mask")(None, {"y": normal(0, N, T, D), "mask": mask}))
        assert np.isnan(found[2]).all()
        assert np.isfinite(np.delete(found, 2, axis=0)).all()


def test_a_mask_that_is_a_keyword_argument_is_cut_into_batches():
    f = nngp.from_callable(lambda params, x, mask: x * mask[..., None]).pool(mask="mask")
    y = normal(0, N, T, D)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(f), 4)
    assert_close(kernel_fn(y, None, None, mask=MASK), gram(POOLED["mean"](y)))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"^pool\('max'\) takes one of 'mean', 'first', 'last', or a function"):
        LAYERS.pool("max")
    with pytest.raises(
        TypeError, match=r"^pool\(mask=array\(.*\) takes a key of the inputs, .* not be cut into batches"
    ):
        LAYERS.pool("mean", mask=MASK)
    with pytest.raises(
        ValueError,
        match=r"^pool\(mask='maks'\) names a key of the inputs or a keyword argument; this call has '(mask|tokens)'",
    ):
        LAYERS.pool(mask="maks")(PARAMS, INPUTS)
    with pytest.raises(ValueError, match=r"^the mask of pool\(...\) has shape \(6,\); it needs one value for each pos"):
        LAYERS.pool(mask=lambda x: x["mask"][:, 0])(PARAMS, INPUTS)
    with pytest.raises(ValueError, match=r"shape \(6, 6\), but layer 'embed' has \(6, 7, 5\), whose .*\('!embed'\)"):
        LAYERS.pool(mask=lambda x: x["mask"][:, 1:])(PARAMS, INPUTS)
    with pytest.raises(ValueError, match=r"^the function of pool\(...\) returned \(7, 5\) for layer 'embed' of shape"):
        LAYERS.pool(lambda y: y.mean(axis=0))(PARAMS, INPUTS)
