"""Watching a network's kernels while it trains."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..adapters import ModelFn
from ..metrics import DEFAULT, DenseGram, Metric, features, of_targets
from ._history import DIVERGED, PREFIX, History
from ._measure import (
    check_arguments,
    check_layers,
    check_metrics,
    check_scalars,
    check_targets,
    in_batches,
    layer_outputs,
    on_one_device,
    probe_size,
    stacked_grams,
)
from ._recorder import Recorder, Snapshot
from ._run_folder import RunFolder, describe
from ._schedules import Moment, Schedule, log_spaced
from ._writers import as_writer


class Seen(NamedTuple):
    """One call of a tracker."""

    now: Moment
    params: Any
    state: Any
    values: list[Any] | None
    """The values at that step of a live model, which training goes on writing to."""


class KernelTracker:
    """Measures the kernels of a network's layers on a fixed probe as it trains, against its first snapshot.

    Call it once each training step; it measures at the first call, when the schedule says so, and at :meth:`close`. It
    does not wait for the numbers: a thread of its own works them out and writes them, one snapshot behind training.

    A killed training goes on in its run folder: made with the same arguments, the tracker keeps all finished snapshots
    and their reference, and passes over the steps that it has. Call :meth:`flush` before you save a checkpoint.

    Args:
        f: what to measure, ``f(params, x)``: a :class:`ModelFn` with layers, such as ``f.layers()``, or any function
            that returns a PyTree of arrays with batch axis 0. Each array is a layer.
        probe_x: the fixed examples to measure on, a PyTree with N of them in front.
        targets: labels of the probe, ``(N,)`` or one-hot ``(N, C)``, for the metrics of :func:`metrics.of_targets`;
            kept in the run folder, they order the report.
        schedule: when to measure, such as ``log_spaced(per_decade=10) | every(100)``.
        metrics: ``{name: metric(gram, reference_gram) -> scalar}``, in place of the default ones and those of targets;
            a :class:`metrics.Velocity` gets the Gram of the snapshot before.
        batch_size: examples of a forward pass; None for all of the probe at once.
        run: run folder to write, or to go on with; None keeps the history in memory only.
        writers: where else the numbers go, as ``kernel/<layer>/<metric>``: :mod:`nngp_plugins.writers`, anything with
            ``write_scalars(step, dict)``, such as clu's, or with ``log(dict, step=)``, such as a run of W&B.
        keep_kernels: whether to keep all kernels in the run folder, for :meth:`History.kernel`.
        name: stands before the names that writers get, to tell several trackers apart: ``<name>/kernel/...``.
        resume: whether a run folder that holds a run may go on.
        config: what to remember of this run in ``run.json``, such as the learning rate.

    Attributes:
        history: the :class:`History` so far.

    Raises:
        TypeError: ``f``, ``schedule``, ``config``, a writer or a metric is something else.
        ValueError: targets that do not match the probe, an empty probe or one too small for a metric; ``run`` holds a
            run of another probe or with other metrics.
        FileExistsError: another process writes to ``run``; it holds a run with ``resume=False``.
        OSError: ``run`` can't be written.

    Example:
        >>> import jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> probe = jax.random.normal(jax.random.key(0), (16, 3))
        >>> tracker = nngp.KernelTracker(lambda w, x: {"hidden": x @ w}, probe, schedule=nngp.every(5))
        >>> [step for step in range(8) if tracker(step, (1.0 + step) * jnp.eye(3), loss=1 / (1 + step))]
        [0, 5]
        >>> tracker.close()
        >>> tracker.history
        History(3 snapshots of 1 layers: cka, relative_change, kernel_distance, kernel_velocity, ...)
        >>> tracker.history.metric("effective_rank").shape
        (3, 1)
    """

    def __init__(
        self,
        f: Callable[..., Any],
        probe_x: Any,
        *,
        targets: Any = None,
        schedule: Schedule | None = None,
        metrics: Mapping[str, Metric] = DEFAULT,
        batch_size: int | None = None,
        run: str | Path | None = None,
        writers: Sequence[Any] = (),
        keep_kernels: bool = False,
        name: str = "",
        resume: bool = True,
        config: Mapping[str, Any] | None = None,
    ):
        check_arguments(f, batch_size, config)
        if schedule is not None and not isinstance(schedule, Schedule):
            raise TypeError(
                f"schedule={schedule!r} is not a schedule; pass nngp.every({schedule!r}) or nngp.log_spaced()."
            )
        if keep_kernels and run is None:
            raise ValueError("keep_kernels=True keeps them in the run folder; pass run= as well.")
        self._f, self._batch_size, self._keep = f, batch_size, keep_kernels
        self._probe = jax.tree.map(jnp.asarray, probe_x)
        self._n = probe_size(self._probe)
        writers = [as_writer(writer) for writer in writers]
        labels = np.zeros((0,)) if targets is None else check_targets(targets, self._n)
        if targets is not None and metrics is DEFAULT:
            metrics = {**DEFAULT, **of_targets(labels)}
        self._schedule = schedule or log_spaced()
        self._metrics, spectral = check_metrics(metrics, self._n)
        self._measured_by = jax.jit(self._layer_grams)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._seen: Seen | None = None
        self._closed = False
        self._late: Callable[[], object] = lambda: None  # waits for calls from within jit
        folder, rows = None, []
        if run is not None:
            settings = {"schedule": repr(self._schedule), "metrics": list(metrics), "keep_kernels": keep_kernels}
            about = describe(self._probe, labels, config, **settings)
            folder = RunFolder(run, about, resume=resume)
            rows = folder.rows
        self.history = History(rows, run=folder.path if folder is not None else None)
        self._recorder = Recorder(self._metrics, spectral, self.history, folder, writers, labels, name, keep_kernels)
        # the last call that counts for the schedule; the step up to which a resumed run has its snapshots
        self._before = Moment(rows[-1]["step"], rows[-1]["seconds"], rows[-1]) if rows else None
        self._has = self._last = rows[-1]["step"] if rows else -math.inf
        self._first = rows[0]["step"] if rows else None
        self._known = folder.about.get("layers") if folder is not None and rows else None
        self._start = time.perf_counter() - (rows[-1]["seconds"] if rows else 0)

    def __call__(self, step: int, params: Any, *, state: Any = None, **scalars: Any) -> bool:
        """Measures if it is time to.

        Args:
            step: the training step; may skip, may not go back.
            params: the parameters after this step; a live NNX model may stand for them.
            state: the model's state, if it has one.
            **scalars: logged beside, such as ``loss=loss`` or ``epoch=epoch``.

        Returns:
            Whether it measured.

        Raises:
            ValueError: ``step`` goes back; a scalar takes a name of the tracker's own; a resumed run is of another
                model.
            TypeError: a scalar is not a single number.
            RuntimeError: the tracker is closed.
        """
        self._check_names(scalars)
        check_scalars(scalars)
        now = self._moment(step, scalars)
        due = self._due(now)
        values = None if due or isinstance(params, Mapping | Sequence | Array | np.ndarray) else self._values(params)
        seen = Seen(now, params, state, values)
        if due:
            self._measure(seen)
        elif now.step == self._first:
            self._compare(now.step, self._grams(seen)[0])
        self._seen = seen  # a call that fails does not count
        if now.step > self._has:
            self._before = now
        return due

    def due(self, step: int, **scalars: Any) -> bool:
        """Whether a call at ``step`` would measure; for scalars that cost something, such as a test accuracy."""
        return self._due(self._moment(step, scalars))

    def _moment(self, step: int, scalars: Mapping[str, Any]) -> Moment:
        return Moment(index(step), time.perf_counter() - self._start, scalars)

    def _due(self, now: Moment) -> bool:
        if self._closed:
            raise RuntimeError("this tracker is closed; make a new one.")
        seen = max(self._seen.now.step if self._seen is not None else -math.inf, self._last)
        if now.step < seen and now.step > self._has:
            raise ValueError(f"step={now.step} comes after step {seen}; steps may be skipped, but not go back.")
        if now.step <= self._last:
            return False
        return self._before is None or self._schedule.due(now, self._before)

    def flush(self) -> None:
        """Waits for the numbers of all snapshots so far, and until they are written."""
        self._late()
        self._recorder.flush()

    def close(self) -> None:
        """Measures the last step seen, waits for all numbers, and closes the run folder and the writers."""
        if self._closed:
            return
        try:
            self._late()
            if self._seen is not None and self._seen.now.step > self._last:
                if lost := self._lost(self._seen):
                    warnings.warn(
                        f"close() cannot measure step {self._seen.now.step}: its parameters were {lost}. Call the "
                        "tracker once more after the last step.",
                        stacklevel=2,
                    )
                else:
                    self._measure(self._seen)
        finally:
            self._finish()

    def __enter__(self) -> KernelTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # after an exception, what was measured is kept, and nothing new is run that could hide it
        if kind is None:
            self.close()
        else:
            self._finish()

    def _finish(self) -> None:
        self._closed, self._seen = True, None  # a tracker may be kept for its history: let go of the model
        self._recorder.close()

    def _measure(self, seen: Seen) -> None:
        self._late()
        self._recorder.settle()
        self._take(seen.now, *self._grams(seen))

    def _grams(self, seen: Seen) -> tuple[DenseGram, dict[str, Array]]:
        params, state = seen.params, seen.state
        if isinstance(self._f, ModelFn):
            params, state = self._f.variables(params, state)
        if not self._shapes:
            self._recorder.prepare(self._measured_by.eval_shape(params, state, self._probe)[0])
        return self._measured_by(params, state, self._probe)

    def _layer_grams(self, params: Any, state: Any, probe: Any) -> tuple[DenseGram, dict[str, Array]]:
        """The Grams of all layers, ``(L, N, N)``, and features to keep that are narrower; for use within ``jit``."""

        def outputs(probe: Any) -> Any:
            return self._f(params, probe) if state is None else self._f(params, probe, state=state)

        layers = layer_outputs(in_batches(outputs, probe, self._n, self._batch_size), self._n)
        self._shapes = {name: y.shape[1:] for name, y in layers.items()}
        if self._known is not None:
            check_layers(self._known, self._shapes)
        narrow = {name: y for name, y in layers.items() if self._keep and math.prod(y.shape[1:]) < self._n}
        return stacked_grams(layers), {name: features(y) for name, y in narrow.items()}

    def _take(self, now: Moment, grams: DenseGram, narrow: Mapping[str, Any]) -> None:
        """Records what was measured."""
        # programs for several devices are all started by this thread: two would wait for each other
        grams, narrow = jax.tree.map(on_one_device, (grams, narrow))
        self._recorder.submit(Snapshot(now.step, now.seconds, now.scalars, self._shapes, grams, narrow))
        self._last = now.step

    def _compare(self, step: int, grams: DenseGram) -> None:
        """Refuses another training in a run's folder, where it begins anew."""
        first = self._recorder.reference
        if first is not None and jnp.abs(grams.matrix - first.matrix).max() > 1e-3 * jnp.abs(first.matrix).max():
            raise ValueError(
                f"step={step} has other kernels than the first snapshot of this run folder: this is another "
                "training; name another folder, or go on with the parameters of this one."
            )

    def _values(self, params: Any) -> list[Any]:
        """The arrays of a live model, which training goes on writing to."""
        leaves = jax.tree.leaves(params)
        if isinstance(self._f, ModelFn) and len(leaves) == 1 and leaves[0] is params:  # as a Keras model is
            return jax.tree.leaves(self._f.variables(params))
        return leaves

    def _lost(self, seen: Seen) -> str:
        """What became of the parameters of a call since then; empty where they are as they were."""
        if any(getattr(leaf, "is_deleted", bool)() for leaf in jax.tree.leaves((seen.params, seen.state))):
            return "donated to a later step"
        if seen.values is not None:
            pairs = zip(seen.values, self._values(seen.params), strict=False)
            if any(a is not b for a, b in pairs):
                return "trained further since, in the live model"
        return ""

    def _check_names(self, scalars: Mapping[str, Any]) -> None:
        for name in scalars:
            if name in ("seconds", "layer", DIVERGED, *self._metrics) or name.startswith(PREFIX):
                raise ValueError(f"the scalar {name!r} has a name of the tracker's own; choose another.")
