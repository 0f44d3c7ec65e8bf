"""Watching a network's kernels while it trains."""

from __future__ import annotations

import reprlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..adapters import ModelFn, is_model
from ..metrics import DEFAULT, DenseGram, Metric, of_targets
from ._history import PREFIX, History, Row
from ._measure import (
    check_metrics,
    check_scalars,
    check_targets,
    layer_metrics,
    layer_outputs,
    probe_size,
    stacked_grams,
)
from ._run_folder import RunFolder, describe
from ._schedules import Schedule, log_spaced


class Seen(NamedTuple):
    """One call of a tracker."""

    step: int
    params: Any
    state: Any
    scalars: Mapping[str, Any]
    values: list[Any] | None
    """The values at that step of a live model, which training goes on writing to."""


class Pending(NamedTuple):
    """A snapshot whose numbers may still be under way on the device."""

    step: int
    seconds: float
    values: dict[str, Array]
    traces: tuple[Array, Array]
    scalars: Mapping[str, Any]


class KernelTracker:
    """Measures the kernels of a network's layers on a fixed probe as it trains, against its first snapshot.

    Call it once each training step; it measures at the first call, when the schedule says so, and at
    :meth:`close`. It does not wait for the numbers: they are fetched once they are there.

    Args:
        f: what to measure, ``f(params, x)``: a :class:`ModelFn` with layers, such as ``f.layers()``, or any function
            that returns a PyTree of arrays with batch axis 0. Each array is a layer.
        probe_x: the fixed examples to measure on, a PyTree with N of them in front.
        targets: labels of the probe, ``(N,)`` or one-hot ``(N, C)``, for the metrics of :func:`metrics.of_targets`;
            kept in the run folder, they order the report.
        schedule: when to measure, such as ``log_spaced(per_decade=10) | every(100)``.
        metrics: ``{name: metric(gram, reference_gram) -> scalar}``, in place of the default ones and those of targets.
        run: run folder to write; None keeps the history in memory only.
        config: what to remember of this run in ``run.json``, such as the learning rate.

    Attributes:
        history: the :class:`History` so far.

    Raises:
        TypeError: ``f``, ``schedule``, ``config`` or a metric is something else.
        ValueError: targets that do not match the probe, an empty probe or one too small for a metric.
        FileExistsError: ``run`` already holds a run.

    Example:
        >>> import jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> probe = jax.random.normal(jax.random.key(0), (16, 3))
        >>> tracker = nngp.KernelTracker(lambda w, x: {"hidden": x @ w}, probe, schedule=nngp.every(5))
        >>> [step for step in range(8) if tracker(step, (1.0 + step) * jnp.eye(3), loss=1 / (1 + step))]
        [0, 5]
        >>> tracker.close()
        >>> tracker.history
        History(3 snapshots of 1 layers: cka, relative_change, kernel_distance, scale, ...)
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
        run: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        if not callable(f) or is_model(f):
            raise TypeError(
                f"f={reprlib.repr(f)} is no function f(params, x); pass one, such as nngp.as_model_fn(model).layers()."
            )
        if schedule is not None and not isinstance(schedule, Schedule):
            raise TypeError(
                f"schedule={schedule!r} is not a schedule; pass nngp.every({schedule!r}) or nngp.log_spaced()."
            )
        self.history = History()
        self._f = f
        self._probe = jax.tree.map(jnp.asarray, probe_x)
        self._n = probe_size(self._probe)
        self._targets = np.zeros((0,)) if targets is None else check_targets(targets, self._n)
        if targets is not None and metrics is DEFAULT:
            metrics = {**DEFAULT, **of_targets(self._targets)}
        self._schedule = schedule or log_spaced()
        self._grams = jax.jit(self._measure_grams)
        self._metrics = check_metrics(metrics, self._n)
        self._values = jax.jit(partial(layer_metrics, self._metrics))
        self._layers: list[str] = []
        self._reference: DenseGram | None = None
        self._latest: tuple[int, DenseGram] | None = None
        self._seen: Seen | None = None
        self._pending: Pending | None = None
        self._warned: set[str] = set()
        self._closed = False
        self._start = time.perf_counter()
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(f"config={reprlib.repr(config)} is not a mapping; pass a dict, such as vars(args).")
        self._folder: RunFolder | None = None
        if run is not None:
            about = describe(self._probe, config, schedule=repr(self._schedule), metrics=list(metrics))
            self._folder = RunFolder(run, about)

    def __call__(self, step: int, params: Any, *, state: Any = None, **scalars: Any) -> bool:
        """Measures if it is time to.

        Args:
            step: the training step; may skip, may not go back.
            params: the parameters after this step; a live NNX model may stand for them.
            state: the model's state, if it has one.
            **scalars: logged beside, such as ``loss=loss``.

        Returns:
            Whether it measured.

        Raises:
            ValueError: ``step`` goes back; a scalar takes a name of the tracker's own.
            TypeError: a scalar is not a single number.
            RuntimeError: the tracker is closed.
        """
        due = self.due(step)
        for name in scalars:
            if name in ("seconds", "layer", *self._metrics) or name.startswith(PREFIX):
                raise ValueError(f"the scalar {name!r} has a name of the tracker's own; choose another.")
        check_scalars(scalars)
        values = None if due or isinstance(params, Mapping | Sequence | Array | np.ndarray) else jax.tree.leaves(params)
        self._seen = Seen(index(step), params, state, scalars, values)
        if due:
            self._measure(self._seen)
        elif self._pending is not None and _is_ready(self._pending):
            self._record()
        return due

    def due(self, step: int) -> bool:
        """Whether a call at ``step`` would measure; for scalars that cost something, such as a test accuracy."""
        if self._closed:
            raise RuntimeError("this tracker is closed; make a new one.")
        step = index(step)
        if self._seen is None or self._reference is None:
            return True
        if step < self._seen.step:
            raise ValueError(f"step={step} comes after step {self._seen.step}; steps may be skipped, but not go back.")
        return self._schedule.due(step, self._seen.step)

    def flush(self) -> None:
        """Waits for the numbers of the last snapshot, and records them."""
        self._record()

    def close(self) -> None:
        """Measures the last step seen, waits for all numbers, and closes the run folder."""
        if self._closed:
            return
        if self._seen is not None and (self._latest is None or self._latest[0] != self._seen.step):
            if lost := _lost(self._seen):
                warnings.warn(
                    f"close() cannot measure step {self._seen.step}: its parameters were {lost}. Call the tracker once "
                    "more after the last step.",
                    stacklevel=2,
                )
            else:
                self._measure(self._seen)
        self._finish()

    def __enter__(self) -> KernelTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # after an exception, what was measured is kept, and nothing new is run that could hide it
        if kind is None:
            self.close()
        else:
            self._finish(failed=True)

    def _finish(self, *, failed: bool = False) -> None:
        self._record()
        if self._latest is not None:
            self._save("last.npz", *self._latest)
        if self._folder is not None:
            self._folder.close(discard=failed and not self.history.rows)
        # a tracker may be kept for its history: let go of the model and the kernels
        self._seen = self._latest = self._reference = None
        self._closed = True

    def _measure(self, seen: Seen) -> None:
        self._record()
        params, state = seen.params, seen.state
        if isinstance(self._f, ModelFn):
            params, state = self._f.variables(params, state)
        grams = self._grams(params, state, self._probe)
        if self._reference is None:
            self._reference = grams
            self._save("reference.npz", seen.step, grams)
        self._latest = (seen.step, grams)
        values, traces = self._values(grams, self._reference)
        self._pending = Pending(seen.step, time.perf_counter() - self._start, values, traces, seen.scalars)

    def _save(self, name: str, step: int, grams: DenseGram) -> None:
        if self._folder is not None:
            arrays = {"kernels": grams.matrix, "centered": grams.centered, "targets": self._targets}
            self._folder.save(name, step=step, layers=self._layers, **arrays)

    def _measure_grams(self, params: Any, state: Any, probe: Any) -> DenseGram:
        """The Grams of all layers, stacked: ``(L, N, N)``."""
        outputs = self._f(params, probe) if state is None else self._f(params, probe, state=state)
        layers = layer_outputs(outputs, self._n)
        self._layers = list(layers)
        return stacked_grams(layers)

    def _record(self) -> None:
        """Moves the snapshot under way to the history and the run folder."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        values, traces, scalars = jax.device_get((pending.values, pending.traces, dict(pending.scalars)))
        row: Row = {"step": pending.step, "seconds": round(pending.seconds, 3)}
        row |= {name: float(scalars[name]) for name in pending.scalars}
        for i, layer in enumerate(self._layers):
            row |= {f"{PREFIX}{layer}/{metric}": float(values[metric][i]) for metric in self._metrics}
            self._warn_if_degenerate(pending.step, layer, float(traces[0][i]), float(traces[1][i]))
        self.history.rows.append(row)
        if self._folder is not None:
            self._folder.append(row)

    def _warn_if_degenerate(self, step: int, layer: str, trace: float, centered_trace: float) -> None:
        if layer in self._warned or (np.isfinite(trace) and centered_trace > 0):
            return
        self._warned.add(layer)
        what = "not finite" if not np.isfinite(trace) else "zero" if trace == 0 else "constant"
        message = f"the kernel of layer {layer!r} is {what} at step {step}: its metrics are nan"
        first = len(self.history) == 0 and np.isfinite(trace)
        message += ", and those relative to this first snapshot will stay so" if first else ""
        warnings.warn(message + ".", stacklevel=4)


def _is_ready(pending: Pending) -> bool:
    arrays: list[Any] = list(pending.values.values())
    return all(array.is_ready() for array in arrays)


def _lost(seen: Seen) -> str:
    """What became of the parameters of a call since then; empty where they are as they were."""
    leaves = jax.tree.leaves((seen.params, seen.state))
    if any(getattr(leaf, "is_deleted", bool)() for leaf in leaves):
        return "donated to a later step"
    if seen.values is not None and any(a is not b for a, b in zip(seen.values, leaves, strict=False)):
        return "trained further since, in the live model"
    return ""
