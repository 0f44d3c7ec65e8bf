"""Refuses an ``f`` whose outputs depend on the other examples in the batch: its batches give another kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._typing import PyTree, wide
from ._outputs import NamedOutputs, refuse_other_rows


def smaller_batch(size: int) -> int:
    """How many examples to compare with a batch of ``size``; a batch of one is special in some models."""
    return 1 if size == 2 else 2


class BatchErrors(NamedTuple):
    """How far an output of the first examples depends on the batch that they are in; zero for no more than rounding.

    Attributes:
        neighbours: the relative error next to other examples, in a batch of the same size.
        size: the relative error in a batch of another size.
    """

    neighbours: Any
    size: Any

    def message(self, name: str, compared: str, remedy: str) -> str:
        """Why batches do not give the kernel of the whole; empty if they do, but for what :meth:`warning` says."""
        if self.neighbours > 0:
            return dependence(name, self.neighbours, remedy)
        if self.size >= GROSS:
            return (
                f"{name} of f depends on the size of the batch: it differs by {self.size:.0%} {compared}, so batches "
                f"cannot give the kernel of the whole. Let f return the same for every number of examples, or {remedy}."
            )
        return ""

    def warning(self, name: str, compared: str) -> str:
        """What to say of an output that rounding changes much; empty if it does not."""
        if self.message(name, compared, "") or not self.size > 0:
            return ""
        return (
            f"{name} of f is ill-conditioned: rounding alone changes it by {self.size:.1%} {compared}, so its kernel "
            "is no more exact than that. A usual cause is a BatchNorm whose running statistics come from few examples."
        )


def traced_errors(
    f: Callable[[PyTree], PyTree], x: PyTree, batch_size: int, argument: str, *, draws: bool
) -> dict[str, BatchErrors]:
    """How far the outputs of the first examples depend on their batch, for use within a compiled function.

    Compares the first example next to itself with the same example next to others, which one program computes, so that
    equal outputs are exactly equal. Then it compares batches of two sizes, unless ``f`` draws noise, which may depend
    on the size.

    Args:
        f: a function of the inputs alone.
        x: inputs with more examples than ``batch_size``.
        batch_size: the larger of the two sizes.
        argument: the argument that ``x`` was passed as, for messages.
        draws: whether ``f`` draws noise.

    Returns:
        The errors of each output by its path.
    """
    width = width_of_neighbours(batch_size, draws=draws)

    def outputs(rows: int, leaves: PyTree) -> NamedOutputs:
        y = NamedOutputs.of(f(leaves))
        refuse_other_rows(y, rows, argument)
        return y

    def next_to_others(leaf: Array) -> Array:
        return jnp.stack([jnp.concatenate([leaf[:1], leaf[1 - width :]]), jnp.concatenate([leaf[:1]] * width)])

    def plain(leaves: PyTree) -> PyTree:
        y = outputs(width, leaves)
        return y.structure.unflatten(y.leaves)

    both = NamedOutputs.unchecked(jax.lax.map(plain, jax.tree.map(next_to_others, x)))
    errors = {
        path: BatchErrors(beyond(y[0, :1], y[1, :1], exactness, jnp), jnp.zeros(()))
        for path, y in zip(both.paths, both.leaves, strict=True)
    }
    if draws:
        return errors
    few = smaller_batch(batch_size)
    usual, other = (outputs(n, jax.tree.map(lambda leaf, n=n: leaf[:n], x)) for n in (batch_size, few))
    refuse_other_outputs(usual, batch_size, other, few, argument)
    shared = min(few, batch_size)
    for path, a, b in zip(usual.paths, usual.leaves, other.leaves, strict=True):
        errors[path] = errors[path]._replace(size=beyond(a[:shared], b[:shared], tolerance, jnp))
    return errors


def width_of_neighbours(batch_size: int, *, draws: bool) -> int:
    """The size of the batches in which an example gets other neighbours: noise may depend on it, and else two do."""
    return max(batch_size, 2) if draws else 2


def beyond(a: Any, b: Any, allowed: Callable[[Any], float], xp: ModuleType) -> Any:
    """The relative error of two outputs; zero if it is no more than what is allowed for their dtype."""
    error = relative_error(a, b, xp)
    return xp.where(error > allowed(a.dtype), error, 0)


def relative_error(a: Any, b: Any, xp: ModuleType) -> Any:
    """The largest difference over the largest value; the same NaN or infinity in the same place is no difference.

    Args:
        a: an output.
        b: an output of the same shape.
        xp: ``numpy`` or ``jax.numpy``. On the host NumPy is used, because JAX would compile each operation.
    """
    differ = ~((a == b) | ((a != a) & (b != b)))
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return xp.any(differ).astype("float32")
    a, b = a.astype(wide(a.dtype)), b.astype(wide(b.dtype))
    largest = xp.maximum(*(xp.max(xp.abs(y), where=xp.isfinite(y), initial=0) for y in (a, b)))
    scale = xp.where(largest > 0, largest, 1)
    # Both are scaled first, because the difference of two large numbers may overflow.
    change = xp.abs(a / scale - b / scale)
    return xp.max(xp.where(xp.isfinite(change), change, xp.inf), where=differ, initial=0)


def tolerance(dtype: Any) -> float:
    """The relative error that rounding alone may cause between two batches, which add up in another order."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    eps, single = float(jnp.finfo(dtype).eps), float(jnp.finfo("float32").eps)
    return 10 * max(eps, min(eps, single) ** 0.5)


def exactness(dtype: Any) -> float:
    """The relative error that is left between two runs of one program, on a device that may add up in another order."""
    return min(tolerance(dtype), 1000 * float(jnp.finfo(dtype).eps)) if jnp.issubdtype(dtype, jnp.inexact) else 0.0


GROSS = 0.1
"""The relative error between batches of two sizes that rounding does not explain, in a model of any use."""


def dependence(name: str, error: float, remedy: str) -> str:
    """What to say of an output that depends on the other examples in the batch."""
    return (
        f"{name} of f depends on the other examples in the batch: the first row differs by {error:.2g} of its largest "
        "value next to other examples, so batches cannot give the kernel of the whole. Run the model in evaluation "
        f"mode (train=False, is_training=False, model.eval()), or {remedy}."
    )


def host_error(a: Any, b: Any, allowed: Callable[[Any], float]) -> float:
    """What :func:`beyond` says of two outputs on the host."""
    with np.errstate(all="ignore"):
        return float(beyond(a, b, allowed, np))


def warn_or_refuse(names: Sequence[str], errors: Iterable[BatchErrors], compared: str) -> None:
    """Warns of the worst output that rounding changes much.

    Args:
        names: the outputs as messages call them.
        errors: their errors.
        compared: between which sizes of the batch.

    Raises:
        ValueError: names the first output that depends on its batch.
    """
    found = list(zip(names, errors, strict=True))
    for name, error in found:
        if message := error.message(name, compared, "pass check=False to take batches as they are"):
            raise ValueError(message)
    name, error = max(found, key=lambda one: one[1].size)
    if message := error.warning(name, compared):
        warnings.warn(message, stacklevel=2)


def refuse_other_outputs(usual: NamedOutputs, size: int, other: NamedOutputs, rows: int, argument: str) -> None:
    """Refuses an ``f`` that returns other outputs for another size of the batch.

    Raises:
        ValueError: names the outputs that only one of the two has.
    """
    names = sorted({*usual.paths} ^ {*other.paths})
    if names:
        raise ValueError(
            f"f returns {', '.join(map(repr, names[:3]))} only for batches of {size} or only for batches of {rows} "
            f"examples of {argument}; return the same outputs for every size of the batch, or take another batch_size."
        )
