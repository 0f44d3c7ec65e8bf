"""A network's features as a step of scikit-learn's pipelines; importing this module needs scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._require import require
from .._typing import PyTree
from ._from_model import features_of

require("sklearn", extra="zoo")
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402


class NNGPFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The features ``phi`` of a network, so that ``phi phiᵀ`` is its empirical kernel, as a scikit-learn transformer.

    Linear models of these features are kernel methods with the kernel of the network. Nothing of the network is
    trained. It can be cloned, put into a pipeline and searched over, as others can.

    Args:
        f: apply function with one output, as for :func:`nngp_plugins.gp.from_model`.
        params: what ``f`` takes as its parameters.
        batch_size: examples in a forward pass; 0 for all of them at once.
        kwargs: passed to ``f``, such as ``{"state": state}``.

    Example:
        >>> import jax, numpy as np, nngp_plugins as nngp
        >>> from nngp_plugins.gp.sklearn import NNGPFeatures
        >>> from sklearn.linear_model import RidgeClassifier
        >>> from sklearn.pipeline import make_pipeline
        >>> x = np.random.default_rng(0).normal(size=(60, 2))
        >>> y = np.int32(x[:, 0] * x[:, 1] > 0)
        >>> params = jax.random.normal(jax.random.key(0), (2, 256))
        >>> network = NNGPFeatures(lambda params, x: jax.nn.relu(x @ params), params)
        >>> bool(make_pipeline(network, RidgeClassifier(1e-3)).fit(x, y).score(x, y) > 0.9)
        True
    """

    def __init__(
        self,
        f: Callable[..., PyTree],
        params: PyTree = None,
        batch_size: int = 0,
        kwargs: Mapping[str, Any] | None = None,
    ):
        self.f = f
        self.params = params
        self.batch_size = batch_size
        self.kwargs = kwargs

    def fit(self, X: Any, y: Any = None) -> NNGPFeatures:
        """Learns the number of features from the first example.

        Args:
            X: inputs ``(N, ...)``.
            y: not used.
        """
        X = validate_data(self, X, allow_nd=True)
        self._n_features_out = self._features(X[:1]).shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The features of inputs ``(N, ...)``, ``(N, D)``."""
        check_is_fitted(self)
        return self._features(validate_data(self, X, allow_nd=True, reset=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # JAX computes in float32 unless it is told otherwise.
        return tags

    def _features(self, X: Any) -> np.ndarray:
        return features_of(self.f, X, self.params, self.batch_size, self.kwargs or {})
