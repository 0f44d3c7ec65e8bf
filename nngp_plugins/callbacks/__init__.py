"""Callbacks: watch the kernel while optax trains."""

from . import writers as writers
from ._schedules import (
    Moment as Moment,
    Schedule as Schedule,
    at as at,
    every as every,
    every_seconds as every_seconds,
    log_spaced as log_spaced,
    when as when,
)
from ._tracker import KernelTracker as KernelTracker
from ._transform import TrackKernelState as TrackKernelState, track_kernel as track_kernel
