"""The contraction engine: from any ``f(params, x, **kwargs)`` to named outputs and to kernels."""

from ._apply import is_traced as is_traced
from ._arrays import ArrayBackend as ArrayBackend, OnHost as OnHost
from ._axes import Axes as Axes, all_but_batch as all_but_batch
from ._batch import BatchedKernelFn as BatchedKernelFn, batch as batch
from ._devices import (
    compiler_options as compiler_options,
    on_one_device as on_one_device,
    transfers_allowed as transfers_allowed,
    undisturbed as undisturbed,
)
from ._draws import Count as Count, Draws as Draws
from ._dry_run import plan as plan
from ._estimate import Estimate as Estimate
from ._forward import NetworkOutputs as NetworkOutputs
from ._independence import (
    BatchErrors as BatchErrors,
    smaller_batch as smaller_batch,
    traced_errors as traced_errors,
)
from ._inputs import (
    Range as Range,
    batch_first as batch_first,
    inputs as inputs,
    refuse_empty as refuse_empty,
    unpacked as unpacked,
)
from ._kwargs import Shared as Shared
from ._loop import Job as Job, TileSink as TileSink, in_tiles as in_tiles, progress as progress
from ._nngp import (
    KernelFn as KernelFn,
    LayerFn as LayerFn,
    LeafPair as LeafPair,
    empirical_nngp_fn as empirical_nngp_fn,
    has_layers as has_layers,
)
from ._outputs import (
    Held as Held,
    HeldLayout as HeldLayout,
    NamedOutputs as NamedOutputs,
    OutputSource as OutputSource,
    refuse_same_names as refuse_same_names,
    traced_outputs as traced_outputs,
)
from ._over_inits import (
    MonteCarloKernelFn as MonteCarloKernelFn,
    NewNetwork as NewNetwork,
    monte_carlo_kernel_fn as monte_carlo_kernel_fn,
)
from ._part import TILE_BYTES as TILE_BYTES, Part as Part
from ._plan import KernelPlan as KernelPlan
from ._processes import (
    on_automatic_mesh as on_automatic_mesh,
    replicated_like as replicated_like,
    spans_processes as spans_processes,
)
from ._tile import TileProgram as TileProgram
