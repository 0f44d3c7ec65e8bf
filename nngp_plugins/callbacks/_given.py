"""What the calls of a tracker are given, as it was at each call, whatever training does to it later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..adapters import ModelFn
from ..engine import on_one_device
from ._checks import check_params, refuse_traced
from ._pool import not_strict
from ._schedules import Moment

TREES: Any = dict | Array | np.ndarray | Mapping | Sequence
"""What holds parameters; anything else is a live model, and training goes on writing to its arrays."""


class Call(NamedTuple):
    """A call of a tracker.

    Attributes:
        now: when it came, with its scalars.
        given: the parameters and the state, the very objects that the caller gave.
        kept: the same as they were, in new containers; the very objects if nothing is known to change them.
        values: the arrays of a live model at that call, because training goes on writing to the model; None otherwise.
    """

    now: Moment
    given: tuple[Any, Any]
    kept: tuple[Any, Any]
    values: list[Any] | None


class Given:
    """Keeps what calls are given, and copies only what training changes.

    A call that does not measure must cost next to nothing, so it copies what earlier calls have shown to change: NumPy
    arrays; a container that is given again, because a loop that makes new parameters has new containers for them; and
    scalars, if those of the call before have been donated since. JAX arrays never change.

    Args:
        f: what the tracker measures.
    """

    def __init__(self, f: Any):
        self._f = f
        self._holds_numpy = self._donates = False
        self.last: Call | None = None

    def donated(self) -> list[str]:
        """The scalars of the last call that have been donated since."""
        donated = [] if self.last is None else _donated(self.last)
        self._donates = self._donates or bool(donated)
        return donated

    def call(self, now: Moment, params: Any, state: Any, *, due: bool) -> Call:
        """A new call.

        Args:
            now: when it came.
            params: the parameters, or a live model.
            state: the model's state.
            due: whether it is measured at once, by what copies NumPy arrays itself.
        """
        if (due or self._donates) and any(isinstance(value, Array) for value in now.scalars.values()):
            with not_strict():
                now = now._replace(scalars={name: _as_now(value) for name, value in now.scalars.items()})
        given = params, state
        if due:
            if type(params).__name__ == "LookaheadParams":
                check_params(params)
            leaves = jax.tree.leaves(given)
            refuse_traced("params", *leaves)
            self._holds_numpy = self._holds_numpy or any(map(_is_numpy, leaves))
            return Call(now, given, given, None)
        if not isinstance(params, TREES):
            values = own(self._values(params))
            refuse_traced("params", *values)
            return Call(now, given, (params, own(state)), values)
        refuse_traced("params", params)
        before = (None, None) if self.last is None else self.last.given
        is_given_again = params is before[0] and not isinstance(params, Array)
        is_given_again = is_given_again or (state is before[1] and state is not None)
        return Call(now, given, own(given) if is_given_again or self._holds_numpy else given, None)

    def _values(self, model: Any) -> list[Any]:
        """The arrays that a live model holds now."""
        leaves = jax.tree.leaves(model)
        # A Keras model is a leaf itself; its adapter takes it apart.
        if isinstance(self._f, ModelFn) and len(leaves) == 1 and leaves[0] is model:
            return jax.tree.leaves(self._f.variables(model))
        return leaves

    def lost(self, call: Call) -> str:
        """What became of the parameters or the scalars of a call since then; empty if all are as they were."""
        leaves = jax.tree.leaves(call.kept)
        refuse_traced("params", *leaves)
        if any(getattr(leaf, "is_deleted", bool)() for leaf in leaves):
            return "its parameters were donated to a later step"
        if donated := _donated(call):
            return f"{donated[0]}= was donated to a later step"
        if call.values is not None:
            pairs = zip(call.values, self._values(call.given[0]), strict=False)
            if not all(a is b or (_is_numpy(a) and a.tobytes() == np.asarray(b).tobytes()) for a, b in pairs):
                return "its parameters were trained further since, in the live model"
        uncopied = [kept for given, kept in zip(call.given, call.kept, strict=True) if given is kept]
        if call.values is None and any(map(_is_numpy, jax.tree.leaves(uncopied))):
            return "its parameters are NumPy arrays, unlike those before, and may have been written to since"
        return ""


def own(tree: Any) -> Any:
    """The same in new containers, with copies of NumPy arrays. JAX reads these after its call has returned."""
    leaves, structure = jax.tree_util.tree_flatten(tree)
    return jax.tree_util.tree_unflatten(
        structure, [np.array(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    )


def _is_numpy(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray)


def _donated(call: Call) -> list[str]:
    return [name for name, value in call.now.scalars.items() if isinstance(value, Array) and value.is_deleted()]


def _as_now(value: Any) -> Any:
    """A scalar in a buffer that no later step takes over; nothing waits for its value."""
    return _copy(on_one_device(value)) if isinstance(value, Array) else value


_copy = jax.jit(jnp.copy)
