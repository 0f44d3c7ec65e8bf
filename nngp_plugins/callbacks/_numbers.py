"""From the product of a layer to its Gram and its numbers, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..metrics import DenseGram, Metric, eigenvalues, evaluate_layer, grams_of_products, needs_spectrum


class Numbers:
    """Works on one layer at a time, in any number of threads.

    Each step is one compiled program or one call of LAPACK. Both let go of Python's lock, which training needs.

    Args:
        metrics: what to compute of every layer.
    """

    def __init__(self, metrics: Mapping[str, Metric]):
        self._metrics = metrics
        self._spectral = needs_spectrum(metrics)
        # Functions of jit start in a tenth of the time that programs compiled ahead take.
        self._gram, self._values = jax.jit(_gram), jax.jit(self._in_one_array)
        self._is_prepared = False

    def prepare(self, n: int, dtype: Any) -> None:
        """Compiles what is computed of a layer, once for all layers and snapshots."""
        if not self._is_prepared:
            gram = self.gram(np.eye(n, dtype=dtype))
            self(gram, gram, gram, on_cpu(np.ones((), dtype)))
            self._is_prepared = True

    def gram(self, product: np.ndarray) -> DenseGram:
        """The Gram of a layer, from what :func:`product_from_first` makes of it."""
        return self.with_spectrum(self._gram(on_cpu(product)))

    def with_spectrum(self, gram: DenseGram) -> DenseGram:
        """The same Gram with its eigenvalues, if a metric needs them."""
        # They are no part of the compiled metrics: XLA on CPU (JAX 0.10) never finishes some of them side by side.
        spectrum: Any = on_cpu(eigenvalues(jax.device_get(gram.matrix))) if self._spectral else None
        return DenseGram(gram.matrix, gram.centered, spectrum)

    def __call__(self, gram: DenseGram, reference: DenseGram, previous: DenseGram, steps: Array) -> dict[str, float]:
        """The metrics of a layer.

        Args:
            gram: its Gram.
            reference: that of its reference.
            previous: that of the snapshot before.
            steps: the steps since that one.
        """
        values = jax.device_get(self._values(gram, reference, previous, steps))
        return dict(zip(self._metrics, values.tolist(), strict=True))

    def _in_one_array(self, *given: Any) -> Array:
        values = evaluate_layer(self._metrics, *given)
        return jnp.asarray([values[name] for name in self._metrics], given[-1].dtype)


def on_cpu(tree: Any) -> Any:
    """Arrays for the host's programs. JAX's strict modes refuse to take those of NumPy as they are."""
    return jax.device_put(tree, jax.local_devices(backend="cpu")[0])


def _gram(product: Array) -> DenseGram:
    gram: DenseGram = jax.tree.map(lambda stacked: stacked[0], grams_of_products(product[None]))
    return gram
