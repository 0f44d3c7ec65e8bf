"""Watching kernels from within a compiled training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import io_callback

from ..metrics import DenseGram
from ._tracker import KernelTracker

if TYPE_CHECKING:
    import optax


class TrackKernelState(NamedTuple):
    """State of :func:`track_kernel`.

    Attributes:
        step: number of updates so far.
    """

    step: Array


def track_kernel(tracker: KernelTracker) -> optax.GradientTransformationExtraArgs:
    """A tracker as an optax transformation, for training loops inside ``jit``, ``lax.scan`` or ``lax.fori_loop``.

    It leaves updates alone. At update ``t`` it measures the parameters before that update, as step ``t``: the numbers
    are those of ``tracker(t, params)`` called by the loop just before. Where the loop runs in Python, call the tracker
    itself, which costs nothing at other steps; this asks the host at every update whether to measure.

    Extra arguments of ``optimizer.update(grads, opt_state, params, loss=loss, model_state=state)`` that are single
    numbers are logged beside; ``model_state`` is the model's state, such as running statistics.

    Call ``tracker(steps, params)`` with the last parameters before :meth:`KernelTracker.close` to have these as well.

    Args:
        tracker: what to measure, and when. It is in use by one training at a time.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`, to go into :func:`optax.chain` in any place.

    Raises:
        ValueError: ``update`` without ``params``.

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
    import optax  # here, for it takes long to import

    host = Host(tracker)

    def init(params: optax.Params) -> TrackKernelState:
        return TrackKernelState(jnp.zeros((), jnp.int32))

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
        scalars = {name: value for name, value in extra.items() if _is_number(value)}
        tracker._check_names(scalars)
        # results of the callbacks go on to the next step, so that calls come in order, on any number of devices
        due = io_callback(host.ask, jax.ShapeDtypeStruct((), bool), state.step, scalars)

        def measure() -> Array:
            grams, narrow = tracker._layer_grams(params, model_state, tracker._probe)
            return io_callback(host.arrive, jax.ShapeDtypeStruct((), jnp.int32), state.step, scalars, grams, narrow)

        nothing = jax.lax.cond(due, measure, lambda: jnp.zeros((), jnp.int32))
        return updates, TrackKernelState(state.step + 1 + nothing)

    return optax.GradientTransformationExtraArgs(init, update)


class Host:
    """The tracker as the compiled loop calls it. It never waits for JAX, which waits for it."""

    def __init__(self, tracker: KernelTracker):
        self.tracker, self._warned = tracker, False
        tracker._late = jax.effects_barrier

    def ask(self, step: Array, scalars: dict[str, Array]) -> np.bool_:
        """Whether to measure."""
        tracker = self.tracker
        now = tracker._moment(int(step), {name: float(value) for name, value in scalars.items()})
        if tracker._closed:
            return np.bool_(False)
        if now.step <= tracker._has:  # the first snapshot is looked at again
            return np.bool_(now.step == tracker._first)
        if tracker._before is not None and now.step < tracker._before.step:
            if not self._warned:
                tracker._recorder.warn(
                    f"track_kernel: step {now.step} comes after step {tracker._before.step}, as with a new opt_state; "
                    "nothing is measured until it is passed. Make a new tracker for a new training."
                )
            self._warned = True
            return np.bool_(False)
        due = tracker._due(now)
        tracker._before = now
        return np.bool_(due)

    def arrive(self, step: Array, scalars: dict[str, Array], grams: DenseGram, narrow: dict[str, Array]) -> np.int32:
        """Takes what was measured."""
        now = self.tracker._moment(int(step), {name: float(value) for name, value in scalars.items()})
        grams, narrow = jax.tree.map(np.asarray, (grams, narrow))
        if now.step <= self.tracker._has:
            self.tracker._compare(now.step, grams)
        else:
            self.tracker._take(now, grams, narrow)
        return np.int32(0)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float | np.generic | np.ndarray | Array):
        return False
    return jnp.shape(value) == () and not jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key)
