"""Callbacks: watch the kernel while optax trains."""

from . import writers as writers
from ._schedules import Moment as Moment
from ._schedules import Schedule as Schedule
from ._schedules import at as at
from ._schedules import every as every
from ._schedules import every_seconds as every_seconds
from ._schedules import log_spaced as log_spaced
from ._schedules import when as when
from ._tracker import KernelTracker as KernelTracker
from ._transform import TrackKernelState as TrackKernelState
from ._transform import track_kernel as track_kernel
