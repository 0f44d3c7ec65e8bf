"""``nngp-zoo features``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..features import RESERVED
from . import begin
from .app import Data, Layers, Model, Seed, command
from .manners import CommandError, Common, refusing, writable


@command("nngp-zoo features linen/cnn --run runs/cnn --out cnn.npz", knobs=True)
def features(
    common: Common,
    model: Model,
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    data: Data = "digits",
    run: Annotated[Path | None, typer.Option(help="Run folder with the weights; new ones by default.")] = None,
    probe: Annotated[int, typer.Option(help="Number of test examples, equally many of each class.")] = 250,
    layer: Layers = None,
    pool: Annotated[str | None, typer.Option(help="Pool tokens or pixels: mean, first or last.")] = None,
    seed: Seed = 0,
) -> None:
    """Save the features of the layers of MODEL with the ids of the examples, for `compare` and for other tools.

    The file holds an array (N, D) for each layer, divided by the square root of D, so that its kernel is phi phi^T; and
    `ids`, `labels` and `about`.
    """
    begin.check(model, data, probe=probe)
    if run is not None and not run.is_dir():
        raise CommandError(f"--run {run}: there is no such folder.")
    writable("--out", out, suffix=".npz")
    net, dataset = begin.load(common, model, data)
    with refusing("--probe"):
        x, y, ids = dataset.probe(probe)
    params, state = _weights(net, run, seed, dataset.train_x[:128])
    f = net.f.layers(*(layer or ()))
    with refusing("--layer"):
        f.layer_shapes(params, net.inputs(2), state=state)
    if pool is not None:
        with refusing("--pool", pool):
            f = f.pool(pool)
    from .. import written
    from ..features import features_of

    arrays: dict[str, Any] = features_of(f, params, state, x)
    for name in RESERVED:
        if name in arrays:
            raise CommandError(f"--layer: the layer {name!r} has a name that the file keeps for itself.")
    about = {"model": model, "data": data, "knobs": net.knobs, "run": run and str(run), "seed": seed, "pool": pool}
    with refusing("--out", out), written.whole(out) as file:
        np.savez(file, ids=ids, labels=y, about=np.array(json.dumps(about)), **arrays)
    common.say(*(f"{name}: {a.dtype} {a.shape}" for name, a in arrays.items()), f"features: {out}")
    common.finish({"features": str(out), "layers": {name: a.shape for name, a in arrays.items()}, "ids": len(ids)})


def _weights(net: Any, run: Path | None, seed: int, batch: Any) -> tuple[Any, Any]:
    import jax

    params, state = net.init(jax.random.key(seed), batch)
    if run is None:
        return params, state
    from .. import checkpoint

    with refusing("--run", run):
        found = checkpoint.load_weights(run, (params, state))
    if found is None:
        raise CommandError(f"--run {run}: it holds no {checkpoint.NAME}, which `nngp-zoo track` writes.")
    return found
