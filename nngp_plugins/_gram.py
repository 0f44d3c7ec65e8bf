"""From a model to the Grams of its outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .engine import batch, empirical_nngp_fn
from .metrics import DenseGram, FeatureGram, features

PyTree = Any


def gram(
    f: Callable[..., PyTree],
    x: PyTree,
    params: PyTree,
    *,
    batch_size: int = 0,
    store_on_device: bool = True,
    check: bool = True,
    **apply_fn_kwargs: Any,
) -> PyTree:
    """The Grams of a model's outputs on N examples, for :mod:`nngp_plugins.metrics`: the cheaper form of each.

    An output with D < N features becomes a :class:`FeatureGram`, for which no ``(N, N)`` matrix is ever formed; a wider
    one a :class:`DenseGram` with its centred form.

    Args:
        f: ``f(params, x, **kwargs)``, such as a :class:`ModelFn`; ``f.layers()`` for a Gram of every layer.
        x: inputs with N examples along axis 0 of every array.
        params: what ``f`` takes as its parameters.
        batch_size: examples in a forward pass; 0 for all at once.
        store_on_device: as in :func:`batch`; False also keeps narrow features in host memory, as NumPy arrays.
        check: as in :func:`batch`.
        **apply_fn_kwargs: passed to ``f``, as by :func:`batch`.

    Returns:
        The PyTree of ``f``'s outputs with a Gram in place of each; the kernel is averaged over all axes but the batch.

    Raises:
        ValueError: outputs without a row for each example, or that depend on the others in the batch.
        TypeError: complex outputs; a call inside ``jit``.

    Warns:
        RuntimeWarning: an output holds NaN or infinity; its metrics are nan.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> gram = nngp.gram(lambda params, x: x @ params, jnp.eye(9), jnp.ones((9, 2)), batch_size=4)
        >>> round(float(nngp.metrics.effective_rank(gram)), 3)
        1.0
    """
    kernel_fn = batch(empirical_nngp_fn(f), batch_size, store_on_device=store_on_device, check=check)
    outputs = kernel_fn.outputs(x, params, **apply_fn_kwargs)
    bad = []
    for path, y in jax.tree_util.tree_leaves_with_path(outputs):
        if not np.isfinite(jnp.sum(jnp.abs(y))):
            examples = np.flatnonzero(~np.isfinite(np.asarray(y)).reshape(len(y), -1).all(axis=1))
            if examples.size:
                name = jax.tree_util.keystr(path, simple=True, separator="/") or "the output"
                bad.append(
                    f"{name} (examples {', '.join(map(str, examples[:3]))}{', ...' if len(examples) > 3 else ''})"
                )
    if bad:
        warnings.warn(f"NaN or infinity in {'; '.join(bad)}: metrics of it are nan.", RuntimeWarning, stacklevel=2)
    return jax.tree.map(_cheaper, outputs)


def _cheaper(y: Array) -> FeatureGram | DenseGram:
    narrow = FeatureGram(features(y))
    return narrow if narrow.narrow else narrow.by_entries()
