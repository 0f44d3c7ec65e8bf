"""From a model to the Grams of its outputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._static import Static
from ._typing import PyTree, wide
from .engine import (
    Count,
    Draws,
    Estimate,
    LayerFn,
    NamedOutputs,
    NewNetwork,
    batch,
    batch_first,
    empirical_nngp_fn,
    has_layers,
    refuse_empty,
    refuse_same_names,
    spans_processes,
    undisturbed,
)
from .metrics import DenseGram, FeatureGram, OfStep, StreamedGram, features, gram_of
from .store import FeatureStore

_NOT_FINITE, _ZERO = "NaN or infinity in", "all outputs are zero in"


def gram(
    f: Callable[..., PyTree] | FeatureStore,
    x: PyTree = None,
    params: PyTree = None,
    *,
    batch_size: int = 0,
    store_on_device: bool = True,
    check: bool = True,
    **apply_fn_kwargs: Any,
) -> PyTree:
    """The Grams of a model's outputs on N examples, each in its cheaper form, for :mod:`nngp_plugins.metrics`.

    An output with D < N features becomes a :class:`FeatureGram`, for which no ``(N, N)`` matrix is ever formed. A wider
    output becomes a :class:`DenseGram` with its centred form. The stored features of :func:`write_features` become a
    :class:`StreamedGram` each, which reads them block by block.

    Args:
        f: ``f(params, x, **kwargs)``, such as a :class:`ModelFn`; ``f.layers()`` for a Gram of every layer. Or a
            :class:`FeatureStore` alone.
        x: inputs with N examples along axis 0 of every array. If they are sharded over several processes of
            ``jax.distributed``, all of them make this call, and metrics give each of them the same numbers.
        params: what ``f`` takes as its parameters.
        batch_size: examples in a forward pass; 0 for all of them at once.
        store_on_device: as in :func:`batch`; False also keeps narrow features in host memory, as NumPy arrays.
        check: as in :func:`batch`.
        **apply_fn_kwargs: passed to ``f``, as by :func:`batch`.

    Returns:
        The PyTree of ``f``'s outputs with a Gram in place of each; the kernel is averaged over all axes but the batch.

    Raises:
        ValueError: outputs do not have a row for each example, or depend on the other examples in the batch; two of
            them have one name.
        TypeError: outputs are complex; the call is inside ``jit``; a :class:`FeatureStore` is not alone.

    Warns:
        RuntimeWarning: an output holds NaN or infinity, or is zero for all examples; its metrics are nan.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> gram = nngp.gram(lambda params, x: x @ params, jnp.eye(9), jnp.ones((9, 2)), batch_size=4)
        >>> round(float(nngp.metrics.effective_rank(gram)), 3)
        1.0
    """
    if isinstance(f, FeatureStore):
        if x is not None or params is not None or apply_fn_kwargs:
            raise TypeError("the features of a FeatureStore are there already; pass nngp.gram(store) alone.")
        return jax.tree.map(StreamedGram, f.as_outputs())
    with undisturbed():
        grams, found = _grams_of(f, x, params, batch_size, store_on_device, check, apply_fn_kwargs)
    for flaw, names in found.items():
        warnings.warn(f"{flaw} {'; '.join(names)}: metrics of it are nan.", RuntimeWarning, stacklevel=2)
    return grams


def _grams_of(
    f: Callable[..., PyTree],
    x: PyTree,
    params: PyTree,
    batch_size: int,
    store_on_device: bool,
    check: bool,
    kwargs: dict[str, Any],
) -> tuple[PyTree, dict[str, list[str]]]:
    """The Grams, and the outputs that are not finite or zero, by what to say of them."""
    f, x = batch_first(f, "x", x)
    at_once = batch_size == 0 and store_on_device and jax.local_device_count() == 1
    if at_once and has_layers(f):
        # Grams of the layers of a scan are made inside it, so that their outputs are never held together.
        kernel_fn = batch(empirical_nngp_fn(_GramsOfLayers(f)), check=check)
        outputs = kernel_fn.outputs(x, params, **kwargs)
        grams = _map_exponents(lambda gram: gram.exponent[0], outputs)
    else:
        kernel_fn = batch(empirical_nngp_fn(f), batch_size, store_on_device=store_on_device, check=check)
        outputs = kernel_fn.outputs(x, params, **kwargs)
        grams = jax.tree.map(gram_of, outputs)
    named = NamedOutputs.unchecked(outputs)
    refuse_same_names(named.paths)
    found: dict[str, list[str]] = {}
    for path, y in zip(named.paths, named.leaves, strict=True):
        flaw, examples = _flaw_of(y)
        if flaw:
            found.setdefault(flaw, []).append((path or "the output") + examples)
    return grams, found


def over_inits(
    metric: Callable[[PyTree], PyTree],
    f: Callable[..., PyTree],
    x: PyTree,
    key: Array,
    n_samples: Count,
    *,
    init: Callable[..., PyTree] | None = None,
    tolerance: float | None = None,
    inits_at_once: int | None = None,
    resume: Estimate | None = None,
    **apply_fn_kwargs: Any,
) -> Estimate | Iterator[Estimate]:
    """A metric of randomly initialised networks: its mean, with the standard error over initialisations.

    Args:
        metric: a function of what :func:`gram` returns, such as a metric of :mod:`nngp_plugins.metrics` for one output,
            or ``lambda grams: cka(grams["hidden"], grams["output"])`` for layers. It returns numbers, in any PyTree.
        f: apply function, as for :func:`gram`.
        x: inputs with N examples along axis 0 of every array.
        key: a key of ``jax.random``. Network i is drawn from ``fold_in(key, i)``.
        n_samples: the number of networks, as for :func:`monte_carlo_kernel_fn`.
        init: ``init(key, x) -> params``, as for :func:`monte_carlo_kernel_fn`.
        tolerance: the relative error to stop at, as for :func:`monte_carlo_kernel_fn`.
        inits_at_once: as for :func:`monte_carlo_kernel_fn`.
        resume: an :class:`Estimate` of the same key and inputs, to go on from.
        **apply_fn_kwargs: passed to ``f``; ``rng`` is folded for each network.

    Returns:
        An :class:`Estimate` of what the metric returns; for several ``n_samples``, an iterator of them.

    Raises:
        TypeError: ``f`` has no ``init``, and none is given; the call is inside ``jit``.
        ValueError: a number is not positive; ``resume`` belongs to another key or other inputs.

    Example:
        >>> import jax, flax.linen as nn, nngp_plugins as nngp
        >>> f, x = nngp.from_linen(nn.Dense(8)), jax.random.normal(jax.random.key(0), (20, 5))
        >>> rank = nngp.over_inits(nngp.metrics.effective_rank, f, x, jax.random.key(1), n_samples=10)
        >>> bool(3 < rank.mean < 5), bool(0 < rank.standard_error < 0.2)
        (True, True)
    """
    refuse_empty("x", x)
    of_init = _MetricOfInit(Static(metric), NewNetwork(f, None if init is None else Static(init)))
    return Draws(key, n_samples, tolerance, inits_at_once).means(of_init, (x, apply_fn_kwargs), resume)


@dataclass(frozen=True)
class _MetricOfInit:
    """The metric of a new network."""

    metric: Static
    network: NewNetwork

    def __call__(self, key: Array, number: Any, x: PyTree, kwargs: dict[str, Any]) -> PyTree:
        params, kwargs = self.network(key, number, x, kwargs)
        return self.metric.value(jax.tree.map(gram_of, self.network.f(params, x, **kwargs)))


@dataclass(frozen=True)
class _GramsOfLayers:
    """A model as a function that returns the Gram of each layer."""

    f: LayerFn

    def __call__(self, params: PyTree, x: PyTree, **kwargs: Any) -> PyTree:
        grams, _ = self.f.reduce_layers(_GramOf(), params, x, **kwargs)
        # Every output needs a row for each example.
        return _map_exponents(lambda gram: jnp.broadcast_to(gram.exponent, (gram.n,)), grams.by_name())

    def variables(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and state, as those of the model."""
        return self.f.variables(params)


class _GramOf:
    """The Gram of a layer; that of the steps of a scan over time is the mean of those of each step."""

    def __call__(self, name: str, y: Array) -> FeatureGram | DenseGram:
        return gram_of(y)

    def of_step(self, shape: jax.ShapeDtypeStruct) -> OfStep | None:
        """The Gram of a step with all its entries; None if the features of all steps take less memory."""
        narrow = math.prod(shape.shape[1:]) < shape.shape[0]
        return None if narrow else OfStep(lambda y: FeatureGram(features(y)).by_entries())


def _map_exponents(change: Callable[[Any], Any], grams: PyTree) -> PyTree:
    def changed(gram: FeatureGram | DenseGram) -> FeatureGram | DenseGram:
        return replace(gram, exponent=change(gram)) if isinstance(gram, DenseGram) else gram

    return jax.tree.map(changed, grams, is_leaf=lambda node: isinstance(node, FeatureGram | DenseGram))


def _flaw_of(y: Any) -> tuple[str, str]:
    """What to say of an output with which no metric can be computed, and of which examples; empty for any other one."""
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return "", ""
    size = float(jnp.sum(jnp.abs(y.astype(wide(y.dtype)))))
    if size == 0:
        return _ZERO, ""
    # The sum of large finite numbers may overflow, and has no examples that are not finite.
    examples = "" if np.isfinite(size) else _examples(y)
    return (_NOT_FINITE if examples else ""), examples


def _examples(y: Any) -> str:
    """The first examples of an output that are not finite."""
    if spans_processes(y):
        return " (some examples)"
    examples = np.flatnonzero(~np.isfinite(np.asarray(y)).reshape(len(y), -1).all(axis=1))
    more = ", ..." if len(examples) > 3 else ""
    return f" (examples {', '.join(map(str, examples[:3]))}{more})" if examples.size else ""
