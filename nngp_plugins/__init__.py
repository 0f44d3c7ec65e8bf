"""Empirical NNGP kernels of real networks, and how they move while optax trains."""

from . import closed_form, gp, metrics, report
from ._durable import FolderInUseError
from ._model_gram import gram, over_inits
from ._version import __version__ as __version__
from .adapters import (
    ModelFn,
    as_model_fn,
    from_callable,
    from_equinox,
    from_haiku,
    from_keras,
    from_linen,
    from_nnx,
    tag,
)
from .callbacks import (
    KernelTracker,
    Schedule,
    TrackKernelState,
    at,
    every,
    every_seconds,
    log_spaced,
    track_kernel,
    when,
    writers,
)
from .engine import (
    BatchedKernelFn,
    Estimate,
    KernelFn,
    KernelPlan,
    MonteCarloKernelFn,
    Shared,
    all_but_batch,
    batch,
    empirical_nngp_fn,
    monte_carlo_kernel_fn,
    plan,
)
from .history import Comparison, History, compare
from .report import write_report
from .store import FeatureStore, KernelStore, open_features, open_kernel, write_features, write_kernel

Job = KernelPlan
"""The name of :class:`KernelPlan` in version 0.1.0."""

__all__ = [
    "BatchedKernelFn",
    "Comparison",
    "Estimate",
    "FeatureStore",
    "FolderInUseError",
    "History",
    "Job",
    "KernelFn",
    "KernelPlan",
    "KernelStore",
    "KernelTracker",
    "ModelFn",
    "MonteCarloKernelFn",
    "Schedule",
    "Shared",
    "TrackKernelState",
    "all_but_batch",
    "as_model_fn",
    "at",
    "batch",
    "closed_form",
    "compare",
    "empirical_nngp_fn",
    "every",
    "every_seconds",
    "from_callable",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "gp",
    "gram",
    "log_spaced",
    "metrics",
    "monte_carlo_kernel_fn",
    "open_features",
    "open_kernel",
    "over_inits",
    "plan",
    "report",
    "tag",
    "track_kernel",
    "when",
    "write_features",
    "write_kernel",
    "write_report",
    "writers",
]

_ELSEWHERE = {
    "stax": "layers are those of Flax or Haiku; nngp.closed_form.dense is the kernel of an infinitely wide network.",
    "predict": "nngp.gp.fit and nngp.gp.from_model make predictions from a kernel.",
    "empirical_ntk_fn": "this library is about the NNGP kernel, nngp.empirical_nngp_fn; for the NTK, see jax.jacrev.",
    "empirical_kernel_fn": "nngp.empirical_nngp_fn is the kernel function of this library.",
}


def __getattr__(name: str) -> object:
    """Says where to go for what neural-tangents has and this library has not.

    Raises:
        AttributeError: always.
    """
    told = f": {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{told}")
