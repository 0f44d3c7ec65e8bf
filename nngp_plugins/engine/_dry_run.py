"""``nngp.plan``: what a kernel costs, and how long it would take by the rates of one batch and of one tile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from .._typing import PyTree
from ._batch import BatchedKernelFn, batch
from ._devices import compiler_options, undisturbed
from ._forward import NetworkOutputs
from ._nngp import KernelFn
from ._part import TILE_BYTES, Part
from ._plan import KernelPlan

RUNS = 3


def plan(
    kernel_fn: KernelFn | BatchedKernelFn,
    x1: PyTree,
    x2: PyTree | None,
    params: PyTree,
    *,
    batch_size: int | None = None,
    part: tuple[int, int] | None = None,
    measure: bool = False,
    **apply_fn_kwargs: Any,
) -> KernelPlan:
    """What a kernel in batches would cost, without computing it.

    Args:
        kernel_fn: what :func:`empirical_nngp_fn` or :func:`batch` returns.
        x1: inputs, as for a call.
        x2: inputs, or None.
        params: what ``f`` takes as its parameters.
        batch_size: examples in a forward pass on each device; None for the size of ``kernel_fn``, or all at once.
        part: ``(i, n)`` for the share of one of n processes that :func:`write_kernel` gives it; None for all of it.
        measure: whether to run one batch and contract one tile, to say what all of them would take.
        **apply_fn_kwargs: passed to ``f``.

    Returns:
        A :class:`KernelPlan`: rows through the network, floating-point operations of the contraction, bytes that are
        held and made, tiles, and with ``measure`` the ``seconds`` of the forward passes and of the contraction, without
        those of a disk. ``print`` shows it as a table.

    Raises:
        ValueError: the call itself would be refused before it starts.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x @ params)
        >>> plan = nngp.plan(kernel_fn, jnp.ones((1000, 8)), None, jnp.ones((8, 64)), batch_size=100)
        >>> plan.forward_rows, plan.kernel_bytes
        (1000, 4000000)
    """
    kernel_fn = kernel_fn if isinstance(kernel_fn, BatchedKernelFn) else batch(kernel_fn)
    if batch_size is not None:
        kernel_fn = replace(kernel_fn, batch_size=batch_size)
    with undisturbed():
        sources = kernel_fn.sources(x1, x2, params, apply_fn_kwargs)
        if part is None:
            made = kernel_fn.shown(*sources)
        else:
            made = kernel_fn.plan_of(*sources, tile_bytes=TILE_BYTES).of_part(Part.of(part))
            made = made.on_devices(sources[0].places.count, 1)
        return replace(made, seconds=_seconds_of(kernel_fn.kernel_fn, made, sources[0])) if measure else made


def _seconds_of(kernel_fn: KernelFn, plan: KernelPlan, source: NetworkOutputs) -> tuple[float, float]:
    """The seconds of all forward passes and of the contraction of a plan; nothing is compiled within them.

    Args:
        kernel_fn: the kernel function.
        plan: what would be done.
        source: the outputs of ``x1``, of which one batch runs.
    """
    rows = min(source.batch_rows, source.n)
    ((_, leaves),) = source.batches((0, rows), lambda done: None)
    batch = _fastest(lambda: [y for _, y in source.batches((0, rows), lambda done: None)])
    # A tile has rows of many batches; the same rows again take as long.
    examples = np.arange(min(plan.tile_rows, plan.n1)) % rows
    tile = source.outputs.structure.unflatten(leaf[examples] for leaf in leaves)
    contract = jax.jit(kernel_fn.contract, compiler_options=compiler_options())
    seconds = _fastest(lambda: contract(tile, tile))
    flops = sum(pair.flops for pair in plan.pairs.values()) * len(examples) ** 2
    return plan.forward_rows / rows * batch, plan.flops / max(flops, 1) * seconds


def _fastest(run: Callable[[], Any]) -> float:
    """The seconds of the fastest of some runs, after one that compiles."""
    seconds = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
