"""``nngp-zoo scan``."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import data as datasets
from . import begin
from .app import Data, Seed, command
from .manners import CommandError, Common, positive, refusing, writable

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model import Model


@command(
    "nngp-zoo scan --framework linen --data digits --train 200 --out scan",
    knobs=True,
    again="with --out, every finished model is kept, and the same command goes on from there",
)
def scan(
    common: Common,
    models: Annotated[list[str] | None, typer.Argument(help="Models; all that take the data by default.")] = None,
    data: Data = "digits",
    framework: Annotated[str | None, typer.Option(help="Only models of this framework.")] = None,
    family: Annotated[str | None, typer.Option(help="Only models of this architecture.")] = None,
    inits: Annotated[int, typer.Option(min=1, help="Number of initialisations of each model.")] = 3,
    examples: Annotated[int | None, typer.Option(min=1, help="Number of training examples; 1000 by default.")] = None,
    train: Annotated[int | None, typer.Option(min=1, help="Train each model for so many steps, too.")] = None,
    learning_rate: Annotated[float, typer.Option("--lr", help="Learning rate of Adam.")] = 3e-3,
    out: Annotated[Path | None, typer.Option(help="Folder for scan.csv and scan.html.")] = None,
    seed: Seed = 0,
) -> None:
    """Rank models at initialisation on one data set, and see which score tells what they reach in training.

    The scores are the accuracy and the log marginal likelihood (nats for each example) of a Gaussian process of the
    features that the last layer reads, the effective rank and the target alignment of their kernel, and NASWOT. With
    --train, every score is compared with the trained accuracy, and so are the numbers of parameters and of FLOPs.
    """
    names = _names(models, framework, family)
    with refusing("--data"):
        datasets.check(data)
    with refusing("--examples"):
        datasets.check(data, examples=examples)
    for name in models or ():
        begin.check(name, data)
    positive("--lr", learning_rate)
    if out is not None:
        writable("--out", out)
    nets, dataset = _load(common, names, data, given=bool(models))
    options = {"data": data, "inits": inits, "examples": examples or min(1000, len(dataset.train_x)), "seed": seed}
    options |= {"train": train, "lr": learning_rate if train else None}
    rows = _rows(common, nets, dataset, options, out)
    common.say(_table(rows))
    found = _correlations(common, rows) if train else {}
    if out is not None:
        with refusing("--out", out):
            _write(rows, options, out)
        common.say(f"table: {out / 'scan.csv'}", f"picture: {out / 'scan.html'}")
    common.finish({**options, "knobs": common.knobs, "models": rows, **found})


def _names(models: list[str] | None, framework: str | None, family: str | None) -> list[str]:
    from ..registry import list_models

    with refusing("--framework", framework):
        list_models(framework=framework)
    with refusing("--family", family):
        names = list_models(framework=framework, family=family)
    if models and (framework or family):
        raise CommandError("MODELS: give names, or --framework and --family, not both.")
    return list(dict.fromkeys(models)) if models else names


def _load(common: Common, names: list[str], data: str, *, given: bool) -> tuple[list[Model], Dataset]:
    """The classifiers among the models that take the data, and the data; a model that was named must be one."""
    from .. import registry

    with refusing("--data"):
        dataset = datasets.load(data)
    nets = []
    for name in names:
        with refusing("MODELS"):
            family = registry.check(name)
            if family is not None and family.task != "classify":
                if given:
                    raise ValueError(f"{name} is trained for another task ({family.task}); scan compares classifiers.")
                continue
            if given or family is None or dataset.spec.kind in family.takes:
                nets.append(registry.get(name, dataset.spec, **common.knobs))
    if not nets:
        raise CommandError(f"MODELS: none of these takes the data, which are {dataset.spec}.")
    return nets, dataset


def _rows(
    common: Common, nets: list[Model], dataset: Dataset, options: dict[str, Any], out: Path | None
) -> list[dict[str, Any]]:
    """The numbers of all models, the best one first."""
    rows = []
    with common.progress() as progress:
        task = progress.add_task("models", total=len(nets))
        for net in nets:
            progress.update(task, description=net.name)
            rows.append(_row(net, dataset, options, out))
            progress.advance(task)
    return sorted(rows, key=lambda row: -row["gp_accuracy"])


def _row(net: Model, dataset: Dataset, options: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """The numbers of a model, from the folder if they are there."""
    about = json.loads(json.dumps({"model": net.name, "knobs": dict(net.knobs), **options}))
    kept = None if out is None else out / "models" / f"{re.sub(r'[^a-zA-Z0-9]+', '-', net.name)}.json"
    if kept is not None and kept.is_file():
        try:
            there = json.loads(kept.read_text())
            if there["about"] == about:
                return there["row"]
        except (ValueError, KeyError, TypeError):
            pass  # it is computed anew
    row = _measured(net, dataset, options)
    if kept is not None:
        from .. import written

        with refusing("--out", out), written.whole(kept) as file:
            file.write(json.dumps({"about": about, "row": row}).encode())
    return row


def _measured(net: Model, dataset: Dataset, options: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from ..scores import SCORES, flops, scores
    from ..training import Training

    inits, examples, seed = options["inits"], options["examples"], options["seed"]
    each = list(scores(net, dataset, inits=inits, examples=examples, tests=1000, seed=seed))
    row: dict[str, Any] = {"model": net.name, "family": net.family}
    for key in SCORES:
        values = np.array([one[key] for one in each])
        spread = values.std(ddof=1) if inits > 1 and np.isfinite(values).all() else np.nan
        row |= {key: float(values.mean()), f"{key}_error": float(spread / inits**0.5)}
    row |= {"parameters": net.parameters, "flops": flops(net)}
    if options["train"]:
        training = Training(net, dataset, net.optimizer("adam", options["lr"]))
        now, loss = training.run(training.start(seed), options["train"], seed)
        row["trained_accuracy"] = training.score(now) if np.isfinite(float(loss)) else float("nan")
    return row


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    from ..scores import BASELINES, SCORES

    trained = {"trained_accuracy": "trained accuracy"} if "trained_accuracy" in rows[0] else {}
    # A name or a number that is cut at the width of the terminal tells nothing.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for text in (*SCORES.values(), *BASELINES.values(), *trained.values()):
        table.add_column(text, justify="right", overflow="fold")
    for row in rows:
        cells = [f"{row[key]:.3g}±{row[f'{key}_error']:.1g}" if math.isfinite(row[key]) else "–" for key in SCORES]
        sizes, reached = [_short(row[key]) for key in BASELINES], [f"{row[key]:.1%}" for key in trained]
        table.add_row(row["model"], *cells, *sizes, *reached)
    return table


def _short(number: float) -> str:
    """A number of parameters or operations with a prefix."""
    power = min(max(len(f"{number:.0f}") - 1, 0) // 3, 4)
    return f"{number / 1000**power:.3g}{' kMGT'[power].strip()}"


def _correlations(common: Common, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Says which score tells the trained accuracy, and whether it does so better than the size of a model."""
    from rich.table import Table

    from ..scores import BASELINES, SCORES, conclusion, correlations

    found = correlations(rows, "trained_accuracy")
    table = Table("score", "Kendall's τ (p)", "Spearman's ρ (p)", "models")
    for key, text in (SCORES | BASELINES).items():
        of = found[key]
        pairs = [f"{of[name]:+.2f} ({of[f'{name}_p']:.2g})" for name in ("tau", "rho")]
        table.add_row(text, *pairs, str(of["models"]))
    said = conclusion(found)
    common.say(table, said)
    return {"correlations": found, "conclusion": said}


def _write(rows: list[dict[str, Any]], options: dict[str, Any], out: Path) -> None:
    from .. import written
    from ..scores import SCORES

    written.write_csv(out / "scan.csv", rows)
    x, name = ("trained_accuracy", "trained accuracy") if options["train"] else ("parameters", "parameters")
    points: dict[str, Any] = {}
    for row in rows:
        point = row[x], row["gp_accuracy"], row["gp_accuracy_error"]
        points.setdefault(row["family"], {})[row["model"]] = point
    axes = name, f"{SCORES['gp_accuracy']} at initialisation"
    title = f"{len(rows)} models on {options['data']}"
    written.save(written.scatter(title, axes, points, log_x=not options["train"]), out / "scan.html")
