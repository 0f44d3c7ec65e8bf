"""From the product of a layer to its Gram and its numbers, on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..metrics import (
    DenseGram,
    Metric,
    Product,
    eigenvalues,
    evaluate_layer,
    grams_of_products,
    identity_of,
    is_in_units_of_kernel,
    needs_spectrum,
)


class Numbers:
    """Works on one layer at a time, in any number of threads.

    Each step is one compiled program or one call of LAPACK. Both let go of Python's lock, which training needs.

    Args:
        metrics: what to compute of every layer.
    """

    def __init__(self, metrics: Mapping[str, Metric]):
        self._spectral = needs_spectrum(metrics)
        identities = {name: identity_of(metric) for name, metric in metrics.items()}
        # A function that is known to equal no other one equals itself alone, and is not kept.
        given = _Metrics(tuple((name, known or object()) for name, known in identities.items()), metrics)
        self._metrics = _first_of(given) if all(identities.values()) else given
        self._is_prepared = False

    def prepare(self, n: int, dtype: Any) -> None:
        """Compiles what is computed of a layer, once for all layers and snapshots."""
        if not self._is_prepared:
            like: Any = np.eye(n, dtype=dtype), np.zeros((), np.int32)
            gram = self.gram(Product(*like))
            self(gram, gram, gram, on_cpu(np.ones((), dtype)))
            self._is_prepared = True

    def gram(self, product: Product) -> DenseGram:
        """The Gram of a layer, from what :func:`product_from_first` makes of it."""
        with _nan_is_no_error():
            # Few kernels leave the range of their dtype, and all others take less time without an exponent.
            exponent = product.exponent if np.any(product.exponent) else None
            return self.with_spectrum(_gram(on_cpu((product.matrix, exponent))))

    def with_spectrum(self, gram: DenseGram) -> DenseGram:
        """The same Gram with its eigenvalues, if a metric needs them."""
        # They are no part of the compiled metrics: XLA on CPU (JAX 0.10) never finishes some of them side by side.
        spectrum: Any = on_cpu(eigenvalues(jax.device_get(gram.matrix))) if self._spectral else None
        return replace(gram, eigenvalues=spectrum)

    def __call__(self, gram: DenseGram, reference: DenseGram, previous: DenseGram, steps: Array) -> dict[str, float]:
        """The metrics of a layer.

        Args:
            gram: its Gram.
            reference: that of its reference.
            previous: that of the snapshot before.
            steps: the steps since that one.
        """
        with _nan_is_no_error():
            values, exponent = jax.device_get((self._metrics.values(gram, reference, previous, steps), gram.exponent))
        found = dict(zip(self._metrics.by_name, values.tolist(), strict=True))
        if exponent is not None:
            # Python's floats have room for what leaves the range of float32.
            found |= {name: _times_power_of_4(found[name], int(exponent)) for name in self._metrics.sized}
        return found


@dataclass(frozen=True)
class _Metrics:
    """Metrics as one program; two of them are equal if they compute the same.

    Attributes:
        identities: the names, each with what :func:`identity_of` the metric gives.
        by_name: the metrics.
    """

    identities: tuple[tuple[str, Hashable], ...]
    by_name: Mapping[str, Metric] = field(compare=False)

    @cached_property
    def sized(self) -> frozenset[str]:
        """The names of those that are in units of the kernel."""
        return frozenset(name for name, metric in self.by_name.items() if is_in_units_of_kernel(metric))

    @cached_property
    def values(self) -> Callable[[DenseGram, DenseGram, DenseGram, Array], Array]:
        """The values of a layer in one array, as a compiled function.

        Functions of jit start in a tenth of the time that programs compiled ahead take.
        """
        return jax.jit(self._in_one_array)

    def _in_one_array(self, gram: DenseGram, reference: DenseGram, previous: DenseGram, steps: Array) -> Array:
        sized = {name: metric for name, metric in self.by_name.items() if name in self.sized}
        others = {name: metric for name, metric in self.by_name.items() if name not in self.sized}
        found = evaluate_layer(others, gram, reference, previous, steps)
        found |= evaluate_layer(sized, replace(gram, exponent=None), reference, previous, steps)
        each = [jnp.asarray(found[name]).astype(steps.dtype) for name in self.by_name]
        return jnp.stack(each) if each else jnp.zeros(0, steps.dtype)


@lru_cache(maxsize=32)
def _first_of(metrics: _Metrics) -> _Metrics:
    """The first of equal metrics, so that trackers of the same ones share what is compiled."""
    return metrics


@contextmanager
def _nan_is_no_error() -> Iterator[None]:
    """Lets numbers be nan, as that of a first velocity, where the user lets JAX stop a training at its first nan."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def _times_power_of_4(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, 2 * exponent)
    except OverflowError:  # of features in float64
        return math.inf


def on_cpu(tree: Any) -> Any:
    """Arrays for the host's programs. JAX's strict modes refuse to take those of NumPy as they are."""
    return jax.device_put(tree, jax.local_devices(backend="cpu")[0])


@jax.jit
def _gram(product: tuple[Array, Array | None]) -> DenseGram:
    stacked = grams_of_products(Product(*jax.tree.map(lambda array: array[None], product)))
    gram: DenseGram = jax.tree.map(lambda array: array[0], stacked)
    return gram
