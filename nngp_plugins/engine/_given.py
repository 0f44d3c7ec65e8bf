"""Kernels of outputs that exist already: within a compiled function, or on the mesh where the outputs are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax

from .._static import Static
from .._typing import PyTree
from ._devices import compiler_options
from ._outputs import GivenOutputs
from ._places import Places
from ._program import of_given


def shared_outputs(y1: PyTree, y2: PyTree | None) -> tuple[GivenOutputs, GivenOutputs | None] | None:
    """The outputs of both sides, shared by the devices of their mesh; None if they cannot be shared evenly."""
    places = Places.of(jax.local_devices(), [y1, y2], ())
    if not places.is_shared:
        return None
    first, second = GivenOutputs.of(y1, y2)
    both = first.on(places), None if second is None else second.on(places)
    return None if both[0] is None or (second is not None and both[1] is None) else (both[0], both[1])


def contract_given(static: Static, y1: PyTree, y2: PyTree | None) -> PyTree:
    """:meth:`BatchedKernelFn.contract`, within a compiled function."""
    kernel_fn = static.value
    source1, source2 = GivenOutputs.of(y1, y2)
    plan = kernel_fn.plan_of(source1, source2)
    kernels = of_given(plan, source1.outputs.leaves, None if source2 is None else source2.outputs.leaves)
    return kernel_fn.kernel_fn.assemble(source1.outputs.structure, kernels)


@cache
def compiled_contract() -> Callable[[Static, PyTree, PyTree | None], PyTree]:
    """:func:`contract_given` as a compiled function, made when the backend is known."""
    return jax.jit(contract_given, static_argnums=0, compiler_options=compiler_options())
