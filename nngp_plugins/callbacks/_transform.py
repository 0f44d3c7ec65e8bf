"""A tracker within a compiled training loop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import io_callback

from .._trees import arrays_alone
from ..engine import is_traced
from ._checks import check_names, check_params, is_real_number
from ._measure import Measured
from ._pool import not_strict
from ._schedules import Moment
from ._tracker import KernelTracker

if TYPE_CHECKING:
    import optax


class TrackKernelState(NamedTuple):
    """State of :func:`track_kernel`.

    Attributes:
        step: the number of updates so far.
    """

    step: Array


def track_kernel(tracker: KernelTracker) -> optax.GradientTransformationExtraArgs:
    """A tracker as an optax transformation, for training loops inside ``jit``, ``lax.scan`` or ``lax.fori_loop``.

    It leaves updates alone. At update ``t`` it measures the parameters before that update, as step ``t``: the numbers
    are those of ``tracker(t, params)`` just before the update. If the loop runs in Python, call the tracker itself,
    which costs nothing at other steps; this transformation asks the host at every update whether to measure.

    Extra arguments of ``optimizer.update(grads, opt_state, params, loss=loss, model_state=state)`` that are single
    numbers are logged; ``model_state`` is the model's state, such as running statistics.

    If the tracker has a ``batch_size`` and the outputs depend on the other examples in the batch, it warns once.

    It measures the ``params`` that its ``update`` is given. Inside :func:`optax.lookahead` these are the fast ones, and
    inside ``optax.contrib.schedule_free`` those that gradients are taken at. To measure others, such as averages,
    leave it out of the chain and call it yourself: ``_, track_state = track.update(updates, track_state, averages)``.

    Call ``tracker(steps, params)`` with the last parameters before :meth:`KernelTracker.close` to have these as well.

    Args:
        tracker: what to measure, and when. Only one training at a time may use it.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`, for any place in :func:`optax.chain`.

    Raises:
        ValueError: the probe of ``tracker`` is sharded over several processes; ``update`` without ``params``, with
            those of one group of :func:`optax.partition` or :func:`optax.masked`, with the two sets of
            :func:`optax.lookahead`, or of several trainings under ``vmap``.

    Example:
        >>> import jax, jax.numpy as jnp, optax, nngp_plugins as nngp
        >>> x = jax.random.normal(jax.random.key(0), (16, 3))
        >>> tracker = nngp.KernelTracker(lambda w, x: {"hidden": x @ w}, x, schedule=nngp.every(4))
        >>> optimizer = optax.chain(optax.sgd(0.1), nngp.track_kernel(tracker))
        >>> @jax.jit
        ... def train(w):
        ...     def step(carry, _):
        ...         w, opt_state = carry
        ...         loss, grads = jax.value_and_grad(lambda w: jnp.mean((x @ w - 1) ** 2))(w)
        ...         updates, opt_state = optimizer.update(grads, opt_state, w, loss=loss)
        ...         return (optax.apply_updates(w, updates), opt_state), loss
        ...     return jax.lax.scan(step, (w, optimizer.init(w)), length=10)
        >>> (w, opt_state), losses = train(jnp.eye(3))
        >>> tracker.close()
        >>> tracker.history.steps
        array([0, 4, 8])
    """
    import optax

    host = HostSide(tracker)
    measurement = tracker.measurement
    measured_now = jax.jit(partial(measurement.traced, check=True))

    @not_strict()
    def init(params: optax.Params) -> TrackKernelState:
        check_params(params)
        return TrackKernelState(jnp.zeros((), jnp.int32))

    @not_strict()
    def update(
        updates: optax.Updates,
        state: TrackKernelState,
        params: optax.Params | None = None,
        *,
        model_state: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, TrackKernelState]:
        if params is None:
            raise ValueError("track_kernel measures params; pass them: optimizer.update(grads, opt_state, params).")
        check_params(params)
        scalars = {name: value for name, value in extra.items() if is_real_number(value)}
        check_names(scalars, tracker.recorder.metrics)
        if not is_traced((updates, state, scalars, params, model_state)):
            # In Python there is nothing to compile into. JAX would compile the choice below anew for every step.
            if host.is_due(state.step, scalars):
                measured = measured_now(arrays_alone(params), model_state, measurement.probe_x)
                host.take(state.step, scalars, measured)
            return updates, TrackKernelState(state.step + 1)
        step = _step_of_one_training(state.step, _arrays((updates, scalars, params, model_state)))
        nothing = host.measure_in_program(step, scalars, params, model_state)
        return updates, TrackKernelState(step + 1 + nothing)

    return optax.GradientTransformationExtraArgs(init, update)


def _arrays(tree: Any) -> list[Array]:
    """Returns the arrays of a tree; a whole Equinox model also has leaves that are none, such as its activation."""
    return jax.lax.stop_gradient([leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, Array)])


@jax.custom_batching.custom_vmap
def _step_of_one_training(step: Array, given: list[Array]) -> Array:
    """Returns the step, and refuses what ``vmap`` maps over several trainings; JAX alone would not say why it fails."""
    return step


@_step_of_one_training.def_vmap
def _refuse_several(axis_size: int, in_batched: Any, step: Array, given: list[Array]) -> tuple[Array, Any]:
    raise ValueError(
        f"vmap maps track_kernel over {axis_size} trainings, but a tracker follows one. Train the seeds one after "
        "another, with a new tracker for each. Or leave track_kernel out, run some steps at a time under vmap, and "
        "then call a tracker for each seed i: trackers[i](step, jax.tree.map(lambda leaf: leaf[i], params))."
    )


class HostSide:
    """What the compiled loop calls on the host. It never waits for JAX, because JAX waits for it."""

    def __init__(self, tracker: KernelTracker):
        if tracker.measurement.is_shared:
            raise ValueError(
                "track_kernel asks the host of one process, and several share the probe_x of this tracker; call "
                "tracker(step, params) in the training loop of every process."
            )
        self._tracker, self._clock, self._recorder = tracker, tracker.clock, tracker.recorder
        self._warned_of_step = self._warned_of_batch = False
        self._recorder.expect_from_jit()

    def measure_in_program(self, step: Array, scalars: dict[str, Array], params: Any, state: Any) -> Array:
        """Measures if it is time to, when the compiled loop that calls this gets there; returns 0.

        The results of the callbacks go into the next step, so that calls come in order on any number of devices.
        """
        due = io_callback(self.is_due, jax.ShapeDtypeStruct((), bool), step, scalars)
        measurement = self._tracker.measurement

        def measure() -> Array:
            measured = measurement.traced(params, state, measurement.probe_x, check=True)
            return io_callback(self.take, jax.ShapeDtypeStruct((), jnp.int32), step, scalars, measured)

        nothing: Array = jax.lax.cond(due, measure, lambda: jnp.zeros((), jnp.int32))
        return nothing

    def is_due(self, step: Array, scalars: dict[str, Array]) -> np.bool_:
        """Whether to measure."""
        now = self._moment(step, scalars)
        if self._tracker.closed:
            return np.bool_(False)
        if self._clock.has(now):
            return np.bool_(self._clock.is_first_again(now))
        before = self._clock.last_counted
        if before is not None and now.step < before.step:
            if not self._warned_of_step:
                self._recorder.warn(
                    f"track_kernel: step {now.step} comes after step {before.step}, as with a new opt_state; nothing "
                    "is measured until it is passed. Make a new tracker for a new training."
                )
            self._warned_of_step = True
            return np.bool_(False)
        due = self._clock.due(now)
        self._clock.saw(now)
        return np.bool_(due)

    @not_strict()
    def take(self, step: Array, scalars: dict[str, Array], measured: Measured) -> np.int32:
        """Takes what was measured."""
        now, measured = self._moment(step, scalars), jax.tree.map(np.asarray, measured)
        # Refusals are warnings here, because a compiled loop goes on.
        refusals, warned = self._tracker.measurement.dependence(measured.errors)
        if (messages := refusals + warned) and not self._warned_of_batch:
            self._recorder.warn(messages[0])
            self._warned_of_batch = True
        if self._clock.has(now):
            self._recorder.refuse_other_training(now.step, measured.products)
        else:
            self._tracker.take(now, measured)
        return np.int32(0)

    def _moment(self, step: Array, scalars: dict[str, Array]) -> Moment:
        return self._clock.moment(int(step), {name: float(value) for name, value in scalars.items()})
