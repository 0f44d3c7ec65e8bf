"""``nngp-zoo compare``."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..families import FRAMEWORKS
from ..features import SUFFIXES, Features, features_of, read_features
from . import begin
from .app import Layers, Seed, command
from .manners import CommandError, Common, refusing, writable

DATA, PROBE, CHECKPOINT = "digits", 250, "checkpoint.npz"


@dataclass(frozen=True)
class Pair:
    """Two models, and how alike their layers are: ``cka`` and p-values ``p``, both ``(A, B)``."""

    a: Features
    b: Features
    cka: np.ndarray
    p: np.ndarray


@command("nngp-zoo compare runs/narrow runs/wide --picture cka.html", knobs=True)
def compare(
    common: Common,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="A run folder of `track`, a file of features (.npz, .npy, .pt), a MODEL with new weights, or "
            "MODEL@CHECKPOINT. One NAME is compared with itself, more than two pair by pair.",
        ),
    ],
    data: Annotated[str | None, typer.Option(help="Data of models; those of the first run, else digits.")] = None,
    probe: Annotated[int | None, typer.Option(help="Examples; those of the first run, else 250.")] = None,
    layer: Layers = None,
    permutations: Annotated[int, typer.Option(min=1, help="Number of permutations that p-values count.")] = 1000,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Trust that files without ids have the same examples in one order.")
    ] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="File to write all values to.")] = None,
    picture: Annotated[Path | None, typer.Option(help="File of heat maps to write, .html.")] = None,
    seed: Seed = 0,
) -> None:
    """Compare each layer of one model with each layer of another by debiased CKA, with permutation p-values.

    All must be features of the same examples in the same order, as their ids say; if not, the exit code is 1.
    """
    if picture is not None and picture.suffix != ".html":
        raise CommandError(f"--picture {picture}: it must end in .html.")
    for option, path in (("--csv", csv_file), ("--picture", picture)):
        if path is not None:
            writable(option, path)
    sides = [_chosen(side, layer) for side in _sides(common, names, data, probe, seed)]
    pairs = [*combinations(sides, 2)] or [(sides[0], sides[0])]
    for a, b in pairs:
        _check_examples(a, b, by_position)
    results = [_compare(a, b, permutations, seed) for a, b in pairs]
    _write(common, results, csv_file, picture)
    common.finish({"examples": sides[0].n, "permutations": permutations, "pairs": [*map(_plain, results)]})


def _sides(common: Common, names: Sequence[str], data: str | None, probe: int | None, seed: int) -> list[Features]:
    """The features of every name. Models take the examples of the first run."""
    runs = {name: _config(name) for name in names if Path(name).is_dir()}
    examples = {"data": DATA, "probe": PROBE} | next(iter(runs.values()), {})
    given = {key: value for key, value in (("data", data), ("probe", probe)) if value is not None}
    asked = {name: examples | runs.get(name, {"model": name.partition("@")[0]}) | given for name in names}
    for name in names:
        _check(name, asked[name], is_run=name in runs)
    return [_features(common, name, asked[name], seed, is_run=name in runs) for name in names]


def _config(run: str) -> dict[str, Any]:
    """The options of the run of ``nngp-zoo track``."""
    folder = Path(run)
    try:
        config: dict[str, Any] = json.loads((folder / "run.json").read_text())["config"]
        return {"model": config["model"], "data": config["data"], "probe": config["probe"], **config}
    except (OSError, ValueError, KeyError, TypeError):
        raise CommandError(f"NAME {run}: it is no run folder of `nngp-zoo track`.") from None


def _check(name: str, asked: Mapping[str, Any], *, is_run: bool) -> None:
    """Refuses a name that is nothing, before anything slow is imported."""
    model, _, path = name.partition("@")
    if is_run:
        if not (Path(name) / CHECKPOINT).exists():
            raise CommandError(f"NAME {name}: it holds no {CHECKPOINT}, which `nngp-zoo track` writes.")
    elif _is_file(name):
        if not Path(name).is_file():
            raise CommandError(f"NAME {name}: there is no such file.")
    elif path and not Path(path).exists():
        raise CommandError(f"NAME {name}: there is no {path}.")
    else:
        is_known = model.partition("/")[0] in FRAMEWORKS
        argument = "NAME" if is_known else f"NAME {name}: there is no such folder or file, and it is no model either"
        begin.check(model, asked["data"], probe=asked["probe"], argument=argument)


def _is_file(name: str) -> bool:
    return name.endswith(SUFFIXES) and "@" not in name


def _features(common: Common, name: str, asked: Mapping[str, Any], seed: int, *, is_run: bool) -> Features:
    if not is_run and _is_file(name):
        with refusing("NAME"):
            return read_features(Path(name))
    import jax

    from ..checkpoint import load_weights
    from ..restore import restore

    knobs = begin.knobs_of(asked) if is_run else common.knobs
    net, dataset = begin.load(replace(common, knobs=knobs), asked["model"], asked["data"])
    with refusing("--probe"):
        x, _, ids = dataset.probe(asked["probe"])
    params, state = net.init(jax.random.key(seed), dataset.train_x[:128])
    with refusing("NAME", name):
        if is_run:
            params, state = load_weights(Path(name), (params, state)) or (params, state)
        elif path := name.partition("@")[2]:
            params, state = restore(Path(path), (params, state))
    return Features(name, features_of(net.f.layers(), params, state, x), ids)


def _chosen(side: Features, patterns: Sequence[str] | None) -> Features:
    """The layers that match a pattern."""
    for pattern in patterns or ():
        if not fnmatch.filter(side.layers, pattern):
            closest = difflib.get_close_matches(pattern, side.layers, n=3, cutoff=0) or [*side.layers][:3]
            near = ", ".join(map(repr, closest))
            raise CommandError(f"--layer {pattern}: {side.name} has no such layer; the closest are {near}.")
    layers = {k: v for k, v in side.layers.items() if any(fnmatch.fnmatchcase(k, p) for p in patterns or ["*"])}
    return replace(side, layers=layers)


def _check_examples(a: Features, b: Features, by_position: bool) -> None:
    """Refuses features of other examples, or in another order."""
    if a.ids is None or b.ids is None:
        nameless = a.name if a.ids is None else b.name
        if not by_position and a is not b:
            raise CommandError(f"NAME {nameless}: it holds no ids; add them, or give --by-position.")
        if a.n != b.n:
            raise CommandError(f"{a.name} holds {a.n} examples, and {b.name} {b.n}.", code=1)
    elif a.ids.tolist() != b.ids.tolist():
        missing = next((one for one in a.ids if one not in {*b.ids}), None)
        if missing is not None:
            raise CommandError(f"other examples: {a.name} holds example {missing}, and {b.name} does not.", code=1)
        if extra := [one for one in b.ids if one not in {*a.ids}]:
            raise CommandError(f"other examples: {b.name} holds example {extra[0]}, and {a.name} does not.", code=1)
        i, one = next((i, one) for i, one in enumerate(a.ids) if [*b.ids[i : i + 1]] != [one])
        there = b.ids[i] if i < b.n else "nothing"
        raise CommandError(
            f"another order: {a.name} holds example {one} at place {i}, where {b.name} holds {there}.", code=1
        )
    if a.n < 4:
        raise CommandError(f"NAME {a.name}: it holds {a.n} examples, and debiased CKA needs 4.")


def _compare(a: Features, b: Features, permutations: int, seed: int) -> Pair:
    import jax

    from nngp_plugins import metrics

    grams = [[metrics.FeatureGram(jax.numpy.asarray(phi)) for phi in side.layers.values()] for side in (a, b)]
    # Features that are wider than their number of examples cost less as entries.
    first, second = ([g if g.narrow else g.by_entries() for g in side] for side in grams)
    cka = metrics.cka_matrix(first, second)
    p = metrics.permutation_test(first, second, permutations, jax.random.key(seed))
    return Pair(a, b, np.asarray(cka), np.asarray(p))


def _write(common: Common, results: Sequence[Pair], csv_file: Path | None, picture: Path | None) -> None:
    from .. import written

    for pair in results:
        common.say(_table(pair))
    if csv_file is not None:
        with refusing("--csv", csv_file):
            written.write_csv(csv_file, _rows(results))
        common.say(f"values: {csv_file}")
    if picture is not None:
        with refusing("--picture", picture):
            written.save(_figure(results), picture)
        common.say(f"picture: {picture}")


def _table(pair: Pair) -> Any:
    from nngp_plugins.charts import stacked_table

    rows = [
        [name, *(f"{cka:.3f} ({p:.3f})" for cka, p in zip(*values, strict=True))]
        for name, *values in zip(pair.a.layers, pair.cka, pair.p, strict=True)
    ]
    title = f"CKA (p-value) · rows {pair.a.name} · columns {pair.b.name} · {pair.a.n} examples"
    return stacked_table(title, ["layer", *pair.b.layers], rows)


def _plain(pair: Pair) -> dict[str, Any]:
    layers = {"layers_a": [*pair.a.layers], "layers_b": [*pair.b.layers]}
    return {"a": pair.a.name, "b": pair.b.name, **layers, "cka": pair.cka.tolist(), "p": pair.p.tolist()}


def _rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """A row for each pair of layers."""
    return [
        {"a": a.name, "b": b.name, "layer_a": one, "layer_b": other, "cka": cka[i, j], "p": p[i, j]}
        for a, b, cka, p in ((pair.a, pair.b, pair.cka, pair.p) for pair in pairs)
        for i, one in enumerate(a.layers)
        for j, other in enumerate(b.layers)
    ]


def _figure(pairs: Sequence[Pair]) -> Any:
    """Heat maps of CKA, one below the other."""
    from plotly.subplots import make_subplots

    from nngp_plugins.charts import for_plotly, styled

    figure = make_subplots(
        len(pairs), 1, subplot_titles=[for_plotly(f"{pair.a.name} and {pair.b.name}") for pair in pairs]
    )
    for row, pair in enumerate(pairs, start=1):
        x, y = ([for_plotly(name) for name in side.layers] for side in (pair.b, pair.a))
        told = "%{y} and %{x}: CKA %{z:.3f}, p = %{customdata:.3f}<extra></extra>"
        heat = {"customdata": pair.p, "hovertemplate": told, "coloraxis": "coloraxis"}
        figure.add_heatmap(z=pair.cka, x=x, y=y, **heat, row=row, col=1)
    figure.update_yaxes(autorange="reversed").update_xaxes(type="category").update_yaxes(type="category")
    styled(figure, height=120 + sum(60 + 26 * len(pair.a.layers) for pair in pairs))
    return figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1}, margin_t=48)
