"""A training that is tracked in a run folder, and goes on there after it was stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nngp_plugins import History, KernelTracker, log_spaced, write_report

from . import checkpoint
from .commands.manners import CommandError, Common, CtrlC, refusing
from .data import Dataset
from .model import Model
from .optimizers import schedule
from .training import Training, TrainState

SECONDS_BETWEEN_CHECKPOINTS = 60.0
STEPS_BETWEEN_CHECKS = 50


def training_of(model: Model, data: Dataset, config: Mapping[str, Any]) -> Training:
    """Returns the training that the options of the command ask for; all seeds share what it compiles."""
    rate = schedule(config["schedule"], config["lr"], config["steps"])
    return Training(model, data, model.optimizer(config["optimizer"], rate), batch_size=config["batch_size"])


def run_tracked(
    common: Common, training: Training, run: Path, config: Mapping[str, Any]
) -> tuple[History, dict[str, float]]:
    """Trains and tracks, from step 0 or from the checkpoint of the run folder, and writes the report.

    Args:
        common: where progress goes.
        training: what :func:`training_of` returns.
        run: the run folder.
        config: the options of the command.

    Returns:
        The history, and the last loss and score.

    Raises:
        CommandError: an option is refused; or the training diverged, exit code 3.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written.
    """
    steps = config["steps"]
    with refusing("--probe"):
        x, y, _ = training.data.probe(config["probe"])
    now = training.start(config["seed"])
    with refusing("--run", run):
        first, now = checkpoint.load(run, now) or (0, now)
        tracker = KernelTracker(
            training.model.f.layers(),
            x,
            targets=y,
            schedule=log_spaced(config["per_decade"]),
            run=run,
            keep_kernels=config["keep_kernels"],
            config=config,
        )
    with tracker, CtrlC() as ctrl_c, common.progress() as progress:
        task = progress.add_task(f"{training.model.name} seed {config['seed']}", total=steps, completed=first)
        loop = _Loop(training, tracker, run, config, ctrl_c)
        now = loop(now, first, lambda: progress.advance(task))
    history = History.load(run)
    title = f"{config['model']} on {config['data']}"
    write_report(run, title=title)
    return history, {"loss": float(history.scalar("loss")[-1]), "score": training.score(now)}


class _Loop:
    """The steps of a training, with checkpoints."""

    def __init__(self, training: Training, tracker: KernelTracker, run: Path, config: Mapping[str, Any], ctrl_c: CtrlC):
        self.training, self.tracker, self.run, self.ctrl_c = training, tracker, run, ctrl_c
        self.steps, self.seed = config["steps"], config["seed"]
        self.score = f"test_{training.task.name}"

    def __call__(self, now: TrainState, first: int, on_step: Any) -> TrainState:
        if first == 0:
            self.track(0, now, self.training.first_loss(now, self.seed))
        saved = time.monotonic()
        for step in range(first + 1, self.steps + 1):
            now, loss = self.training.step(now, step, self.seed)
            self.track(step, now, loss)
            on_step()
            if self.ctrl_c.pressed or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self.save(step, now)
                saved = time.monotonic()
                self.ctrl_c.check()
        self.save(self.steps, now)
        return now

    def track(self, step: int, now: TrainState, loss: Any) -> None:
        """Measures if it is time to; a loss that is not finite ends the run."""
        due = self.tracker.due(step) or step == self.steps
        if (due or step % STEPS_BETWEEN_CHECKS == 0) and not math.isfinite(float(loss)):
            raise CommandError(f"diverged: the loss is {float(loss)} at step {step}; try a smaller --lr.", code=3)
        scalars = {self.score: self.training.score(now)} if due else {}
        self.tracker(step, now.params, state=now.state, loss=loss, **scalars)

    def save(self, step: int, now: TrainState) -> None:
        """Saves the state, after all snapshots up to it."""
        self.tracker.flush()
        checkpoint.save(self.run, step, now)
