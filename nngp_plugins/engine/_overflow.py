"""Kernels of finite outputs whose products leave the range of the kernel's dtype, which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._typing import wide
from ._inputs import Range

if TYPE_CHECKING:
    from ._nngp import LeafPair
    from ._outputs import Held
    from ._plan import KernelPlan, LayerGroup


def largest_outputs(held: Held, axes: Iterable[int], size: int) -> Any:
    """The largest magnitude of each output of a block, ``(K,)``: one pass over outputs, and none over kernels.

    Args:
        held: the outputs of a block; those on a device are not waited for.
        axes: the axis of each output that counts examples.
        size: the number of examples.
    """
    if held.leaves and isinstance(held.leaves[0], np.ndarray):
        rows = slice(held.first, held.first + size)
        return np.asarray(
            [_largest_on_host(y[(slice(None),) * axis + (rows,)]) for y, axis in zip(held.leaves, axes, strict=True)]
        )
    return _largest(held.leaves, np.int32(held.first), tuple(axes), size)


@partial(jax.jit, static_argnums=(2, 3))
def _largest(leaves: list[Array], first: Array, axes: tuple[int, ...], size: int) -> Array:
    rows = (lax.dynamic_slice_in_dim(y, first, size, axis) for y, axis in zip(leaves, axes, strict=True))
    return jnp.stack([jnp.abs(y.astype(wide(y.dtype))).max().astype(jnp.result_type(float)) for y in rows])


def _largest_on_host(y: np.ndarray) -> float:
    if y.dtype.kind == "c":
        return float(np.abs(y).max())
    # The absolute values of all outputs would take as much memory as they do.
    return float(np.maximum(np.float64(y.max()), -np.float64(y.min())))


def may_overflow(plan: KernelPlan, group: LayerGroup, largest1: Any, largest2: Any) -> set[LeafPair]:
    """The kernels of a group that products of finite outputs might overflow, by the largest outputs of both sides."""
    sides = jax.device_get((largest1, largest2))
    of_leaf = [dict(zip(group.leaves, side.tolist(), strict=True)) for side in sides]
    found = set()
    for a, b in group.pairs:
        kernel = plan.pairs[a, b]
        bound = 2.0 * kernel.contraction.size * of_leaf[0][a] * of_leaf[1][b]
        # Outputs that are not finite make kernels that are not, as they should.
        if np.isfinite([of_leaf[0][a], of_leaf[1][b]]).all() and bound > float(np.finfo(kernel.dtype).max):
            found.add((a, b))
    return found


def refuse_overflow(plan: KernelPlan, pair: LeafPair, part: Any, at: tuple[Range, ...]) -> None:
    """Refuses a part of a kernel that is not finite.

    Args:
        plan: the plan.
        pair: which kernel.
        part: the part.
        at: the examples of its rows and columns.

    Raises:
        ValueError: names the output, and the first examples.
    """
    bad = np.argwhere(~np.isfinite(np.asarray(part)))
    if not len(bad):
        return
    kernel = plan.pairs[pair]
    starts = [start for start, _ in at[: kernel.batch_axes]]
    first = [int(start + i) for start, i in zip(starts, bad[0], strict=False)]
    where = "".join(f", {side} example {i}" for side, i in zip(("x1", "x2"), first, strict=False)).removeprefix(", ")
    raise ValueError(
        f"the kernel of {kernel.name} overflows {jnp.dtype(kernel.dtype)}{f' at {where}' if where else ''}, although "
        "its outputs are finite: their products are too large. Divide the outputs by a number, which divides the "
        "kernel by its square, or take nngp.gram, whose metrics do not depend on the size of kernels."
    )


def refuse_overflow_of(
    plan: KernelPlan, products: Iterable[tuple[LayerGroup, Any, Any]], kernels: Mapping[LeafPair, Any]
) -> None:
    """Refuses whole kernels that are not finite, of those that might overflow.

    Args:
        plan: the plan.
        products: the largest outputs of both sides, of each group and block.
        kernels: the kernels.

    Raises:
        ValueError: as :func:`refuse_overflow`.
    """
    for pair in {pair for product in products for pair in may_overflow(plan, *product)}:
        if not jnp.isfinite(kernels[pair]).all():
            refuse_overflow(plan, pair, kernels[pair], ((0, plan.n1), (0, plan.n2 or plan.n1)))
