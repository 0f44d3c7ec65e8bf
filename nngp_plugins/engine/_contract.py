"""The contraction of one pair of output leaves, carried out as one ``dot_general``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._typing import wide
from ._axes import Contraction

if TYPE_CHECKING:
    from jaxtyping import Shaped


def accumulation_dtype(*dtypes: jax.typing.DTypeLike) -> Any:
    """The dtype of a kernel: at least float32. float64 and complex outputs keep theirs; integers are promoted."""
    # JAX's strict promotion refuses two outputs of different dtypes, which have a kernel all the same.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*map(wide, dtypes))


@partial(jax.jit, static_argnames=("contraction", "precision"))
def contract(
    y1: Shaped[Array, "N1 ..."], y2: Shaped[Array, "N2 ..."], contraction: Contraction, precision: Any
) -> Array:
    """The kernel of two outputs: the second one is conjugated, and the trace is averaged."""
    return summed_product(y1, y2, contraction, precision) / float(contraction.size)


def summed_product(
    y1: Shaped[Array, "N1 ..."], y2: Shaped[Array, "N2 ..."], contraction: Contraction, precision: Any
) -> Array:
    """The kernel before it is divided by the number of terms of the trace."""
    dtype = accumulation_dtype(y1.dtype, y2.dtype)
    if y1.dtype != y2.dtype or not _multiplies(y1.dtype):
        y1, y2 = y1.astype(dtype), y2.astype(dtype)
    y1, y2, out_sharding = _on_explicit_mesh(y1, y2, contraction)
    if out_sharding is not None:
        dot = partial(lax.dot_general, precision=precision, preferred_element_type=dtype)
        kernel = dot(y1, y2.conj(), (contraction.traced, contraction.diagonal), out_sharding=out_sharding)
    else:
        # Matrices multiply a tenth faster than arrays with several axes to contract.
        (a, free1), (b, free2) = _as_matrices(y1, 0, contraction), _as_matrices(y2, 1, contraction)
        diagonal = a.shape[:-2]
        places = tuple(range(len(diagonal)))
        kernel = _dot(a, b.conj(), (((a.ndim - 1,), (b.ndim - 1,)), (places, places)), precision, dtype)
        kernel = kernel.reshape(*diagonal, *free1, *free2)
    return kernel.transpose(contraction.order)


def _multiplies(dtype: Any) -> bool:
    """Whether every device multiplies numbers of this dtype."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 16


def _dot(a: Array, b: Array, dimensions: Any, precision: Any, dtype: Any) -> Array:
    """A product of matrices; ``"float32"`` takes the fastest algorithm that is as exact as float32."""

    def by(precision: Any) -> Callable[[Array, Array], Array]:
        return partial(lax.dot_general, dimension_numbers=dimensions, precision=precision, preferred_element_type=dtype)

    if precision == "float32" and a.dtype == b.dtype == jnp.float32 and _has_tensor_cores():
        by_parts = by(lax.DotAlgorithmPreset.BF16_BF16_F32_X6)
        product: Array = lax.platform_dependent(a, b, cuda=by_parts, default=by("highest"))
        return product
    return by(precision)(a, b)


def _has_tensor_cores() -> bool:
    """Whether the default device is an NVIDIA GPU that multiplies bfloat16."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return capability.replace(".", "").isdigit() and float(capability) >= 8


def _as_matrices(y: Array, side: int, contraction: Contraction) -> tuple[Array, tuple[int, ...]]:
    """One matrix ``(paired, traced)`` for each place on the diagonal, and the sizes of the paired axes."""
    y = y.transpose(contraction.operand_orders()[side])
    first, last = len(contraction.diagonal[side]), y.ndim - len(contraction.traced[side])
    shape = y.shape
    return y.reshape(*shape[:first], math.prod(shape[first:last]), math.prod(shape[last:])), shape[first:last]


def _on_explicit_mesh(y1: Array, y2: Array, contraction: Contraction) -> tuple[Array, Array, NamedSharding | None]:
    """Places both outputs on their mesh with explicit axes, and says where the kernel lives; None if there is no mesh.

    Such a mesh refuses ``y @ y.T``, because both batch axes of the result would lie on one mesh axis. The first output
    stays as it is, and the second one gives up the mesh axes that the first one already uses.
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
    # Both outputs hold a contracted axis in the same way, so that each device sums what it has.
    for axes1, axes2 in (contraction.traced, contraction.diagonal):
        for axis1, axis2 in zip(axes1, axes2, strict=True):
            target[axis2] = spec1[axis1]
    spec = [spec1[axis] for axis in contraction.diagonal[0]]
    for side, entries in enumerate((spec1, target)):
        not_free = {*contraction.traced[side], *contraction.diagonal[side]}
        spec += [entry for axis, entry in enumerate(entries) if axis not in not_free]
    y1 = jax.sharding.reshard(y1, NamedSharding(mesh, PartitionSpec(*spec1)))
    y2 = jax.sharding.reshard(y2, NamedSharding(mesh, PartitionSpec(*target)))
    return y1, y2, NamedSharding(mesh, PartitionSpec(*spec))


def _names(entry: Any) -> set[str]:
    """Mesh axes named by one entry of a PartitionSpec."""
    return set(entry) if isinstance(entry, tuple) else {entry} - {None}
