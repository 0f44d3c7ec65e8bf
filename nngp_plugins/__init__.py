"""Empirical NNGP kernels of real networks, and how they move while optax trains."""

__version__ = "0.1.0"

from . import metrics
from ._gram import gram
from .adapters import ModelFn, as_model_fn, from_callable, from_equinox, from_haiku, from_keras, from_linen, from_nnx
from .callbacks import (
    Comparison,
    History,
    KernelTracker,
    Schedule,
    TrackKernelState,
    at,
    compare,
    every,
    every_seconds,
    log_spaced,
    track_kernel,
    when,
    writers,
)
from .engine import (
    BatchedKernelFn,
    Job,
    KernelFn,
    KernelStore,
    Shared,
    all_but_batch,
    batch,
    empirical_nngp_fn,
    open_kernel,
    plan,
    write_kernel,
)
from .report import write_report

__all__ = [
    "BatchedKernelFn",
    "Comparison",
    "History",
    "Job",
    "KernelFn",
    "KernelStore",
    "KernelTracker",
    "ModelFn",
    "Schedule",
    "Shared",
    "TrackKernelState",
    "all_but_batch",
    "as_model_fn",
    "at",
    "batch",
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
    "gram",
    "log_spaced",
    "metrics",
    "open_kernel",
    "plan",
    "track_kernel",
    "when",
    "write_kernel",
    "write_report",
    "writers",
]
