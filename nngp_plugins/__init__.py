"""Empirical NNGP kernels of real networks, and how they move while optax trains."""

from . import closed_form, gp, metrics
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
    "tag",
    "track_kernel",
    "when",
    "write_features",
    "write_kernel",
    "write_report",
    "writers",
]
