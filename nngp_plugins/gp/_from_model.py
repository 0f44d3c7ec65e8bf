"""The Gaussian process of a network's features, such as its last layer, in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._typing import PyTree
from ..engine import NamedOutputs, batch, empirical_nngp_fn
from ..metrics import FeatureGram, features
from ._fit import Select, fit
from ._posterior import FeaturePosterior


def from_model(
    f: Callable[..., PyTree],
    params: PyTree,
    x: PyTree,
    y: Any,
    *,
    nugget: float | None = None,
    select: Select | None = None,
    batch_size: int = 0,
    **apply_fn_kwargs: Any,
) -> FeaturePosterior:
    """The posterior of a Gaussian process with the empirical kernel of a network's output or of one of its layers.

    Every training example runs through the network once, and every test example once for each method that is called.

    Args:
        f: apply function with one output, such as ``f.layers("Dense_1")`` for the features of the last hidden layer.
        params: what ``f`` takes as its parameters.
        x: training inputs with N examples along axis 0.
        y: targets, as for :func:`fit`.
        nugget: as for :func:`fit`.
        select: as for :func:`fit`.
        batch_size: examples in a forward pass; 0 for all of them at once.
        **apply_fn_kwargs: passed to ``f``, such as ``state=``.

    Returns:
        A :class:`FeaturePosterior` whose methods take inputs of the model.

    Raises:
        ValueError: ``f`` has several outputs; as :func:`fit`.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn, nngp_plugins as nngp
        >>> f = nngp.from_linen(nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(3)]))
        >>> x, y = jax.random.normal(jax.random.key(0), (200, 2)), jnp.arange(200) % 2
        >>> params, state = f.init(jax.random.key(1), x)
        >>> posterior = nngp.gp.from_model(f.layers("layers_0"), params, x + 3 * y[:, None], y, select="lml")
        >>> posterior.predict(jnp.array([[0.0, 0.0], [3.0, 3.0]])).tolist()
        [0, 1]
    """

    def of_inputs(x: PyTree) -> np.ndarray:
        return features_of(f, x, params, batch_size, apply_fn_kwargs)

    gram: Any = FeatureGram(of_inputs(x))  # type: ignore[arg-type]
    posterior: Any = fit(gram, y, nugget=nugget, select=select)
    return replace(posterior, features_of=of_inputs)


def features_of(
    f: Callable[..., PyTree], x: PyTree, params: PyTree, batch_size: int, kwargs: Mapping[str, Any]
) -> np.ndarray:
    """The features of the one output of ``f``, ``(N, D)``, in host memory.

    Raises:
        ValueError: ``f`` has several outputs.
    """
    kernel_fn = batch(empirical_nngp_fn(f), batch_size, store_on_device=False)
    named = NamedOutputs.unchecked(kernel_fn.outputs(x, params, **kwargs))
    if len(named.leaves) != 1:
        raise ValueError(
            f"f has {len(named.leaves)} outputs, {', '.join(named.paths)}; choose one, such as f.layers('Dense_1')."
        )
    return np.asarray(features(jnp.asarray(named.leaves[0])))
