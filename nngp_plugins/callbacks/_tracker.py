"""The tracker: watches a network's kernels while it trains."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from jax import Array

from .._show import facts_html
from ..engine import on_one_device
from ..history import History, Row, RunFolder, description, so_far
from ..metrics import Metric, default_metrics
from ._checks import (
    as_numbers,
    check_arguments,
    check_concrete,
    check_metrics,
    check_names,
    check_queue_bytes,
    check_reference,
    check_targets,
    refuse_traced,
)
from ._clock import Clock
from ._given import Call, Given, own
from ._measure import Measured, Measurement, unseen_message
from ._pool import not_strict, refuse_own_thread
from ._processes import begun
from ._queue import Snapshot
from ._recorder import Recorder
from ._schedules import Moment, Schedule, log_spaced
from .writers import as_writer


class KernelTracker:
    """Measures the kernels of a network's layers on a fixed probe as it trains, against their first ones.

    Call it once in each training step. It measures at the first call, when the schedule says so, and at :meth:`close`.
    It does not wait for the numbers: threads of its own compute and write them, while snapshots queue in host memory.

    A killed training goes on in its run folder: a tracker with the same arguments keeps all finished snapshots and
    their reference, and passes over the steps that it has. Call :meth:`flush` before you save a checkpoint.

    Args:
        f: what to measure, ``f(params, x)``: a :class:`ModelFn` with layers, such as ``f.layers()``, or any function
            that returns a PyTree of arrays with batch axis 0. Each array is a layer.
        probe_x: the fixed examples to measure on, a PyTree of arrays with N examples along axis 0. If they are on the
            devices of several processes, all of them make the tracker and call it, and process 0 records.
        targets: labels of the probe, ``(N,)`` or one-hot ``(N, C)``, or numbers (see :func:`metrics.labels_of`), for
            :func:`metrics.of_targets`. The run folder keeps them, and the report orders examples by them.
        schedule: when to measure, such as ``log_spaced(per_decade=10) | every(100)``.
        metrics: ``{name: metric(gram, reference_gram) -> scalar}``. A :class:`metrics.Velocity` gets the Gram of the
            previous snapshot as its second argument. None for :func:`metrics.default_metrics`, which are
            :data:`metrics.DEFAULT` and, with targets, those of :func:`metrics.of_targets`.
        batch_size: examples of a forward pass, as many of each device that shares the probe; None for all at once.
        rng: a key for models that always draw, such as a variational autoencoder. Every snapshot draws the same noise.
        run: the run folder to write, or to go on with; None keeps the history in memory only.
        writers: where else the numbers go, as ``kernel/<layer>/<metric>``: :mod:`nngp_plugins.writers`, anything with
            ``write_scalars(step, dict)``, such as clu's, or with ``log(dict, step=)``, such as a run of W&B.
        keep_kernels: whether to keep all kernels in the run folder, for :meth:`History.kernel`.
        name: a prefix of the names that writers get, to tell several trackers apart: ``<name>/kernel/...``.
        reference: what ``cka`` and other metrics compare a layer with. None for its first kernel that is neither zero
            nor constant. A step, such as the end of a warm-up, for the first such kernel at or after that step; before
            it, these metrics are nan.
        resume: whether a run folder that holds a run may go on.
        queue_bytes: the bytes of host memory that snapshots may take until their numbers are there, ``4 N²`` for each
            layer in float32. A call that finds no room waits, with one warning; :func:`track_kernel` only warns.
        config: what to remember of this run in ``run.json``, such as the learning rate.

    Attributes:
        history: the :class:`History` so far.
        clock: decides when to measure.
        measurement: computes the products of all layers' features.
        recorder: takes snapshots to the history, the run folder and the writers. Code that builds a tracker into a loop
            of its own, such as :func:`track_kernel`, uses these three.

    Raises:
        TypeError: ``f``, ``schedule``, ``reference``, ``config``, ``queue_bytes``, a writer or a metric has another
            type; ``probe_x``, ``targets`` or ``rng`` is traced, because a compiled function makes the tracker.
        ValueError: the targets do not match the probe, or are ids of tokens; the probe is empty, or too small for a
            metric; ``reference`` is negative, or ``queue_bytes`` not positive; ``run`` holds a run of another probe, of
            other metrics or another reference. At the first call: outputs depend on the other examples in a batch.
        FolderInUseError: another process writes to ``run``; it is a ``FileExistsError`` too.
        FileExistsError: ``run`` holds a run, and ``resume`` is false.
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
        metrics: Mapping[str, Metric] | None = None,
        batch_size: int | None = None,
        rng: Array | None = None,
        run: str | Path | None = None,
        writers: Sequence[Any] = (),
        keep_kernels: bool = False,
        name: str = "",
        reference: int | None = None,
        resume: bool = True,
        queue_bytes: int = 2 * 2**30,
        config: Mapping[str, Any] | None = None,
    ):
        check_arguments(f, schedule, batch_size, rng, keep_kernels, run, config)
        check_concrete(probe_x=probe_x, targets=targets, rng=rng)
        with not_strict():
            self.measurement: Measurement = Measurement(f, probe_x, batch_size, rng, keep_features=keep_kernels)
            labels = own(check_targets(targets, self.measurement.n))
            metrics = default_metrics(labels if labels.size else None) if metrics is None else metrics
        check_metrics(metrics, self.measurement.n)
        schedule, writers = schedule or log_spaced(), [as_writer(writer) for writer in writers]
        options = {"targets": labels, "name": name, "keep_kernels": keep_kernels, "since": check_reference(reference)}
        options["queue_bytes"] = check_queue_bytes(queue_bytes)
        settings = {"schedule": repr(schedule), "metrics": list(metrics), "keep_kernels": keep_kernels}
        settings |= {"reference": options["since"], "x64": jax.config.jax_enable_x64}  # type: ignore[attr-defined]
        about = description(jax.tree.map(on_one_device, self.measurement.probe_x), labels, config, **settings)
        folder, rows = begun(self.measurement, schedule, run, about, resume=resume)
        # A compiled function may make the tracker, which outlives what JAX traces there.
        with not_strict(), jax.ensure_compile_time_eval(), ExitStack() as at_error:
            # A notebook would keep the lock for as long as it shows the error.
            at_error.callback(folder.close if folder is not None else bool)
            self._begin(folder, rows, schedule, metrics, writers, config=about["config"], **options)
            at_error.pop_all()

    def _begin(
        self,
        folder: RunFolder | None,
        rows: Sequence[Row],
        schedule: Schedule,
        metrics: Mapping[str, Metric],
        writers: Sequence[Any],
        config: Mapping[str, Any],
        **options: Any,
    ) -> None:
        """Begins a run, or goes on with that of the run folder."""
        self.history: History = History(rows, run=None if folder is None else folder.path, config=config)
        self.recorder: Recorder = Recorder(dict(metrics), self.history, folder, writers, **options)
        self.clock: Clock = Clock(schedule, rows)
        self._given = Given(self.measurement.f)
        self._closed, self._process = False, os.getpid()

    def __call__(self, step: int, params: Any, *, state: Any = None, **scalars: Any) -> bool:
        """Measures if it is time to.

        All that is given counts as it was at the call, and nothing waits for it: training may donate its arrays, write
        to those of NumPy, or put others into the same dicts. Arrays of NumPy are copied for that at every call. Those
        of JAX are not; of scalars that are donated, there is a copy from the second call on.

        Args:
            step: the training step; steps may be skipped, but not go back.
            params: the parameters after this step; a live NNX model may stand for them.
            state: the model's state, if it has one.
            **scalars: numbers to log, such as ``loss=loss`` or ``epoch=epoch``.

        Returns:
            Whether it measured.

        Raises:
            ValueError: ``step`` goes back; a scalar takes a name of the tracker's own, or was donated before; two
                outputs have one name; a resumed run is of another model.
            TypeError: a scalar is not a single real number; the call is inside a compiled function, where
                :func:`track_kernel` belongs.
            RuntimeError: the tracker is closed, or another process made it, such as the parent of a forked one.
        """
        self._refuse_strangers("a call")
        check_names(scalars, self.recorder.metrics)
        now = self._moment(step, scalars)
        due = self._is_due(now)
        call = self._given.call(now, params, state, due=due)
        if due:
            self._measure(call)
        elif self.clock.is_first_again(now):
            with not_strict():
                self.recorder.refuse_other_training(now.step, on_one_device(self._measured(call).products))
        # A call that failed above does not count.
        self._given.last = call
        self.clock.saw(call.now)
        return due

    def due(self, step: int, **scalars: Any) -> bool:
        """Whether a call at ``step`` would measure; useful for scalars that cost something, such as a test accuracy."""
        return self._is_due(self._moment(step, scalars))

    def _moment(self, step: int, scalars: Mapping[str, Any]) -> Moment:
        refuse_traced("step", step)
        if donated := self._given.donated():
            self.clock.forget(donated)
        return self.clock.moment(step, as_numbers(scalars))

    def _is_due(self, now: Moment) -> bool:
        if self._closed:
            raise RuntimeError("this tracker is closed; make a new one.")
        return self.clock.due(now)

    def _refuse_strangers(self, method: str) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"{method} of a tracker that another process made, such as the parent of this forked worker of a data "
                "loader; its threads are not here. Call it there, or make a tracker here."
            )
        refuse_own_thread(method)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def flush(self) -> None:
        """Waits until the numbers of all snapshots so far are computed and written."""
        self._refuse_strangers("flush()")
        self.recorder.wait_for_jit()
        self.recorder.flush()

    def close(self) -> None:
        """Measures the last step seen, waits for all numbers, and closes the run folder and the writers."""
        if self._closed or os.getpid() != self._process:
            return
        refuse_own_thread("close()")
        try:
            self.recorder.wait_for_jit()
            if (call := self._given.last) is not None and self.clock.is_unmeasured(call.now):
                if lost := self._given.lost(call):
                    warnings.warn(
                        f"close() cannot measure step {call.now.step}: {lost}. Call the tracker once more after the "
                        "last step.",
                        stacklevel=2,
                    )
                else:
                    self._measure(call)
        finally:
            self._finish()

    def __repr__(self) -> str:
        facts = (f"{name} {value}" for name, value in so_far(self.history.rows).items())
        return f"KernelTracker({', '.join(['closed' if self._closed else 'open', *facts])})"

    def _repr_html_(self) -> str:
        return facts_html("KernelTracker", so_far(self.history.rows, most=8)) + self.history._repr_html_()

    def __enter__(self) -> KernelTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # After an exception nothing new is measured, because an error there would hide the first one.
        if kind is None:
            self.close()
        elif os.getpid() == self._process:
            self._finish()

    def _finish(self) -> None:
        # A closed tracker may be kept for its history, so it lets go of the model.
        self._closed, self._given.last = True, None
        self.recorder.close()

    def _measure(self, call: Call) -> None:
        self.recorder.wait_for_jit()
        self.recorder.make_room(call.now.step)
        with not_strict():
            self.take(call.now, self._measured(call))

    def _measured(self, call: Call) -> Measured:
        prepare = self.recorder.prepare if self.measurement.records else bool
        measured = self.measurement(*call.kept, on_shape=prepare)
        # Within a compiled function, even parameters that have values give a traced result.
        refuse_traced("the snapshot", *jax.tree.leaves(measured))
        return measured

    def take(self, now: Moment, measured: Measured) -> None:
        """Records what was measured at a call, and does not wait for anything."""
        if unseen := self.measurement.unseen:
            self.recorder.warn(unseen_message(unseen))
            self.measurement.unseen = {}
        # This thread starts all programs for several devices: programs of two threads would wait for each other.
        arrays = jax.tree.map(on_one_device, (measured.products, measured.features))
        # What a device still computes is not waited for.
        scalars = {name: value if isinstance(value, Array) else float(value) for name, value in now.scalars.items()}
        if self.measurement.records:
            self.recorder.submit(Snapshot(now.step, now.seconds, scalars, self.measurement.shapes, *arrays))
        self.clock.measured(now.step)
