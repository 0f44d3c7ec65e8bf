"""``nngp.batch``: kernels of inputs whose forward pass does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from .._meshes import no_mesh
from .._static import Static
from .._typing import PyTree
from ._apply import is_traced, refuse_traced
from ._arrays import ArrayBackend, OnDevice, OnHost, OnRing
from ._devices import network_devices, undisturbed
from ._forward import NetworkOutputs
from ._given import compiled_contract, contract_given, shared_outputs
from ._inputs import are_arrays, batch_first, batch_of, hold_numpy, unpacked
from ._keys import KEYS
from ._kwargs import Shared, is_none, split_kwargs
from ._loop import AssembleArrays, Job, by_all_devices, in_one_piece, in_tiles, progress
from ._nngp import KernelFn
from ._outputs import GivenOutputs, HeldLayout, OutputSource, SharedSource
from ._places import Places, is_on_mesh
from ._plan import KernelPlan
from ._processes import OverProcesses, in_this_process, spans_processes
from ._ring import Ring
from ._tiling import make_plan, refuse_sizes


@dataclass(frozen=True)
class BatchedKernelFn:
    """The kernel function that :func:`batch` returns: frozen, hashable, callable.

    Attributes:
        kernel_fn: the unbatched kernel function.
        batch_size: examples in a forward pass on each device; 0 for all at once.
        device_count: devices that run the network; -1 for all devices of this process.
        store_on_device: whether outputs and kernels stay on the device.
        progress: whether to show a progress bar.
        check: whether to refuse an ``f`` whose outputs depend on the other examples in the batch.
        memory_budget: bytes that outputs may take; None for half of the memory.
        tile_size: examples along the side of a tile; None chooses.
    """

    kernel_fn: KernelFn
    batch_size: int = 0
    device_count: int = -1
    store_on_device: bool = True
    progress: bool = False
    check: bool = True
    memory_budget: int | None = None
    tile_size: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_fn, KernelFn):
            raise TypeError(
                f"kernel_fn={self.kernel_fn!r} is not a kernel function; pass what nngp.empirical_nngp_fn(f) returns."
            )
        refuse_sizes(self.batch_size, self.device_count, self.memory_budget, self.tile_size)

    @undisturbed()
    def __call__(self, x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs: Any) -> PyTree:
        """The kernel ``f(x1) f(x2)ᵀ``, as :meth:`KernelFn.__call__` gives it.

        Args:
            x1: inputs with N1 examples along axis 0 of every array: arrays of JAX, of NumPy, which have been read when
                the call returns, or anything with ``shape``, ``dtype`` and slicing. If they are sharded over several
                processes of ``jax.distributed``, all of them make this call, and so is the kernel.
            x2: inputs with N2 examples; None (or a PyTree of Nones) means ``x2 = x1``, one forward pass for each
                example and an exactly symmetric kernel.
            params: what ``f`` takes as its parameters.
            **apply_fn_kwargs: passed to ``f``, divided between ``x1`` and ``x2`` as without batches. An array with a
                row for each example is cut into batches like the inputs, except ``state`` and what :class:`Shared`
                holds. With ``rng``, batch ``i`` gets ``fold_in(rng, i)``.

        Returns:
            The PyTree of ``f``'s outputs with a kernel in place of each: JAX arrays, or NumPy arrays with
            ``store_on_device=False``.

        Raises:
            ValueError: as without batches; outputs depend on the other examples in the batch, or do not have a row
                for each example; products of finite outputs overflow; the axes pair the batch axis with another one.
            TypeError: an input without a batch axis; a call inside ``jit``, ``grad`` or ``vmap``.
        """
        if spans_processes(x1):
            return OverProcesses(self.kernel_fn, self.batch_size, self.check, params, apply_fn_kwargs, x1, x2).kernels()
        return self._assemble(*self.sources(x1, x2, params, apply_fn_kwargs))

    @undisturbed()
    def outputs(self, x: PyTree, params: PyTree, **apply_fn_kwargs: Any) -> PyTree:
        """The outputs of ``f`` on all examples, in batches, kept as for a kernel; arguments and errors of a call."""
        if spans_processes(x):
            every = OverProcesses(self.kernel_fn, self.batch_size, self.check, params, apply_fn_kwargs, x, None)
            y = every.outputs()
            return y.structure.unflatten(y.leaves)
        source, _ = self.sources(x, None, params, apply_fn_kwargs)
        layout = HeldLayout.as_they_are(source.outputs, source.n)
        if self.store_on_device and source.home is not None and source.ring is not None:
            arrays = OnRing(source.ring)
            held = source.held((0, source.n), layout, arrays, lambda rows: None)
            return source.outputs.structure.unflatten(arrays.cut(held.leaves, source.share))
        held = source.held((0, source.n), layout, self.backend(), lambda rows: None)
        return source.outputs.structure.unflatten(leaf[: source.n] for leaf in held.leaves)

    def contract(self, y1: PyTree, y2: PyTree | None = None) -> PyTree:
        """The kernel of outputs that exist already, in tiles; it is exactly symmetric if ``y2`` is None.

        Raises:
            ValueError: as a call; outputs have different numbers of rows.
        """
        y2 = None if is_none(y2) else y2
        # The checks below take longer than a small kernel. JAX remembers for which shapes and dtypes they were made.
        leaves = jax.tree.leaves((y1, y2))
        if self.store_on_device and any(map(is_on_mesh, leaves)) and (shared := shared_outputs(y1, y2)):
            with undisturbed():
                return self._assemble(*shared)
        if self.store_on_device and not self.progress and are_arrays(leaves):
            # A compiled function within another one takes the options of that one.
            contract = contract_given if is_traced(leaves) else compiled_contract()
            if not hold_numpy(leaves):
                return contract(Static(self), y1, y2)
            with undisturbed():
                return jax.block_until_ready(contract(Static(self), y1, y2))
        with no_mesh():
            return self._assemble(*GivenOutputs.of(y1, y2))

    @undisturbed()
    def plan(self, x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs: Any) -> KernelPlan:
        """What a call would do; see :func:`plan`."""
        return self.shown(*self.sources(x1, x2, params, apply_fn_kwargs))

    def shown(self, source1: NetworkOutputs, source2: NetworkOutputs | None) -> KernelPlan:
        """What a call would do, with how many devices do it."""
        plan, ring = self.decided(source1, source2)
        return plan.on_devices(source1.places.count, 1 if ring is None else ring.size)

    job = plan  # its name in version 0.1.0

    def sources(
        self, x1: PyTree, x2: PyTree | None, params: PyTree, kwargs: Mapping[str, Any]
    ) -> tuple[NetworkOutputs, NetworkOutputs | None]:
        """The outputs of ``x1``, and of ``x2`` unless that is None; nothing runs yet."""
        refuse_traced((x1, x2, params, kwargs))
        x1, x2, params = (in_this_process(*of) for of in (("x1", x1), ("x2", x2), ("params", params)))
        params, kwargs = unpacked(self.kernel_fn.f, params, kwargs)
        f, x1 = batch_first(self.kernel_fn.f, "x1", x1)
        x2 = None if is_none(x2) else batch_first(self.kernel_fn.f, "x2", x2)[1]
        inputs = {"x1": x1} if x2 is None else {"x1": x1, "x2": x2}
        examples = [batch_of(name, x) for name, x in inputs.items()]
        places = Places.of(network_devices(self.device_count), [x1, x2], (params, kwargs))
        kwargs_of_both = split_kwargs(kwargs, x1, x2)
        shared = {name for name, value in kwargs.items() if isinstance(value, Shared)}
        # Both sides have one batch size, so that f is compiled once. With a key it is the same for any number of
        # devices, so that the noise is, too.
        most = max(examples) if {*KEYS} & {*kwargs} else -(-max(examples) // places.count)
        sizes = [min(int(self.batch_size), most) or -(-n // places.count) for n in examples]
        sources = [
            NetworkOutputs(
                name,
                f,
                params,
                x,
                side_kwargs,
                batch_size=size,
                places=places,
                fold=self.batch_size > 0 or (places.count > 1 and not places.is_shared),
                check=self.check,
                shared=shared,
            )
            for (name, x), size, side_kwargs in zip(inputs.items(), sizes, kwargs_of_both, strict=False)
        ]
        return sources[0], sources[1] if len(sources) > 1 else None

    def plan_of(
        self,
        source1: OutputSource,
        source2: OutputSource | None,
        *,
        tile_bytes: int | None = None,
        ring: Ring | None = None,
    ) -> KernelPlan:
        """What the devices of a ring, or one, do with outputs; ``tile_bytes`` as for :func:`make_plan`."""
        outputs = [source.outputs for source in (source1, source2) if source is not None]
        fits = isinstance(source1, GivenOutputs)
        return make_plan(
            self.kernel_fn,
            outputs[0],
            outputs[1] if len(outputs) > 1 else None,
            batch_rows=source1.batch_rows,
            budget=None if fits else int(self.memory_budget or (OnRing(ring) if ring else self.backend()).budget()),
            tile_rows=None if self.tile_size is None else int(self.tile_size),
            tile_bytes=tile_bytes,
            one_tile=self.store_on_device,
            devices=ring.size if ring else 1,
        )

    def decided(self, source1: SharedSource, source2: SharedSource | None) -> tuple[KernelPlan, Ring | None]:
        """The plan, and the devices that share the contraction; None if it is on the first device, or the host's."""
        ring = source1.ring if self.store_on_device and (source2 or source1).ring else None
        if ring is not None:
            plan = self.plan_of(source1, source2, ring=ring)
            # Outputs that do not fit are held block by block, which belongs to all devices.
            if plan.block_rows == max(plan.n1, plan.n2 or 0):
                return plan, ring
        return self.plan_of(source1, source2), None

    def backend(self) -> ArrayBackend:
        """Where outputs and kernels are kept."""
        return OnDevice(jax.local_devices()[0]) if self.store_on_device else OnHost()

    def _assemble(self, source1: SharedSource, source2: SharedSource | None) -> PyTree:
        plan, ring = self.decided(source1, source2)
        with progress(self.progress, plan.forward_rows, ("tiles of the kernel", plan.tile_count)) as on_progress:
            job = Job(plan, source1, source2, self.backend() if ring is None else OnRing(ring), on_progress)
            if ring is not None:
                rows = source1.share, (source2 or source1).share
                kernels = by_all_devices(job, ring, rows, source1.home)
            elif self.store_on_device:
                kernels = in_one_piece(job)
            else:
                sink = AssembleArrays(plan)
                in_tiles(job, sink)
                kernels = sink.arrays
        return self.kernel_fn.assemble(source1.outputs.structure, kernels)


def batch(
    kernel_fn: KernelFn,
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    *,
    progress: bool = False,
    check: bool = True,
    memory_budget: int | None = None,
    tile_size: int | None = None,
) -> BatchedKernelFn:
    """Computes a kernel in batches: same arguments and same results, on inputs whose forward pass does not fit.

    Every example goes through the network once: N + M rows for ``x1`` with N and ``x2`` with M examples, N if ``x2``
    is None. The outputs are kept, and contracted by one program for all of them; if ``x2`` is None, one half of a
    kernel mirrors the other. If the outputs do not fit ``memory_budget``, those of ``g`` groups are held in turn
    (``g N`` rows), or those of ``b`` blocks of examples (``N (b + 1) / 2`` rows if ``x2`` is None, ``N + b M``
    otherwise), whichever runs fewer rows. A last batch that is not full is filled up with copies of its last example,
    whose outputs are cut off, so ``f`` is compiled once.

    Args:
        kernel_fn: what :func:`empirical_nngp_fn` returns.
        batch_size: examples in a forward pass on each device; 0 for all at once.
        device_count: devices that run the network, each a batch at a time; -1 for all devices of this process.
        store_on_device: whether kernels stay on devices; see ``docs/scale.md``. False moves them to the host's memory.
        progress: whether to show a progress bar on stderr.
        check: whether to run a few examples next to others and in a batch of another size first, and to refuse an
            ``f`` whose outputs depend on them, such as BatchNorm in training mode.
        memory_budget: bytes that outputs may take, apart from those of a batch; None for half of the free memory
            of the device, or of half of the host's.
        tile_size: examples along the side of a tile of the kernel; None for the size that contracts fastest.

    Returns:
        ``kernel_fn(x1, x2, params, **apply_fn_kwargs)``, see :meth:`BatchedKernelFn.__call__`.

    Raises:
        TypeError: ``kernel_fn`` is not a kernel function.
        ValueError: a size is negative; there are fewer devices.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x @ params), batch_size=2)
        >>> kernel_fn(jnp.eye(3), None, jnp.ones((3, 5)))
        Array([[1., 1., 1.],
               [1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """
    return BatchedKernelFn(
        kernel_fn, batch_size, device_count, store_on_device, progress, check, memory_budget, tile_size
    )
