"""What a long run costs to draw: four times the snapshots take four times as long, and no more."""

from functools import partial

from harness import Case, Contender, Target, ratio

METRICS = ("cka", "relative_change", "effective_rank", "scale")


def plot(share, snapshots, layers):
    import nngp_plugins as nngp

    numbers = {f"kernel/layer_{i}/{metric}": 1.0 + i for i in range(layers) for metric in METRICS}
    steps = range(snapshots // share)
    history = nngp.History({"step": step, "seconds": float(step), "loss": 1.0, **numbers} for step in steps)
    return lambda: {"points": sum(len(line.x) for line in history.plot("cka").data)}


CASES = [
    Case(
        "plot of {snapshots} snapshots of {layers} layers",
        {
            "quarter": Contender(partial(plot, 4), "`history.plot()` of a quarter of the snapshots"),
            "ours": Contender(partial(plot, 1), "`history.plot()`"),
        },
        [
            ratio("ours", "quarter", at_most=5),
            Target("seconds of ours", lambda seconds, _: seconds["ours"], unit="s", at_most=2),
        ],
        sizes={"snapshots": 10_000, "layers": 10},
        quick={"snapshots": 400, "layers": 2},
    )
]
