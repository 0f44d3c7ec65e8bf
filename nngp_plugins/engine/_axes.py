"""The contraction of one pair of output leaves, decided from shapes: which axes are averaged, kept or paired."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Literal

import jax
import numpy as np

Role = Literal["paired", "diagonal", "traced"]
AxesOfBoth = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of the first and of the second output."""
Axes = int | Sequence[int] | Callable[[jax.ShapeDtypeStruct], int | Sequence[int]]


def all_but_batch(output: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Every axis of an output except batch axis 0: as ``trace_axes`` it makes each kernel ``(N1, N2)``.

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
    """What a contraction is decided from: the name of an output leaf in messages, and its shape."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} with shape {self.shape}"


@dataclass(frozen=True)
class Contraction:
    """How one pair of leaves becomes a kernel, ready for a single ``dot_general``.

    Attributes:
        traced: the axes that are summed over, of the first and of the second output.
        diagonal: the axes that are kept once, of the first and of the second output.
        free: how many axes are paired, of the first and of the second output.
        order: the transposition of ``dot_general``'s ``(diagonal..., free of 1..., free of 2...)`` into the promised
            order.
        size: the number of terms that the trace averages over.
    """

    traced: AxesOfBoth
    diagonal: AxesOfBoth
    free: tuple[int, int]
    order: tuple[int, ...]
    size: int

    def batch_role(self) -> Role | None:
        """What becomes of batch axis 0; None if it meets a different axis of the other output."""
        roles: tuple[tuple[Role, AxesOfBoth], ...] = (("traced", self.traced), ("diagonal", self.diagonal))
        for role, axes in roles:
            places = [axis.index(0) if 0 in axis else None for axis in axes]
            if places != [None, None]:
                return role if places[0] == places[1] else None
        return "paired"

    def operand_orders(self) -> AxesOfBoth:
        """The transpositions of both outputs into ``(diagonal..., free..., traced...)``, which multiplies fastest."""
        return self._operand_order(0), self._operand_order(1)

    def _operand_order(self, side: int) -> tuple[int, ...]:
        traced, diagonal = self.traced[side], self.diagonal[side]
        every_axis = range(len(diagonal) + self.free[side] + len(traced))
        free = [axis for axis in every_axis if axis not in diagonal and axis not in traced]
        return (*diagonal, *free, *traced)

    def of_operands(self) -> Contraction:
        """The same contraction, of outputs that are transposed by :meth:`operand_orders`."""
        diagonal = tuple(range(len(self.diagonal[0])))
        traced = [tuple(range(start, start + len(self.traced[0]))) for start in (len(diagonal) + f for f in self.free)]
        return replace(self, traced=(traced[0], traced[1]), diagonal=(diagonal, diagonal))

    def shape(self, shape1: tuple[int, ...], shape2: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the kernel of outputs with these shapes."""
        sizes = [shape1[axis] for axis in self.diagonal[0]]
        for shape, traced, diagonal in zip((shape1, shape2), self.traced, self.diagonal, strict=True):
            sizes += [size for axis, size in enumerate(shape) if axis not in traced and axis not in diagonal]
        return tuple(sizes[axis] for axis in self.order)

    def mirrored(self, mirror: Contraction) -> tuple[int, ...]:
        """The transposition of this kernel ``y1 y2ᵀ`` into ``y2 y1ᵀ``, whose axes ``mirror`` orders."""
        diagonal, (free1, free2) = len(self.diagonal[0]), self.free

        def here(axis: int) -> int:
            if axis < diagonal:
                return axis
            return axis + free1 if axis < diagonal + free2 else axis - free2

        return tuple(self.order.index(here(axis)) for axis in mirror.order)


def contraction_of(
    leaf1: Leaf, leaf2: Leaf, dtypes: tuple[jax.typing.DTypeLike, ...], trace_axes: Axes, diagonal_axes: Axes
) -> Contraction:
    """Decides the contraction of two output leaves; every mistake in the axes is an error here.

    The kernel keeps the axis order of the first output: traced axes are absent, diagonal axes stand once, and every
    other axis stands twice, adjacent. If the second output has more axes, the additional ones come last.
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
    ndims = len(leaf1.shape), len(leaf2.shape)
    free1, free2 = (ndim - len(traced1) - len(diagonal1) for ndim in ndims)
    return Contraction(
        traced=(traced1, traced2),
        diagonal=(diagonal1, diagonal2),
        free=(free1, free2),
        order=_result_order(ndims[0], traced1, diagonal1, free2),
        size=math.prod(leaf1.shape[axis] for axis in traced1),
    )


def _normalise(argument: str, axes: Axes, leaf: Leaf, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """The axes as non-negative integers, in the order in which the user names them."""
    named: Any = axes
    said = f"{argument}={_show(axes)}"
    if callable(axes):
        named = axes(jax.ShapeDtypeStruct(leaf.shape, dtype))
        said += f", which gave {named!r},"
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
    """A sequence of axes as a tuple; None for anything else."""
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
    """The ``order`` of a contraction."""
    free1 = [axis for axis in range(ndim1) if axis not in traced1 and axis not in diagonal1]
    firsts = {axis: len(diagonal1) + i for i, axis in enumerate(free1)}
    seconds = iter(range(len(diagonal1) + len(free1), len(diagonal1) + len(free1) + free2))
    order: list[int] = []
    for axis in range(ndim1):
        if axis in diagonal1:
            order.append(diagonal1.index(axis))
        elif axis in firsts:
            order.append(firsts[axis])
            if (second := next(seconds, None)) is not None:
                order.append(second)
    return (*order, *seconds)


def _show(axes: Axes) -> str:
    return getattr(axes, "__name__", repr(axes)) if callable(axes) else repr(axes)
