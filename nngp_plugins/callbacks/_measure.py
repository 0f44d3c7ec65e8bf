"""What a snapshot measures: the products of all layers on the probe, as one compiled function."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from .._meshes import automatic_mesh, shards_of
from .._trees import arrays_alone, with_constants
from .._typing import as_jax_takes_it
from ..adapters import ModelFn, Reduced, matches, warn_of_statistics
from ..engine import (
    BatchErrors,
    NamedOutputs,
    batch_first,
    compiler_options,
    has_layers,
    on_automatic_mesh,
    refuse_same_names,
    replicated_like,
    smaller_batch,
    spans_processes,
    traced_errors,
    traced_outputs,
)
from ..metrics import OfStep, Product, features, product_from_first, rows_of
from ._checks import check_batches, check_layers, probe_size
from ._given import own

PROBE = "probe_x"


class Measured(NamedTuple):
    """What is measured at one step.

    Attributes:
        products: what :func:`product_from_first` makes of each layer, ``(L, N, N)``, and their exponents ``(L,)``. The
            host makes K and H K H of it: these two would be twice the bytes for the device to hold and to send.
        features: the features ``(N, D)`` of each layer that keeps them in place of its kernel.
        errors: how far the outputs depend on the other examples in the batch, by layer; empty if that is not checked.
    """

    products: Product
    features: dict[str, Array]
    errors: dict[str, BatchErrors]


@dataclass(frozen=True)
class _Products:
    """What a snapshot makes of a layer: the product of its features, or its output if the features are kept.

    Attributes:
        n: the number of examples.
        keep_features: whether layers that are narrower than their kernels keep their features.
        rows: how several devices share the probe; None if they do not.
    """

    n: int
    keep_features: bool
    rows: NamedSharding | None

    def keeps(self, shape: Any) -> bool:
        """Whether a layer of this shape keeps its features."""
        return self.keep_features and math.prod(shape.shape[1:]) < self.n

    def __call__(self, name: str, y: Array) -> Array | Product:
        return y if self.keeps(y) else self.of(y)

    def of(self, y: Array) -> Product:
        """The product of a layer."""
        return product_from_first(y, self.rows)

    def of_step(self, shape: jax.ShapeDtypeStruct) -> OfStep | None:
        """The product of a step; None if all steps are kept."""
        return None if self.keeps(shape) else OfStep(self.of)

    def take_apart(self, reduced: Reduced) -> tuple[Product, dict[str, Array]]:
        """The products of all layers in forward order, and the features of those that keep them."""
        products: list[Product] = []
        places: list[int] = []
        kept: dict[str, Array] = {}
        for part in reduced.parts:
            stacked = part.value if part.stacked else jax.tree.map(lambda y: y[None], part.value)
            if not isinstance(stacked, Product):
                kept |= {reduced.names[i]: features(y) for i, y in zip(part.places, stacked, strict=True)}
                stacked = jax.vmap(self.of)(stacked)
            products.append(stacked)
            places += part.places
        with jax.numpy_dtype_promotion("standard"):
            together = Product(*map(jnp.concatenate, zip(*products, strict=True)))
        # The layers of a scan lie side by side, and take one step of compilation whatever their number.
        if places != sorted(places):
            together = Product(*(array[np.argsort(places)] for array in together))
        return together, kept


class Measurement:
    """From parameters to the products of all layers.

    Args:
        f: ``f(params, x)``, with ``state=`` for a model with a state and ``rng=`` for one that draws noise.
        probe_x: the examples to measure on, N of them along axis 0 of every array.
        batch_size: examples of a forward pass; None for all of them at once.
        rng: the key of every measurement, so that the noise is always the same; None for a model that draws none.
        keep_features: whether to return the features of layers that are narrower than their kernels.

    Attributes:
        n: the number of examples N.
        shapes: the shape of each layer without the batch axis, in forward order; empty before the first measurement.
        expected_shapes: the shapes that another process recorded in the run folder; None for a new run.
        is_shared: whether the probe lies on several processes of ``jax.distributed``, so that all of them measure.
        unseen: why no layer covers a module that owns parameters, by the path of the module.
    """

    f: Callable[..., Any]
    probe_x: Any
    n: int

    def __init__(
        self, f: Callable[..., Any], probe_x: Any, batch_size: int | None, rng: Array | None, *, keep_features: bool
    ):
        f, probe_x = batch_first(f, PROBE, probe_x)
        self.is_shared = spans_processes(probe_x)
        # A compiled function may make the tracker, which outlives what JAX traces there.
        with jax.ensure_compile_time_eval():
            probe_x = on_automatic_mesh(probe_x) if self.is_shared else own(probe_x)
            self.probe_x = probe_x if self.is_shared else jax.tree.map(jnp.asarray, probe_x)
        self.f, self._rng = f, own(rng)
        self.n = probe_size(self.probe_x)
        rows = next(filter(None, map(rows_of, jax.tree.leaves(self.probe_x))), None)
        self._products = _Products(self.n, keep_features, rows)
        # A batch has as many examples of each device. If the model draws noise, batches are those of one device.
        self._shards = shards_of(rows) if rng is None else 1
        size = None if batch_size is None else -(-batch_size // self._shards) * self._shards
        self._batch_size = None if size is None or size >= self.n else size
        check_batches(self._batch_size and batch_size, rows)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.expected_shapes: Mapping[str, Any] | None = None
        self.unseen: dict[str, str] = {}
        # The products are small, and the process that records them needs them whole.
        whole = replicated_like(self.probe_x) if self.is_shared else None
        self._compiled = jax.jit(self.traced, compiler_options=compiler_options(), out_shardings=whole)
        self._is_checked = self._batch_size is None

    def __call__(self, params: Any, state: Any, on_shape: Callable[[jax.ShapeDtypeStruct], object]) -> Measured:
        """Measures.

        Args:
            params: parameters, or a live model that stands for them.
            state: the model's state; None if it has none.
            on_shape: is told the shape of the products before they are computed for the first time.

        Raises:
            ValueError: the outputs depend on the other examples in the batch, or have no row for each example.
        """
        if isinstance(self.f, ModelFn):
            params, state = self.f.variables(params, state)
        with automatic_mesh() if self.is_shared else nullcontext():
            return self._measured(params, state, on_shape)

    def _measured(self, params: Any, state: Any, on_shape: Callable[[jax.ShapeDtypeStruct], object]) -> Measured:
        params, state = self._placed(own((params, state)))
        params = arrays_alone(params)
        if not self.shapes:
            warn_of_statistics(state)
            on_shape(self._compiled.eval_shape(params, state, self.probe_x).products.matrix)
        if not self._is_checked:
            refusals, warned = self.dependence(jax.jit(self._traced_errors)(params, state, self.probe_x))
            if refusals:
                raise ValueError(refusals[0])
            for message in warned[:1]:
                warnings.warn(message, stacklevel=2)
            self._is_checked = True
        return self._compiled(params, state, self.probe_x)

    @property
    def records(self) -> bool:
        """Whether this process records what is measured: process 0 does, of those that share the probe."""
        return not self.is_shared or jax.process_index() == 0

    def _placed(self, variables: Any) -> Any:
        """Parameters and state where the probe is."""
        if self.is_shared:
            return on_automatic_mesh(variables)
        if spans_processes(variables):
            raise ValueError(
                "params are on the devices of several processes, and probe_x is not; put probe_x there too, sharded or "
                "by jax.device_put(probe_x, NamedSharding(mesh, PartitionSpec())), and call the tracker in all of them."
            )
        return variables

    def traced(self, params: Any, state: Any, probe_x: Any, *, check: bool = False) -> Measured:
        """The products of all layers, for use within a compiled function.

        Args:
            params: parameters.
            state: the model's state; None if it has none.
            probe_x: the probe.
            check: whether to return how far the outputs depend on the other examples in the batch.
        """
        # The probe may have been made while jax_enable_x64 was on.
        probe_x = jax.tree.map(_as_jax_takes_it, probe_x)
        errors, params = self._traced_errors(params, state, probe_x) if check else {}, with_constants(params)
        given = {name: value for name, value in (("state", state), ("rng", self._rng)) if value is not None}
        if has_layers(self.f) and self._batch_size is None:
            products, summary = self.f.reduce_layers(self._products, params, probe_x, **given)
            self._remember_unseen(summary.unseen)
            taken, narrow = self._products.take_apart(products)
            order = self._found({name: shape.shape for name, shape in summary.shapes.items()})
            return Measured(_in_order(taken, order), narrow, errors)
        if has_layers(self.f):
            batch = jax.tree.map(lambda leaf: leaf[: self._batch_size], probe_x)
            self._remember_unseen(self.f.summary(params, batch, **given).unseen)
        layers = self._layers(
            traced_outputs(self._apply(params, state), probe_x, PROBE, self._batch_size, self._shards)
        )
        order = self._found({name: y.shape for name, y in layers.items()})
        narrow = {name: features(y) for name, y in layers.items() if self._products.keeps(y)}
        products = [self._products.of(y) for y in layers.values()]
        with jax.numpy_dtype_promotion("standard"):
            stacked = Product(*map(jnp.stack, zip(*products, strict=True)))
        return Measured(_in_order(stacked, order), narrow, errors)

    def _found(self, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
        """Remembers the layers; returns the places of those of the run folder, and refuses those of another model."""
        self.shapes, names = {name: shape[1:] for name, shape in shapes.items()}, list(shapes)
        if self.expected_shapes is not None:
            check_layers(self.expected_shapes, self.shapes)
            self.shapes = {name: self.shapes[name] for name in self.expected_shapes}
        return [names.index(name) for name in self.shapes]

    def _remember_unseen(self, unseen: Mapping[str, str]) -> None:
        patterns = self.f.patterns if has_layers(self.f) else ()
        self.unseen = {path: reason for path, reason in unseen.items() if matches(path, patterns)}

    def dependence(self, errors: Mapping[str, BatchErrors]) -> tuple[list[str], list[str]]:
        """What to say of layers that depend on their batch, and of those that rounding changes much."""
        size = self._batch_size or self.n
        compared = f"between batches of {size} and {smaller_batch(size)}"
        named = {f"output {path!r}" if path else "the output": jax.device_get(error) for path, error in errors.items()}
        refusals = [error.message(name, compared, "leave out batch_size") for name, error in named.items()]
        warned = [error.warning(name, compared) for name, error in named.items()]
        return [*filter(None, refusals)], [*filter(None, warned)]

    def _apply(self, params: Any, state: Any) -> Callable[..., Any]:
        given = {} if state is None else {"state": state}

        def apply(x: Any, batch: Any = 0) -> Any:
            if self._rng is None:
                return self.f(params, x, **given)
            # Each batch draws noise of its own, as it does in nngp.batch.
            rng = self._rng if self._batch_size is None else jax.random.fold_in(self._rng, batch)
            return self.f(params, x, rng=rng, **given)

        return apply

    def _layers(self, outputs: NamedOutputs) -> dict[str, Array]:
        if not outputs.leaves:
            raise ValueError(f"f returned {outputs.structure.unflatten([])!r}, which holds no array to measure.")
        names = [path or "output" for path in outputs.paths]
        refuse_same_names(names)
        return dict(zip(names, outputs.leaves, strict=True))

    def _traced_errors(self, params: Any, state: Any, probe_x: Any) -> dict[str, BatchErrors]:
        if self._batch_size is None:
            return {}
        apply, draws = self._apply(with_constants(params), state), self._rng is not None
        return traced_errors(apply, probe_x, self._batch_size, PROBE, draws=draws)


def _as_jax_takes_it(array: Array) -> Array:
    dtype = as_jax_takes_it(array.dtype)
    return array if dtype == array.dtype else array.astype(dtype)


def _in_order(products: Product, order: list[int]) -> Product:
    """The products of layers in the order of the run folder; a model that goes on may have another one."""
    if order == sorted(order):
        return products
    return Product(*(array[np.asarray(order)] for array in products))


def unseen_message(unseen: Mapping[str, str]) -> str:
    """What to say of modules that no layer covers, each with the reason."""
    named = "; ".join(f"{path!r}: {reason}" for path, reason in list(unseen.items())[:3])
    more = ", and others, which f.summary(params, x) names" if len(unseen) > 3 else ""
    return f"{len(unseen)} modules with parameters are not seen, so that no layer covers them ({named}{more})."
