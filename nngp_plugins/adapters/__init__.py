"""Adapters: a model of any framework becomes ``f(params, x, **kwargs)``."""

from ._detect import as_model_fn as as_model_fn
from ._detect import is_model as is_model
from ._haiku import from_haiku as from_haiku
from ._linen import from_linen as from_linen
from ._model_fn import ModelFn as ModelFn
from ._nnx import from_nnx as from_nnx
