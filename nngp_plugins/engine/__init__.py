"""The contraction engine: from any ``f(params, x, **kwargs)`` to named outputs and to kernels."""

from ._arrays import ArrayBackend as ArrayBackend
from ._axes import Axes as Axes
from ._axes import all_but_batch as all_but_batch
from ._batch import BatchedKernelFn as BatchedKernelFn
from ._batch import batch as batch
from ._batch import plan as plan
from ._devices import on_one_device as on_one_device
from ._independence import dependence as dependence
from ._independence import smaller_batch as smaller_batch
from ._independence import traced_errors as traced_errors
from ._inputs import Range as Range
from ._inputs import batch_of as batch_of
from ._inputs import unpacked as unpacked
from ._kwargs import Shared as Shared
from ._loop import TileSink as TileSink
from ._loop import progress as progress
from ._loop import run as run
from ._nngp import KernelFn as KernelFn
from ._nngp import LeafPair as LeafPair
from ._nngp import empirical_nngp_fn as empirical_nngp_fn
from ._outputs import NamedOutputs as NamedOutputs
from ._outputs import OutputSource as OutputSource
from ._outputs import traced_outputs as traced_outputs
from ._program import Tile as Tile
from ._tiling import KernelPlan as KernelPlan
