"""``nngp-zoo kernel``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import begin
from .app import Data, Layers, Model, Seed, command
from .manners import Common, refusing, writable


@command(
    "nngp-zoo kernel linen/cnn --out k.zarr --layer 'conv*'",
    knobs=True,
    again="every finished tile is kept, and the same command goes on from there",
)
def kernel(
    common: Common,
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder to write. The same command resumes an unfinished kernel.")],
    data: Data = "digits",
    examples: Annotated[int | None, typer.Option(min=1, help="Number of training examples; all by default.")] = None,
    layer: Layers = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of examples in a forward pass.")] = 128,
    tile_size: Annotated[int | None, typer.Option(min=1, help="Number of examples along each side of a tile.")] = None,
    seed: Seed = 0,
) -> None:
    """Write the kernel of MODEL at initialisation, or those of its layers, as a Zarr group."""
    begin.check(model, data, examples=examples)
    writable("--out", out)
    net, dataset = begin.load(common, model, data)
    import jax

    from nngp_plugins import all_but_batch, empirical_nngp_fn, write_kernel

    x = dataset.train_x[:examples]
    f = net.f.layers(*layer) if layer else net.f
    params, state = net.init(jax.random.key(seed), x[:batch_size])
    if layer:
        with refusing("--layer"):
            f.layer_shapes(params, net.inputs(2), state=state)
    with refusing("--out", out):
        store = write_kernel(
            empirical_nngp_fn(f, trace_axes=all_but_batch),
            x,
            None,
            params,
            out,
            batch_size=batch_size,
            tile_size=tile_size,
            progress=not common.quiet,
            state=state,
        )
    common.say(*(f"{name}: {array.dtype} {array.shape}" for name, array in store.arrays.items()), f"kernel: {out}")
    arrays = {name: {"dtype": str(array.dtype), "shape": array.shape} for name, array in store.arrays.items()}
    common.finish({"kernel": str(out), "arrays": arrays})
