"""Kernels of finite outputs whose products leave the range of the kernel's dtype, which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from .._typing import wide
from ._inputs import Range

if TYPE_CHECKING:
    from ._nngp import LeafPair
    from ._plan import KernelPlan


def may_overflow(
    plan: KernelPlan, pairs: Iterable[LeafPair], y1: Mapping[int, Array], y2: Mapping[int, Array]
) -> Array:
    """Whether products of finite outputs might leave the range of a kernel, within a compiled function.

    It takes one pass over outputs, and none over kernels.

    Args:
        plan: the plan.
        pairs: the kernels.
        y1: the outputs of the rows, by their places.
        y2: those of the columns.
    """
    dtype = jnp.result_type(float)
    sides = []
    for outputs in (y1, y2) if y2 is not y1 else (y1,):
        sizes = [jnp.abs(y.astype(wide(y.dtype))).max().astype(dtype) for y in outputs.values()]
        sides.append((list(outputs), jnp.stack(sizes)))
    largest = [
        sizes[np.asarray([places.index(pair[side]) for pair in pairs])]
        for side, (places, sizes) in enumerate((sides[0], sides[-1]))
    ]
    kernels = [plan.pairs[pair] for pair in pairs]
    # A symmetric kernel is half of the sum of a product and its mirror image.
    most = np.asarray([float(jnp.finfo(kernel.dtype).max) / 2 / kernel.contraction.size for kernel in kernels], dtype)
    # Outputs that are not finite make kernels that are not, as they should.
    return (jnp.isfinite(largest[0]) & jnp.isfinite(largest[1]) & (largest[0] * largest[1] > most)).any()


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
    raise overflow_of(kernel.name, kernel.dtype, f" at {where}" if where else "")


def overflow_of(name: str, dtype: Any, where: str = "") -> ValueError:
    """The error that says of which output the kernel overflows, and perhaps where."""
    return ValueError(
        f"the kernel of {name} overflows {jnp.dtype(dtype)}{where}, although its outputs are finite: their products "
        "are too large. Divide the outputs by a number, which divides the kernel by its square, or take nngp.gram, "
        "whose metrics do not depend on the size of kernels."
    )


def refuse_overflow_of(plan: KernelPlan, kernels: Mapping[LeafPair, Any]) -> None:
    """Refuses whole kernels that are not finite.

    Raises:
        ValueError: as :func:`refuse_overflow`.
    """
    for pair, kernel in kernels.items():
        if not jnp.isfinite(kernel).all():
            refuse_overflow(plan, pair, kernel, ((0, plan.n1), (0, plan.n2 or plan.n1)))
