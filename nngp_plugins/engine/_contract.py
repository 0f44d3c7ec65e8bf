"""The moving half of a contraction: a plan carried out as one ``dot_general``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ._axes import Plan


def accumulation_dtype(*dtypes: jax.typing.DTypeLike) -> Any:
    """The dtype of a kernel: at least float32; float64 and complex outputs keep theirs, integers are promoted."""
    dtype = jnp.result_type(*dtypes)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.result_type(float)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


@partial(jax.jit, static_argnames=("plan", "precision"))
def contract(y1: Array, y2: Array, plan: Plan, precision: Any) -> Array:
    """The kernel of two outputs: ``plan`` executed, the second output conjugated, the trace averaged."""
    return _product(y1, y2, plan, precision) / float(plan.size)


def _product(y1: Array, y2: Array, plan: Plan, precision: Any) -> Array:
    """The kernel but for the average."""
    dtype = accumulation_dtype(y1.dtype, y2.dtype)
    if y1.dtype != y2.dtype or not jnp.issubdtype(y1.dtype, jnp.inexact):
        y1, y2 = y1.astype(dtype), y2.astype(dtype)
    y1, y2, out_sharding = _place(y1, y2, plan)
    dot = partial(lax.dot_general, precision=precision, preferred_element_type=dtype)
    if out_sharding is not None:
        kernel = dot(y1, y2.conj(), (plan.traced, plan.diagonal), out_sharding=out_sharding)
    else:  # matrices multiply a tenth faster than what has several axes to contract
        (a, free1), (b, free2) = _matrices(y1, 0, plan), _matrices(y2, 1, plan)
        diagonal = a.shape[:-2]
        places = tuple(range(len(diagonal)))
        kernel = dot(a, b.conj(), (((a.ndim - 1,), (b.ndim - 1,)), (places, places)))
        kernel = kernel.reshape(*diagonal, *free1, *free2)
    return kernel.transpose(plan.order)


def _matrices(y: Array, side: int, plan: Plan) -> tuple[Array, tuple[int, ...]]:
    """An output as matrices, paired by traced, one for each place on the diagonal; and the sizes of its paired axes."""
    y = y.transpose(plan.operands()[side])
    first, last = len(plan.diagonal[side]), y.ndim - len(plan.traced[side])
    shape = y.shape
    return y.reshape(*shape[:first], math.prod(shape[first:last]), math.prod(shape[last:])), shape[first:last]


@partial(
    jax.tree_util.register_dataclass, data_fields=["y1", "y2"], meta_fields=["plan", "precision", "shape", "mirror"]
)
@dataclass(frozen=True)
class Tile:
    """A tile of a kernel, to be computed where it is needed: written in one go with its contraction.

    Attributes:
        y1: its rows, of the first output.
        y2: its columns, of the second output.
        plan: how to contract them.
        precision: of the contraction.
        shape: of the tile.
        mirror: for a tile that is its own mirror image, the transposition that shows it; makes it exactly so.
    """

    y1: Array
    y2: Array
    plan: Plan
    precision: Any
    shape: tuple[int, ...]
    mirror: tuple[int, ...] | None = None

    @jax.jit
    def __call__(self) -> Array:
        """The tile itself."""
        if self.mirror is None:
            return contract(self.y1, self.y2, self.plan, self.precision)
        product = _product(self.y1, self.y2, self.plan, self.precision)
        # divided last: a fused multiply-add would round the two differently
        return (product + product.transpose(self.mirror).conj()) / float(2 * self.plan.size)


def _place(y1: Array, y2: Array, plan: Plan) -> tuple[Array, Array, NamedSharding | None]:
    """Where outputs live on a mesh with explicit axes, places the factors and says where the kernel lives.

    Such a mesh refuses ``y @ y.T``: both batch axes of the result would lie on one mesh axis. The first output
    stays as it is, and the second gives up the mesh axes that the first already uses.
    """
    mesh, specs = None, []
    for y in (y1, y2):
        sharding = jax.typeof(y).sharding
        if AxisType.Explicit in sharding.mesh.axis_types:
            mesh = sharding.mesh
        specs.append([*sharding.spec, *[None] * (y.ndim - len(sharding.spec))])
    if mesh is None:
        return y1, y2, None
    spec1, spec2 = specs
    used = {name for entry in spec1 for name in _names(entry)}
    target = [None if used & _names(entry) else entry for entry in spec2]
    # contracted axes that lie on one mesh axis are summed where they lie
    for axes1, axes2 in (plan.traced, plan.diagonal):
        for axis1, axis2 in zip(axes1, axes2, strict=True):
            target[axis2] = spec1[axis1]
    paired = [{*traced, *diagonal} for traced, diagonal in zip(plan.traced, plan.diagonal, strict=True)]
    spec = [spec1[axis] for axis in plan.diagonal[0]]
    spec += [entry for axis, entry in enumerate(spec1) if axis not in paired[0]]
    spec += [entry for axis, entry in enumerate(target) if axis not in paired[1]]
    y1 = jax.sharding.reshard(y1, NamedSharding(mesh, PartitionSpec(*spec1)))
    y2 = jax.sharding.reshard(y2, NamedSharding(mesh, PartitionSpec(*target)))
    return y1, y2, NamedSharding(mesh, PartitionSpec(*spec))


def _names(entry: Any) -> set[str]:
    """Mesh axes named by one entry of a PartitionSpec."""
    return set(entry) if isinstance(entry, tuple) else {entry} - {None}
