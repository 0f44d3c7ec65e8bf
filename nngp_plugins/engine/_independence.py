"""Refuses an ``f`` whose outputs depend on the other examples in the batch: its batches give another kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._typing import PyTree
from ._outputs import NamedOutputs, refuse_other_rows


def smaller_batch(size: int) -> int:
    """How many examples to compare with a batch of ``size``; a batch of one is special in some models."""
    return 1 if size == 2 else 2


def traced_errors(
    f: Callable[[PyTree], PyTree], x: PyTree, batch_size: int, argument: str, *, draws: bool
) -> dict[str, Array]:
    """How far the outputs of the first examples depend on the others in the batch, for use within a compiled function.

    Compares batches of two sizes. Noise may depend on the size, so for an ``f`` that draws noise it compares the first
    example next to itself with the same example next to others.

    Args:
        f: a function of the inputs alone.
        x: inputs with more examples than ``batch_size``.
        batch_size: the larger of the two sizes.
        argument: the argument that ``x`` was passed as, for messages.
        draws: whether ``f`` draws noise.

    Returns:
        The relative error of each output by its path; zero if it is no more than rounding.
    """

    def outputs(cut: Callable[[Array], Array]) -> NamedOutputs:
        return NamedOutputs.of(f(jax.tree.map(cut, x)))

    if draws:
        width, shared = max(batch_size, 2), 1
        usual = outputs(lambda leaf: jnp.concatenate([leaf[:1], leaf[1 - width :]]))
        other = outputs(lambda leaf: jnp.concatenate([leaf[:1]] * width))
    else:
        few = smaller_batch(batch_size)
        usual, other = outputs(lambda leaf: leaf[:batch_size]), outputs(lambda leaf: leaf[:few])
        refuse_other_outputs(usual, batch_size, other, few, argument)
        refuse_other_rows(other, few, argument)
        shared = min(few, batch_size)
    errors = {}
    for path, a, b in zip(usual.paths, usual.leaves, other.leaves, strict=True):
        error = relative_error(a[:shared], b[:shared], jnp)
        errors[path] = jnp.where(error > tolerance(a.dtype), error, 0)
    return errors


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
    wide = jnp.promote_types(a.dtype, jnp.float32)
    a, b = a.astype(wide), b.astype(wide)
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


NEXT_TO_OTHERS = "next to other examples"


def dependence(name: str, error: float, compared: str, remedy: str) -> str:
    """What to say of an output that depends on the other examples in the batch."""
    return (
        f"{name} of f depends on the other examples in the batch: the first rows differ by {error:.0%} {compared}, so "
        "batches cannot give the kernel of the whole. Run the model in evaluation mode (train=False, "
        f"is_training=False, model.eval()), or {remedy}."
    )


def refuse_dependence(
    names: Sequence[str], usual: Sequence[Array], other: Sequence[Array], *, rows: int, compared: str
) -> None:
    """Refuses outputs of the same examples in two batches that differ by more than rounding.

    Args:
        names: the outputs as messages call them.
        usual: the outputs in a batch of the usual size.
        other: the outputs in the other batch.
        rows: how many examples the two batches have in common, in front.
        compared: how the two batches differ, for the message.

    Raises:
        ValueError: names the first output that differs.
    """
    for name, a, b in zip(names, usual, other, strict=True):
        with np.errstate(all="ignore"):
            error = float(relative_error(np.asarray(a[:rows]), np.asarray(b[:rows]), np))
        if error > tolerance(a.dtype):
            raise ValueError(dependence(name, error, compared, "pass check=False to take batches as they are"))


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
