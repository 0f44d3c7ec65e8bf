"""From the product of a layer to its Gram and its numbers, on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..metrics import DenseGram, Metric, eigenvalues, evaluate_layer, grams_of_products, needs_spectrum


class Numbers:
    """Works on one layer at a time, in any number of threads.

    Args:
        metrics: what to compute of every layer.
    """

    def __init__(self, metrics: Mapping[str, Metric]):
        self._metrics = metrics
        self._spectral = needs_spectrum(metrics)
        self._compiled: Callable[..., Any] | None = None

    def gram(self, product: np.ndarray) -> DenseGram:
        """The Gram of a layer, from what :func:`product_from_first` makes of it."""
        # The kernel of a layer that is not finite takes differences of infinities, and is told of by its flaw.
        with np.errstate(over="ignore", invalid="ignore"):
            return self.with_spectrum(jax.tree.map(lambda stacked: stacked[0], grams_of_products(product[None])))

    def with_spectrum(self, gram: DenseGram) -> DenseGram:
        """The same Gram with its eigenvalues, if a metric needs them."""
        # They are no part of the compiled metrics: XLA on CPU (JAX 0.10) never finishes some of them side by side.
        spectrum: Any = eigenvalues(np.asarray(gram.matrix)) if self._spectral else None
        return DenseGram(gram.matrix, gram.centered, spectrum)

    def prepare(self, n: int, dtype: Any) -> None:
        """Compiles the metrics of one layer, once for all layers and snapshots."""
        if self._compiled is None:
            matrix: Any = jax.ShapeDtypeStruct((n, n), dtype)
            spectrum: Any = jax.ShapeDtypeStruct((n,), dtype) if self._spectral else None
            like, steps = DenseGram(matrix, matrix, spectrum), jax.ShapeDtypeStruct((), dtype)
            self._compiled = jax.jit(self._values).lower(like, like, like, steps).compile()

    def __call__(self, *given: Any) -> dict[str, Any]:
        """The metrics of a layer, when they are prepared.

        Args:
            *given: its Gram, the Grams of its reference and of the snapshot before, and the steps since that one.
        """
        assert self._compiled is not None
        # JAX's strict modes refuse to take arrays of NumPy as they are.
        on_cpu = jax.device_put(given, jax.local_devices(backend="cpu")[0])
        values: dict[str, Any] = jax.device_get(self._compiled(*on_cpu))
        return values

    def _values(self, *given: Any) -> dict[str, Any]:
        return evaluate_layer(self._metrics, *given)
