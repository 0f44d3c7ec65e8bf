"""Adapters turn a model of any framework into ``f(params, x, **kwargs)``."""

from ._arguments import check_key as check_key
from ._callable import from_callable as from_callable
from ._detect import as_model_fn as as_model_fn, holds_module as holds_module, is_model as is_model
from ._equinox import from_equinox as from_equinox
from ._haiku import from_haiku as from_haiku
from ._harvest import Reduced as Reduced
from ._keras import from_keras as from_keras
from ._layer_names import matches as matches
from ._linen import from_linen as from_linen
from ._model_fn import ModelFn as ModelFn
from ._nnx import from_nnx as from_nnx
from ._statistics import warn_of_statistics as warn_of_statistics
from ._tag import tag as tag
