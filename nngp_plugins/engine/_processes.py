"""Inputs on the devices of several processes of ``jax.distributed``: programs in which all of them work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._meshes import automatic, automatic_mesh, on_mesh, shards_of
from .._static import Static
from .._trees import arrays_alone, with_constants
from .._typing import PyTree
from ._apply import is_traced
from ._independence import smaller_batch, traced_errors, warn_or_refuse
from ._inputs import batch_first, batch_of, unpacked
from ._keys import KEYS
from ._kwargs import Shared, is_none, split_kwargs
from ._nngp import KernelFn
from ._outputs import NamedOutputs, traced_outputs
from ._overflow import overflow_of


def spans_processes(*trees: PyTree) -> bool:
    """Whether an array lies on devices of other processes, too."""
    if jax.process_count() == 1:
        return False
    arrays = (leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, Array) and not is_traced(leaf))
    return any(not leaf.is_fully_addressable for leaf in arrays)


def in_this_process(argument: str, tree: PyTree) -> PyTree:
    """The same with arrays of this process alone; of what every process has as a whole, it is the part that is here.

    Raises:
        ValueError: other processes have parts of an array.
    """

    def own(path: Any, leaf: Any) -> Any:
        if not spans_processes(leaf):
            return leaf
        if not leaf.is_fully_replicated:
            raise ValueError(
                f"{argument}{jax.tree_util.keystr(path)} is sharded over several processes, and this one needs all of "
                "it: pass an array of this process, or copy it to all of them before, with "
                "jax.device_put(array, NamedSharding(mesh, PartitionSpec()))."
            )
        return leaf.addressable_data(0)

    return jax.tree_util.tree_map_with_path(own, tree) if spans_processes(tree) else tree


def on_automatic_mesh(tree: PyTree) -> PyTree:
    """The same shards on a mesh for whose arrays XLA finds the shardings; arrays of this process come to the host.

    A program of several processes takes host memory as what all of them have, and keys that are on no device yet.
    """

    def moved(leaf: Any) -> Any:
        if spans_processes(leaf):
            return on_mesh(leaf, automatic(_mesh_of(leaf)))
        if isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))  # type: ignore[arg-type]
        return np.asarray(leaf) if isinstance(leaf, Array) else leaf

    return jax.tree.map(moved, tree)


def replicated_like(tree: PyTree) -> NamedSharding:
    """All of an array on every device of the mesh that a tree lies on."""
    return NamedSharding(_mesh_of(_first_that_spans(tree)), PartitionSpec())


class OverProcesses:
    """The outputs and the kernels of inputs that are sharded over several processes.

    All processes make the same call, and each one runs the network on the examples that it has. Only outputs meet.

    Args:
        kernel_fn: the kernel function.
        batch_size: examples in a forward pass on each device; 0 for all that it has.
        check: as :func:`batch` takes it.
        params: what ``f`` takes as its parameters, sharded in any way.
        kwargs: the keyword arguments.
        x1: inputs, some of which are sharded over several processes.
        x2: inputs, or None.
    """

    def __init__(
        self, kernel_fn: KernelFn, batch_size: int, check: bool, params: PyTree, kwargs: Any, x1: PyTree, x2: PyTree
    ):
        params, kwargs = unpacked(kernel_fn.f, params, kwargs)
        self._kernel_fn, self._batch_size, self._check = kernel_fn, int(batch_size), check
        self._f, x1 = batch_first(kernel_fn.f, "x1", x1)
        x2 = None if is_none(x2) else batch_first(kernel_fn.f, "x2", x2)[1]
        self._shared = {"state", *(name for name, value in kwargs.items() if isinstance(value, Shared))}
        with automatic_mesh():
            # A key is the same for equal inputs, which all processes compare.
            compared = on_automatic_mesh((x1, x2)) if {*KEYS} & {*kwargs} else (x1, x2)
            kwargs_of_both = split_kwargs(on_automatic_mesh(kwargs), *compared)
        self._sides = list(zip(("x1", "x2"), (x1, x2), kwargs_of_both, strict=True))
        self._params = on_automatic_mesh(arrays_alone(params))

    def outputs(self, side: int = 0) -> NamedOutputs:
        """The outputs of ``x1`` or of ``x2``, sharded over examples as the inputs are."""
        argument, x, kwargs = self._sides[side]
        n = batch_of(argument, x)
        keys = {name: kwargs.pop(name) for name in KEYS if name in kwargs}
        names = [name for name, value in kwargs.items() if name not in self._shared and _rows_of(value) == n]
        rows = on_automatic_mesh(x), {name: kwargs.pop(name) for name in names}
        shards = shards_of(getattr(_first_that_spans(rows), "sharding", None))
        whole = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "shape") else Static(leaf), kwargs)
        size = min(self._batch_size or n, n // shards) * shards
        check = self._check and size < n
        forward = _forward(Static(self._f), argument, size, shards, bool(self._batch_size), check)
        with automatic_mesh():
            y, errors = forward(self._params, rows, whole, keys)
        outputs = NamedOutputs.unchecked(y)
        if check:
            compared = f"between batches of {size} and {smaller_batch(size)}"
            warn_or_refuse(outputs.names, jax.device_get([errors[path] for path in outputs.paths]), compared)
        return outputs

    def kernels(self) -> PyTree:
        """The kernels, whose rows are sharded as ``x1`` is.

        Raises:
            ValueError: products of finite outputs overflow.
        """
        given = _first_that_spans(self._sides[0][1])
        y1 = self.outputs()
        y2 = y1 if self._sides[1][1] is None else self.outputs(1)
        examples = PartitionSpec(*given.sharding.spec[:1])
        mesh = automatic(_mesh_of(given))
        where = {
            pair: NamedSharding(mesh, PartitionSpec() if contraction.batch_role() == "traced" else examples)
            for pair, contraction in self._kernel_fn.contractions(y1, y2).items()
        }
        places, structure = jax.tree.flatten(self._kernel_fn.assemble(y1.structure, where))
        contract = _contraction(Static(self._kernel_fn), tuple(places), structure)
        kernels, overflow = contract(*(side.structure.unflatten(side.leaves) for side in (y1, y2)))
        named = NamedOutputs.unchecked(kernels)
        for name, leaf, too_large in zip(named.names, named.leaves, jax.device_get(overflow), strict=True):
            if too_large:
                raise overflow_of(name, leaf.dtype)
        return jax.tree.map(lambda kernel: on_mesh(kernel, given.sharding.mesh), kernels)


@lru_cache(maxsize=64)
def _forward(
    f: Static, argument: str, size: int, shards: int, fold: bool, check: bool
) -> Callable[..., tuple[PyTree, Any]]:
    """``f`` on batches of ``size`` examples of all shards, and how far outputs depend on their batch."""

    def run(params: PyTree, rows: PyTree, whole: Mapping[str, Any], keys: PyTree) -> tuple[PyTree, Any]:
        def apply(rows: PyTree, batch: Any = 0) -> PyTree:
            x, cut = rows
            drawn = jax.tree.map(lambda key: jax.random.fold_in(key, batch), keys) if fold else keys
            return f.value(with_constants(params), x, **with_constants(whole), **cut, **drawn)

        errors = traced_errors(apply, rows, size, argument, draws=bool(jax.tree.leaves(keys))) if check else {}
        y = traced_outputs(apply, rows, argument, size, shards)
        return y.structure.unflatten(y.leaves), errors

    return jax.jit(run)


@lru_cache(maxsize=64)
def _contraction(kernel_fn: Static, places: tuple[NamedSharding, ...], structure: Any) -> Callable[..., Any]:
    def contract(y1: PyTree, y2: PyTree) -> tuple[PyTree, list[Array]]:
        kernels = kernel_fn.value.contract(y1, y2)
        finite = jnp.asarray([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((y1, y2))]).all()
        return kernels, [finite & ~jnp.isfinite(kernel).all() for kernel in jax.tree.leaves(kernels)]

    return jax.jit(contract, out_shardings=(structure.unflatten(places), None))


def _rows_of(value: Any) -> int | None:
    shape = getattr(value, "shape", ())
    return shape[0] if shape else None


def _first_that_spans(tree: PyTree) -> Any:
    return next((leaf for leaf in jax.tree.leaves(tree) if spans_processes(leaf)), None)


def _mesh_of(array: Array) -> Mesh:
    if not isinstance(array.sharding, NamedSharding):
        raise ValueError(f"an array over several processes has {array.sharding}; put it on a mesh by a NamedSharding.")
    return array.sharding.mesh  # type: ignore[return-value]
