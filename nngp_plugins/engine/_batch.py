"""Kernels of inputs whose forward pass does not fit at once: every example through the network once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from numbers import Integral, Real
from typing import Any

import jax

from ._empirical import KernelFn, Outputs
from ._forward import KEYS, Forward, refuse_traced
from ._inputs import batch_of, refuse_empty, unpacked
from ._job import Job, make_job
from ._kwargs import Shared, is_none, split_kwargs
from ._memory import Memory, OnDevice, OnHost
from ._run import InMemory, Ready, Side, run, ticks

PyTree = Any


@dataclass(frozen=True)
class BatchedKernelFn:
    """The kernel function that :func:`batch` returns: frozen, hashable, callable.

    Attributes:
        kernel_fn: the unbatched kernel function.
        batch_size: examples in a forward pass on each device; 0 for all at once.
        device_count: devices that run the network; -1 for all of this process.
        store_on_device: whether outputs and kernels stay on the device.
        progress: whether to show a progress bar.
        check: whether to refuse an ``f`` whose outputs depend on the other examples in the batch.
        memory_budget: bytes that outputs may take; None for half of the memory.
    """

    kernel_fn: KernelFn
    batch_size: int = 0
    device_count: int = -1
    store_on_device: bool = True
    progress: bool = False
    check: bool = True
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_fn, KernelFn):
            raise TypeError(
                f"kernel_fn={self.kernel_fn!r} is not a kernel function; pass what nngp.empirical_nngp_fn(f) returns."
            )
        if not isinstance(self.batch_size, Integral) or self.batch_size < 0:
            raise ValueError(f"batch_size={self.batch_size!r} must be a number of examples, or 0 for all at once.")
        count, available = self.device_count, jax.local_device_count()
        if not isinstance(count, Integral) or (count != -1 and not 1 <= count <= available):
            raise ValueError(f"device_count={count!r} must be -1 for all devices of this process or 1 to {available}.")
        budget = self.memory_budget
        if budget is not None and (not isinstance(budget, Real) or not 1 <= budget < inf):
            raise ValueError(f"memory_budget={budget!r} must be a positive number of bytes, or None.")

    def __call__(self, x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs: Any) -> PyTree:
        """The kernel ``f(x1) f(x2)ᵀ``, as :meth:`KernelFn.__call__` gives it.

        Args:
            x1: inputs with N1 examples along axis 0 of every array: JAX or NumPy arrays, or anything with ``shape``,
                ``dtype`` and slicing.
            x2: inputs with N2 examples; None (or a PyTree of Nones) means ``x2 = x1``, one forward pass for each
                example and an exactly symmetric kernel.
            params: what ``f`` takes as its parameters.
            **apply_fn_kwargs: passed to ``f``, dealt out as without batches. An array with a row for each example
                is cut like the inputs, but for ``state`` and what :class:`Shared` holds. With ``rng``, batch ``i`` gets
                ``fold_in(rng, i)``.

        Returns:
            The PyTree of ``f``'s outputs with a kernel in place of each: JAX arrays, or NumPy arrays with
            ``store_on_device=False``.

        Raises:
            ValueError: as without batches; outputs that depend on the other examples in the batch, or have no row
                for each; axes that pair the batch axis with another one.
            TypeError: an input without a batch axis; a call inside ``jit``, ``grad`` or ``vmap``.
        """
        side1, side2 = self.sides(x1, x2, params, apply_fn_kwargs)
        return self._assemble(side1, side2, self.job_of(side1, side2, side1.rows))

    def outputs(self, x: PyTree, params: PyTree, **apply_fn_kwargs: Any) -> PyTree:
        """The outputs of ``f`` on all examples, in batches, kept as for a kernel; arguments and errors of a call."""
        side, _ = self.sides(x, None, params, apply_fn_kwargs)
        (leaves,) = side.tiles(0, side.n, side.n, self.memory(), lambda rows: None)
        return side.outputs.structure.unflatten(leaves)

    def contract(self, y1: PyTree, y2: PyTree | None = None) -> PyTree:
        """The kernel of outputs that are already there, in tiles: ``y2=None`` makes it exactly symmetric.

        Raises:
            ValueError: as a call; outputs with different numbers of rows.
        """
        side1 = Ready("y1", Outputs.of(y1))
        side2 = None if is_none(y2) else Ready("y2", Outputs.of(y2))
        return self._assemble(side1, side2, self.job_of(side1, side2, side1.rows))

    def job(self, x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs: Any) -> Job:
        """What a call would do; see :func:`plan`."""
        side1, side2 = self.sides(x1, x2, params, apply_fn_kwargs)
        return self.job_of(side1, side2, side1.rows)

    def sides(
        self, x1: PyTree, x2: PyTree | None, params: PyTree, kwargs: Mapping[str, Any]
    ) -> tuple[Forward, Forward | None]:
        """The forward passes of ``x1``, and of ``x2`` unless that is None."""
        refuse_traced((x1, x2, params, kwargs))
        params, kwargs = unpacked(self.kernel_fn.f, params, kwargs)
        inputs = {"x1": x1} if is_none(x2) else {"x1": x1, "x2": x2}
        examples = []
        for name, x in inputs.items():
            refuse_empty(name, x)
            examples.append(batch_of(name, x))
        devices = jax.local_devices()
        devices = devices if self.device_count == -1 else devices[: self.device_count]
        dealt = split_kwargs(kwargs, x1, x2)
        shared = {name for name, value in kwargs.items() if isinstance(value, Shared)}
        # one size for both sides, so that f is compiled once; noise must not depend on the number of devices
        most = max(examples) if {*KEYS} & {*kwargs} else _share(max(examples), devices)
        sizes = [min(int(self.batch_size), most) or _share(n, devices) for n in examples]
        forwards = [
            Forward(
                name,
                self.kernel_fn.f,
                params,
                x,
                side_kwargs,
                batch_size=size,
                devices=devices,
                fold=self.batch_size > 0 or len(devices) > 1,
                check=self.check,
                shared=shared,
            )
            for (name, x), size, side_kwargs in zip(inputs.items(), sizes, dealt, strict=False)
        ]
        return forwards[0], forwards[1] if len(forwards) > 1 else None

    def job_of(self, side1: Side, side2: Side | None, batch_rows: int, **tiles: int | None) -> Job:
        """What is to be done with the outputs of both sides; ``tiles`` as :func:`make_job` takes them."""
        return make_job(
            self.kernel_fn,
            side1.outputs,
            None if side2 is None else side2.outputs,
            batch_rows=batch_rows,
            budget=int(self.memory_budget or self.memory().budget()),
            whole=self.store_on_device,
            **tiles,
        )

    def memory(self) -> Memory:
        """Where outputs and kernels are kept."""
        return OnDevice(jax.local_devices()[0]) if self.store_on_device else OnHost()

    def _assemble(self, side1: Side, side2: Side | None, job: Job) -> PyTree:
        memory = self.memory()
        kernels = InMemory(job, memory)
        with ticks(job, self.progress) as on:
            run(job, self.kernel_fn.precision, side1, side2, memory, kernels, on)
        return self.kernel_fn.assemble(side1.outputs.structure, kernels.arrays)


def batch(
    kernel_fn: KernelFn,
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    *,
    progress: bool = False,
    check: bool = True,
    memory_budget: int | None = None,
) -> BatchedKernelFn:
    """Computes a kernel in batches: same arguments and same results, on inputs whose forward pass does not fit.

    Every example goes through the network once: N + M rows for ``x1`` with N and ``x2`` with M examples, N where
    ``x2`` is None. The outputs are kept and contracted in tiles of a size of their own, those on and above the diagonal
    where ``x2`` is None; the others mirror them. Where the outputs do not fit ``memory_budget``, those of ``b`` blocks
    of examples are computed in turn, and the others again for each: ``N (b + 1) / 2`` rows where ``x2`` is None,
    ``N + b M`` otherwise. A last batch that is not full is filled up with copies of its last example, which are cut off
    after, so ``f`` is compiled once.

    Args:
        kernel_fn: what :func:`empirical_nngp_fn` returns.
        batch_size: examples in a forward pass on each device; 0 for all at once.
        device_count: devices that run the network, each a batch at a time; -1 for all of this process.
        store_on_device: whether outputs and kernels stay on the (first) device. False moves both to host memory.
        progress: show a progress bar (on stderr).
        check: run a few examples in a batch of another size first, and refuse an ``f`` whose outputs depend on the
            other examples in the batch, such as BatchNorm in training mode.
        memory_budget: bytes that outputs may take, but for those of a batch; None for half of the memory of the device,
            or of the host.

    Returns:
        ``kernel_fn(x1, x2, params, **apply_fn_kwargs)``, see :meth:`BatchedKernelFn.__call__`.

    Raises:
        TypeError: ``kernel_fn`` is no kernel function.
        ValueError: a negative size; more devices than there are.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x @ params), batch_size=2)
        >>> kernel_fn(jnp.eye(3), None, jnp.ones((3, 5)))
        Array([[1., 1., 1.],
               [1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """
    return BatchedKernelFn(kernel_fn, batch_size, device_count, store_on_device, progress, check, memory_budget)


def _share(examples: int, devices: Sequence[jax.Device]) -> int:
    return -(-examples // len(devices))


def plan(
    kernel_fn: KernelFn | BatchedKernelFn,
    x1: PyTree,
    x2: PyTree | None,
    params: PyTree,
    *,
    batch_size: int | None = None,
    **apply_fn_kwargs: Any,
) -> Job:
    """What a kernel in batches would cost, without computing it.

    Args:
        kernel_fn: what :func:`empirical_nngp_fn` or :func:`batch` returns.
        x1: inputs, as for a call.
        x2: inputs, or None.
        params: what ``f`` takes as its parameters.
        batch_size: examples in a forward pass on each device; None for that of ``kernel_fn``, or all at once.
        **apply_fn_kwargs: passed to ``f``.

    Returns:
        A :class:`Job`: rows through the network, floating-point operations of the contraction, bytes held and made,
        tiles. ``print`` shows it as a table.

    Raises:
        ValueError: what the call itself would refuse before it starts.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x @ params)
        >>> job = nngp.plan(kernel_fn, jnp.ones((1000, 8)), None, jnp.ones((8, 64)), batch_size=100)
        >>> job.forward_rows, job.kernel_bytes
        (1000, 4000000)
    """
    if not isinstance(kernel_fn, BatchedKernelFn):
        kernel_fn = batch(kernel_fn)
    if batch_size is not None:
        kernel_fn = replace(kernel_fn, batch_size=batch_size)
    return kernel_fn.job(x1, x2, params, **apply_fn_kwargs)
