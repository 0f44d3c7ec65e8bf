"""The static half of a contraction: which axes are averaged, kept or paired, decided once from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import jax
import numpy as np

Axes = int | Sequence[int] | Callable[[jax.ShapeDtypeStruct], int | Sequence[int]]


def all_but_batch(output: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Every axis of an output but the batch axis 0: as ``trace_axes``, it makes each kernel ``(N1, N2)``.

    Args:
        output: shape and dtype of one output leaf, ``(N, ...)``.

    Returns:
        The axes ``1, 2, ...``; empty for an output of shape ``(N,)``.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x * params, trace_axes=nngp.all_but_batch)
        >>> kernel_fn(jnp.ones((4, 8, 8, 3)), None, 2.0).shape
        (4, 4)
    """
    return tuple(range(1, output.ndim))


@dataclass(frozen=True)
class Leaf:
    """An output leaf as the plan sees it: how the user calls it, and its shape."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} with shape {self.shape}"


@dataclass(frozen=True)
class Plan:
    """One contraction, ready for a single ``dot_general``.

    Attributes:
        traced: the axes to contract, of the first and of the second output.
        diagonal: the axes to keep once, of the first and of the second output.
        order: transposition of ``dot_general``'s result into the promised axis order.
        size: number of terms that the trace averages over.
    """

    traced: tuple[tuple[int, ...], tuple[int, ...]]
    diagonal: tuple[tuple[int, ...], tuple[int, ...]]
    order: tuple[int, ...]
    size: int


def plan(
    leaf1: Leaf, leaf2: Leaf, dtypes: tuple[jax.typing.DTypeLike, ...], trace_axes: Axes, diagonal_axes: Axes
) -> Plan:
    """Plans the contraction of two output leaves; every mistake in the axes is an error here.

    The result keeps the axis order of the first output: traced axes absent, diagonal axes once, every
    other axis twice and adjacent. Further axes of a second output with more of them come last.
    """
    axes = []
    for leaf, dtype in zip((leaf1, leaf2), dtypes, strict=True):
        traced = _normalise("trace_axes", trace_axes, leaf, dtype)
        diagonal = _normalise("diagonal_axes", diagonal_axes, leaf, dtype)
        for axis in set(traced) & set(diagonal):
            raise ValueError(
                f"trace_axes={_show(trace_axes)} and diagonal_axes={_show(diagonal_axes)} both name axis {axis} "
                f"of {leaf}; an axis is either averaged over or kept as a diagonal, so name it in one of them."
            )
        axes.append((traced, diagonal))
    (traced1, diagonal1), (traced2, diagonal2) = axes
    _check_equal_sizes("trace_axes", trace_axes, leaf1, traced1, leaf2, traced2)
    _check_equal_sizes("diagonal_axes", diagonal_axes, leaf1, diagonal1, leaf2, diagonal2)
    return Plan(
        traced=(traced1, traced2),
        diagonal=(diagonal1, diagonal2),
        order=_result_order(len(leaf1.shape), traced1, diagonal1, len(leaf2.shape) - len(traced2) - len(diagonal2)),
        size=math.prod(leaf1.shape[axis] for axis in traced1),
    )


def _normalise(argument: str, axes: Axes, leaf: Leaf, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """The axes as non-negative integers, in the order in which the user names them."""
    named: Any = axes(jax.ShapeDtypeStruct(leaf.shape, dtype)) if callable(axes) else axes
    said = f"{argument}={_show(axes)}" + (f", which gave {named!r}," if callable(axes) else "")
    several = as_sequence(named)
    try:
        wanted = [index(axis) for axis in ((named,) if several is None else several)]
    except TypeError:
        raise TypeError(f"{said} must be an int, a sequence of ints, or a function that returns one.") from None
    ndim = len(leaf.shape)
    normalised: list[int] = []
    for axis in wanted:
        if not -ndim <= axis < ndim:
            has = f"axes {-ndim} to {ndim - 1}" if ndim else "no axes (return a batch axis, or name no axis)"
            raise ValueError(f"{said} names axis {axis} of {leaf}, which has {has}.")
        if axis % ndim in normalised:
            raise ValueError(f"{said} names axis {axis % ndim} of {leaf} twice; name each axis once.")
        normalised.append(axis % ndim)
    return tuple(normalised)


def as_sequence(axes: Any) -> tuple[Any, ...] | None:
    """Several axes as a tuple; None for anything else."""
    if isinstance(axes, np.ndarray) and axes.ndim == 1:
        axes = axes.tolist()
    return tuple(axes) if isinstance(axes, Sequence) and not isinstance(axes, str | bytes) else None


def _check_equal_sizes(
    argument: str, axes: Axes, leaf1: Leaf, axes1: tuple[int, ...], leaf2: Leaf, axes2: tuple[int, ...]
) -> None:
    if len(axes1) != len(axes2):
        raise ValueError(
            f"{argument}={_show(axes)} names {len(axes1)} axes of {leaf1} but {len(axes2)} of {leaf2}; "
            "the two outputs are paired axis by axis, so name as many of each."
        )
    for axis1, axis2 in zip(axes1, axes2, strict=True):
        if leaf1.shape[axis1] != leaf2.shape[axis2]:
            raise ValueError(
                f"{argument}={_show(axes)} pairs axis {axis1} of {leaf1} with axis {axis2} of {leaf2}, whose sizes "
                f"{leaf1.shape[axis1]} and {leaf2.shape[axis2]} differ; only other axes may differ between x1 and x2."
            )


def _result_order(ndim1: int, traced1: tuple[int, ...], diagonal1: tuple[int, ...], free2: int) -> tuple[int, ...]:
    """Transposition of ``dot_general``'s ``(diagonal..., free of 1..., free of 2...)`` into our axis order."""
    free1 = [axis for axis in range(ndim1) if axis not in traced1 and axis not in diagonal1]
    firsts = {axis: len(diagonal1) + i for i, axis in enumerate(free1)}
    seconds = iter(range(len(diagonal1) + len(free1), len(diagonal1) + len(free1) + free2))
    order: list[int] = []
    for axis in range(ndim1):
        if axis in diagonal1:
            order.append(diagonal1.index(axis))
        elif axis in firsts:
            order.append(firsts[axis])
            order.extend(second for second in [next(seconds, None)] if second is not None)
    return (*order, *seconds)


def _show(axes: Axes) -> str:
    return getattr(axes, "__name__", repr(axes)) if callable(axes) else repr(axes)
