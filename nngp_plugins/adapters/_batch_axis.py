"""Which axis of a value is the batch: followed from the inputs through the equations of a jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Axis = int | None
"""An axis; None if it is not known."""

# Each element of the output comes from the elements in the same place, or along one axis, of inputs of its shape.
_ELEMENTWISE = frozenset(
    "abs add add_any and acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp complex conj "  # noqa: SIM905
    "convert_element_type copy copy_p cos cosh cumlogsumexp cummax cummin cumprod cumsum digamma div eq erf erf_inv "
    "erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p log2 logistic lt max min mul name "
    "ne neg nextafter nngp_tag not one_minus_square or polynomial pow psum psum_invariant pvary real reduce_precision "
    "rem rev round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin "
    "sinh sqrt square stop_gradient sub tan tanh xor".split()
)
# The output has the axes of the first input; one that is as long as before is the same axis.
_SAME_AXES = frozenset(
    "dynamic_slice dynamic_update_slice pad reduce_window reduce_window_max reduce_window_min reduce_window_sum "  # noqa: SIM905
    "select_and_gather_add slice".split()
)


def batch_axis(eqn: Any, axes: Sequence[Axis]) -> Axis:
    """The axis of the batch in the outputs of an equation; None if no rule tells.

    Args:
        eqn: an equation without a jaxpr inside.
        axes: the axis of the batch in each of its inputs.
    """
    name = eqn.primitive.name
    if name in _ELEMENTWISE:
        return _elementwise(eqn, axes)
    if name in _SAME_AXES:
        axis = axes[0]
        same = axis is not None and eqn.outvars[0].aval.shape[axis] == eqn.invars[0].aval.shape[axis]
        return axis if same else None
    if name.startswith(("reduce_", "arg")) and "axes" in eqn.params:
        return _without(axes[0], eqn.params["axes"])
    rule = _RULES.get(name)
    return rule(eqn, axes) if rule else None


def _elementwise(eqn: Any, axes: Sequence[Axis]) -> Axis:
    shape = eqn.outvars[0].aval.shape
    known = {axis for v, axis in zip(eqn.invars, axes, strict=True) if axis is not None and v.aval.shape == shape}
    return known.pop() if len(known) == 1 else None


def _without(axis: Axis, removed: Sequence[int]) -> Axis:
    return None if axis is None or axis in removed else axis - sum(other < axis for other in removed)


def _squeeze(eqn: Any, axes: Sequence[Axis]) -> Axis:
    return _without(axes[0], eqn.params["dimensions"])


def _broadcast_in_dim(eqn: Any, axes: Sequence[Axis]) -> Axis:
    return None if axes[0] is None else int(eqn.params["broadcast_dimensions"][axes[0]])


def _transpose(eqn: Any, axes: Sequence[Axis]) -> Axis:
    return None if axes[0] is None else list(eqn.params["permutation"]).index(axes[0])


def _reshape(eqn: Any, axes: Sequence[Axis]) -> Axis:
    """The axis with as many elements before and inside it as before; others are cut or joined."""
    axis, before, after = axes[0], eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if axis is None or eqn.params.get("dimensions") is not None:
        return None
    outside = math.prod(before[:axis])
    return next((i for i, n in enumerate(after) if n == before[axis] and math.prod(after[:i]) == outside), None)


def _concatenate(eqn: Any, axes: Sequence[Axis]) -> Axis:
    known = {axis for axis in axes if axis is not None}
    return known.pop() if len(known) == 1 and eqn.params["dimension"] not in known else None


def _split(eqn: Any, axes: Sequence[Axis]) -> Axis:
    return None if eqn.params["axis"] == axes[0] else axes[0]


def _dot_general(eqn: Any, axes: Sequence[Axis]) -> Axis:
    contracted, batch = eqn.params["dimension_numbers"]
    places, free_before = [], len(batch[0])
    for side, axis in enumerate(axes):
        free = [i for i in range(eqn.invars[side].aval.ndim) if i not in contracted[side] and i not in batch[side]]
        if axis in batch[side]:
            places.append(list(batch[side]).index(axis))
        elif axis in free:
            places.append(free_before + free.index(axis))
        free_before += len(free)
    return places[0] if len(set(places)) == 1 else None


def _convolution(eqn: Any, axes: Sequence[Axis]) -> Axis:
    numbers = eqn.params["dimension_numbers"]
    is_batch = axes[0] == numbers.lhs_spec[0] and axes[1] is None and eqn.params["batch_group_count"] == 1
    return int(numbers.out_spec[0]) if is_batch else None


def _gather(eqn: Any, axes: Sequence[Axis]) -> Axis:
    numbers, (operand, indices) = eqn.params["dimension_numbers"], (v.aval for v in eqn.invars)
    if axes[0] is None and axes[1] is not None and axes[1] < indices.ndim - 1:
        # A table that is looked up: the axes of the indices are the axes that are no offsets.
        others = [i for i in range(eqn.outvars[0].aval.ndim) if i not in numbers.offset_dims]
        return others[axes[1]]
    removed = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    if axes[0] is None or axes[1] is not None or axes[0] in removed:
        return None
    kept = [i for i in range(operand.ndim) if i not in removed]
    whole = eqn.params["slice_sizes"][axes[0]] == operand.shape[axes[0]]
    return int(numbers.offset_dims[kept.index(axes[0])]) if whole else None


_RULES: dict[str, Callable[[Any, Sequence[Axis]], Axis]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "gather": _gather,
    "reshape": _reshape,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}


def has_rule(name: str) -> bool:
    """Whether there is a rule for the equations of a primitive, so that they hold no jaxpr."""
    return name in _ELEMENTWISE or name in _RULES or name in _SAME_AXES
